"""A pretrained base that learns to read neighbors: planned, trained, used to write, explain and measure."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reader_helpers import (
    CHUNK,
    LENGTH,
    QUERY,
    SHAPE,
    TITLE,
    countries,
    make_base,
    make_corpus,
    prepare_reader,
)
from train_helpers import advance, same_weights, steps

from benchmarks.made_bases import FAMILIES, write_base
from retro_demo.cli.main import build_parser, main
from retro_demo.corpus.retrievers import neighbor_table
from retro_demo.corpus.store import load_corpus
from retro_demo.errors import UserError
from retro_demo.evaluation.baselines import Known
from retro_demo.evaluation.retro_measurement import find_neighbors, make_arms
from retro_demo.evaluation.runner import Pass, Request, prepare_evaluation, run_evaluation
from retro_demo.events import Finished, Retrieved
from retro_demo.explain.document_value import weigh
from retro_demo.explain.edits import rewrite, swap
from retro_demo.explain.text import explain_text, watch_writing
from retro_demo.explain.tracing import Trace
from retro_demo.generation.retro import first_line, write
from retro_demo.generation.sampling import Written
from retro_demo.models.reader import Reader
from retro_demo.pretrained.bases import describe_base, forget_bases, load_base
from retro_demo.retrieval.neighbors import EndOfQuery
from retro_demo.runs.checkpoint import ReaderRun, load_model, read_any_config
from retro_demo.runs.loading import LoadedRun, load_own_corpus, load_run
from retro_demo.runs.planning import layers_at, plan_run
from retro_demo.server.run_actions import command_of
from retro_demo.settings import EvaluateConfig, ExplainConfig, GenerateConfig, WeighConfig

GREEDY = {"temperature": 0.0, "max_new_tokens": 40}
PROMPT = "Republic of Arden\n\nGeography:\nArea:"


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory):
    """The fixtures below outlive a test, so they need a data folder that does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RETRO_DEMO_HOME", str(tmp_path_factory.mktemp("home")))
        patch.setattr("retro_demo.runs.checkpoint.fastest_precision", lambda home: "float32")
        patch.setattr("retro_demo.training.reader_training.training_precision", lambda: "float32")
        yield


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return make_base(tmp_path_factory.mktemp("base") / "base")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpora") / "countries", countries())


@pytest.fixture(scope="module")
def edition(tmp_path_factory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("editions") / "other", countries(1))


@pytest.fixture(scope="module")
def trained(tmp_path_factory, corpus, edition, base) -> Path:
    out = prepare_reader(
        tmp_path_factory.mktemp("run") / "reader", corpus, base, edition=str(edition), lr=0.02, gate=1.0
    )
    advance(out)
    return out


@pytest.fixture(scope="module")
def run(trained) -> LoadedRun:
    return load_run(trained, "cpu")


def events_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


def written(run: LoadedRun, prompt: str = PROMPT, **settings: Any) -> tuple[Written, list[Retrieved]]:
    config = GenerateConfig(**(GREEDY | settings))
    events = list(write(run, prompt, config))
    assert isinstance(events[-1], Written)
    return events[-1], [event for event in events if isinstance(event, Retrieved)]


# planning


def test_a_retrofit_of_a_pretrained_base_is_a_run_of_kind_reader(corpus, base):
    wanted = plan_run("retrofit", str(corpus), base=str(base), settings=SHAPE, device="cpu")

    assert isinstance(wanted, ReaderRun)
    assert wanted.model == "reader"
    assert (wanted.network.dim, wanted.network.depth, wanted.network.vocab_size) == (32, 3, 300)
    assert wanted.base == str(base)
    assert wanted.base_weights == load_base(base).fingerprint
    assert wanted.context < wanted.base_context == 400
    assert wanted.training.retriever == "bm25-titles"


@pytest.mark.parametrize(("depth", "expected"), [(30, (12, 18)), (3, (1, 2)), (2, (1,)), (24, (10, 14))])
def test_layers_that_are_matched_lie_at_the_same_shares_of_any_depth(depth, expected):
    assert layers_at((0.4, 0.6), depth) == expected


@pytest.mark.parametrize(
    ("model", "base_of", "settings", "match"),
    [
        ("retro", "base", {}, "retrofit"),
        ("marge", "base", {}, "retrofit"),
        ("reader", "", {}, "pretrained base"),
        ("retrofit", "base", {"enc_dim": 8}, "enc_dim"),
        ("retrofit", "base", {"write_layers": (9,)}, "write_layers"),
        ("retrofit", "base", {"reading": 0.5}, "reading"),
        ("retrofit", "base", {"outputs": "nothing"}, "outputs"),
    ],
)
def test_what_does_not_fit_a_pretrained_base_is_refused(corpus, base, model, base_of, settings, match):
    with pytest.raises(UserError, match=match):
        plan_run(model, str(corpus), base=str(base) if base_of else "", settings=settings, device="cpu")


@pytest.mark.parametrize(("seq_len", "match"), [(CHUNK, "multiple"), (40, "multiple"), (640, "at most")])
def test_a_context_that_does_not_fit_chunks_or_base_is_refused(tmp_path, corpus, base, seq_len, match):
    with pytest.raises(UserError, match=match):
        prepare_reader(tmp_path / "run", corpus, base, seq_len=seq_len)
    assert not (tmp_path / "run").exists()


def test_a_base_of_the_hub_is_asked_for_only_where_that_is_allowed(corpus, monkeypatch):
    asked = []

    def fetch(name):
        asked.append(name)
        raise UserError("fetched")

    monkeypatch.setattr("retro_demo.pretrained.bases._from_hub", fetch)
    with pytest.raises(UserError, match="No run|no run|There is"):
        plan_run("retrofit", str(corpus), base="some/base", device="cpu")
    with pytest.raises(UserError):
        plan_run("retro", str(corpus), base="some/base", device="cpu", hub=True)
    assert not asked
    with pytest.raises(UserError, match="fetched"):
        plan_run("retrofit", str(corpus), base="some/base", device="cpu", hub=True)
    assert asked == ["some/base"]


def test_an_edition_is_kept_as_a_whole_path_with_its_fingerprint(corpus, edition, base, monkeypatch):
    monkeypatch.chdir(edition.parent)

    wanted = plan_run("retrofit", str(corpus), base=str(base), settings={"edition": "other"}, device="cpu")

    assert isinstance(wanted, ReaderRun)
    assert wanted.lessons.edition == str(edition)
    assert wanted.edition_fingerprint == load_corpus(edition).fingerprint


def test_an_edition_that_is_not_there_is_refused(corpus, base, tmp_path):
    settings = {"edition": str(tmp_path / "none")}
    with pytest.raises(UserError, match="no corpus"):
        plan_run("retrofit", str(corpus), base=str(base), settings=settings, device="cpu")


# training


def test_training_writes_down_steps_and_held_out_losses(trained):
    events = events_of(trained)

    assert [event["step"] for event in steps(events)] == [1, 2, 3, 4]
    assert all(np.isfinite(event["loss"]) for event in steps(events))
    arms = [event["arms"] for event in events if event["event"] == "evaluated"]
    assert {"on", "off"} == set(arms[-1])
    assert arms[-1]["off"] == arms[0]["off"]  # the base stays what it was
    assert arms[-1]["on"] != arms[-1]["off"]


def test_a_reader_that_was_stopped_goes_on_to_the_weights_of_one_never_stopped(
    tmp_path, trained, corpus, edition, base
):
    cut = prepare_reader(tmp_path / "cut", corpus, base, edition=str(edition), lr=0.02, gate=1.0)
    advance(cut, stop_after=2)
    advance(cut)

    assert same_weights(trained, cut)


def test_no_weight_of_the_base_is_kept_in_the_run(trained, run):
    names = set(load_model(trained).state_dict())

    assert names
    assert not any(name.startswith(("base", "_base", "blocks", "embed")) for name in names)


def test_an_edition_that_changed_since_is_refused(tmp_path, corpus, base):
    other = make_corpus(tmp_path / "other", countries(1))
    out = prepare_reader(tmp_path / "run", corpus, base, edition=str(other))
    text = (out / "config.json").read_text()
    fingerprint = load_corpus(other).fingerprint
    (out / "config.json").write_text(text.replace(fingerprint, "0" * len(fingerprint)))

    with pytest.raises(UserError, match="has changed since"):
        advance(out)


def test_another_retriever_than_that_of_titles_is_refused(tmp_path, corpus, base):
    out = prepare_reader(tmp_path / "run", corpus, base, retriever="bm25-words")

    with pytest.raises(UserError, match="bm25-titles"):
        advance(out)


# the base, and tokens


def test_a_base_that_is_another_one_now_is_refused(tmp_path, corpus):
    base = make_base(tmp_path / "base")
    out = prepare_reader(tmp_path / "run", corpus, base)
    config = read_any_config(out)
    weights = base / "model.safetensors"
    write_base(base, FAMILIES["tinyllama"] | {"max_position_embeddings": 400})
    assert weights.exists()

    with pytest.raises(UserError, match="other weights"):
        config.with_base(Reader(config.network), out)


def test_each_precision_and_device_has_a_base_of_its_own_that_all_its_readers_share(trained, base):
    forget_bases()
    one, two = load_model(trained), load_model(trained)

    assert one.base is two.base  # type: ignore[attr-defined]
    assert load_base(base, "float32").model is one.base  # type: ignore[attr-defined]
    assert load_base(base, "bfloat16").model is not one.base  # type: ignore[attr-defined]
    assert load_base(base, "float32", device="meta").model.norm.device.type == "meta"
    assert one.base.norm.device.type == "cpu"  # type: ignore[attr-defined]


def test_the_corpus_is_read_in_the_tokens_and_the_vocabulary_of_the_base(trained, base, run):
    there = load_own_corpus(trained, read_any_config(trained))

    assert there.config.chunk_len == CHUNK
    assert there.tokenizer.fingerprint == describe_base(base).tokenizer.fingerprint
    assert there.tokenizer.vocab_size == run.tokenizer.vocab_size == 300
    assert run.tokenizer.decode([299]) == ""  # the network has room for it, the vocabulary no token


# writing


def test_without_retrieval_a_reader_writes_what_its_base_writes(run, base):
    got, found = written(run, retrieval="off")
    model, begin = load_base(base, "float32").model, 0
    ids = [begin, *run.tokenizer.encode(PROMPT)]
    with torch.inference_mode():
        for _ in range(GREEDY["max_new_tokens"]):
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
            if ids[-1] == run.tokenizer.eos_id:
                break

    assert not found
    new = got.tokens[got.prompt_tokens :]
    assert new == ids[1 + len(run.tokenizer.encode(PROMPT)) :][: len(new)]
    assert len(new) > 5


@pytest.mark.parametrize("extra", range(3))
def test_a_look_comes_at_the_end_of_a_prompt_of_any_length(run, extra):
    got, found = written(run, PROMPT + "x" * extra)

    assert got.prompt_tokens % CHUNK == 0
    assert (found[-1].chunk + 1) * CHUNK >= got.prompt_tokens
    assert any((event.chunk + 1) * CHUNK == got.prompt_tokens for event in found)
    assert all(event.neighbors for event in found[-1:])


def test_the_title_is_the_first_line_of_the_prompt_unless_one_is_given(run):
    database = [one.title for one in run.database.corpus.documents]
    held = run.database.corpus.held_out
    there = [title for title, out in zip(database, held, strict=True) if not out]

    def first(prompt: str, **settings: Any) -> str:
        found = written(run, prompt, max_new_tokens=1, **settings)[1]
        return found[-1].neighbors[0]["title"]

    for title in there[:3]:
        assert first(f"\n{title}\n\nPopulation:") == title
        assert first("Population:", title=title) == title
    assert first_line("\n  \n A b \nc") == "A b"
    assert first_line("") == ""


def test_how_much_is_searched_for_can_be_set_for_one_text(run):
    assert isinstance(run.database.retriever, EndOfQuery)
    assert run.database.retriever.count == QUERY
    short, long = (written(run, query_tokens=count, max_new_tokens=1)[1] for count in (4, 30))

    assert [n["score"] for n in short[-1].neighbors] != [n["score"] for n in long[-1].neighbors]


def test_shuffled_neighbors_are_others_and_the_same_for_a_seed(run):
    own, shuffled, again = (written(run, retrieval=how, seed=1)[1] for how in ("on", "shuffled", "shuffled"))

    def ids(events: list[Retrieved]) -> list[list[int]]:
        return [[n["chunk"] for n in event.neighbors] for event in events]

    assert ids(shuffled)[0] == ids(again)[0]
    assert ids(shuffled)[0] != ids(own)[0]


def test_what_does_not_fit_the_base_is_refused_and_what_fits_is_written(run):
    room = run.config.context - len(run.tokenizer.encode(PROMPT))

    with pytest.raises(UserError, match="longer context"):
        written(run, max_new_tokens=room + 1)
    assert len(written(run, max_new_tokens=room, retrieval="off")[0].tokens) > 20


def test_the_command_of_a_reader_names_its_base_and_parses(trained, base, data_folder):
    command = command_of(trained, read_any_config(trained), data_folder)

    words = shlex.split(command)
    assert words[words.index("--base") + 1] == str(base)
    options = build_parser().parse_args(words[words.index("train") :])
    assert options.lessons in (None, 6)


# explaining


@pytest.fixture(scope="module")
def shown(run) -> Trace:
    text = "\n".join(row["text"] for row in countries()[:1])
    return explain_text(run, "it", text, ExplainConfig())


def test_a_pasted_text_is_explained_with_titles_apart_from_neighbors(run, shown, tmp_path):
    assert shown.neighbor_tokens.shape[-1] == 2 * CHUNK
    assert shown.rows.shape[-1] == TITLE + 2 * CHUNK
    assert shown.weights.shape[0] == len(shown.layers) == 1
    assert shown.about["null_slot"]
    assert np.isfinite(shown.numbers.loss_on[: len(shown.ids) - 1]).all()

    shown.save(tmp_path / "trace")
    again = Trace.load(tmp_path / "trace")
    assert (again.rows == shown.rows).all()


def test_a_neighbor_can_be_deleted_or_swapped_and_an_equal_one_changes_nothing(run, shown):
    gone = rewrite(run, shown, 0, 0, "", "")
    assert gone.after == ""
    assert gone.edit.kl.max() > 1e-6
    assert gone.edit.moved_before == 0

    same = int(shown.neighbors[0][0]["chunk"])
    swapped = swap(run, shown, 0, 0, same)
    assert swapped.before == swapped.after
    assert np.nanmax(swapped.edit.kl) < 1e-6


def test_a_text_that_was_written_is_traced_where_its_neighbors_were_read(run):
    config = GenerateConfig(**GREEDY)
    *_, last = watch_writing(run, "run", PROMPT, config, lambda: False)
    plain, found = written(run)

    assert last.trace is not None
    assert last.trace.ids == plain.tokens
    assert "".join(last.trace.pieces) == run.tokenizer.decode(plain.tokens)
    assert len(last.trace.neighbors) == len(plain.tokens) // CHUNK
    chunks = [[n["chunk"] for n in one] for one in last.trace.neighbors]
    assert chunks[: len(found)] == [[n["chunk"] for n in event.neighbors] for event in found]
    padding = plain.prompt_tokens - len(run.tokenizer.encode(PROMPT))
    assert padding > 1
    assert not last.trace.numbers.loss_on[: padding - 1].any()
    assert last.trace.numbers.loss_on[padding - 1] > 0
    written_loss = -np.log(plain.probabilities[0])
    assert written_loss >= 0


def test_a_pasted_text_is_searched_for_by_its_first_line(run):
    corpus = run.database.corpus
    title = next(one.title for one, out in zip(corpus.documents, corpus.held_out, strict=True) if not out)
    text = f"{title}\n\nA few words that stand nowhere, and Population: 17 souls"

    shown = explain_text(run, "it", text, ExplainConfig())

    assert {found[0]["title"] for found in shown.neighbors} == {title}


@pytest.mark.parametrize("text", ["", countries()[0]["text"]])
def test_documents_are_weighed_for_a_reader(run, text):
    corpus = run.database.corpus
    title = next(one.title for one, out in zip(corpus.documents, corpus.held_out, strict=True) if not out)

    report = weigh(run, [title], config=WeighConfig(max_tokens=2000), text=text)

    assert report["weighed"] == [title]
    assert report["tokens"] > 0
    assert set(report["nats"]) == {"with", "without", "off"}


# measuring


def test_a_reader_is_measured_with_its_own_neighbors_and_titles(trained, tmp_path):
    settings = EvaluateConfig(
        first_tokens=100, max_tokens=300, resamples=200, database_sizes=(50,), corruption=(0,)
    )
    prepare_evaluation(tmp_path / "out", Request(str(trained), settings=settings))

    events = list(run_evaluation(tmp_path / "out", lambda: False))

    assert isinstance(events[-1], Finished), events[-1]
    arms = events[-1].result["arms"]
    assert {"on", "off", "shuffled", "oracle_0"} <= set(arms)
    assert len(events[-1].result["curves"]["database_sizes"]) == 1
    assert arms["on"]["nats"] != arms["off"]["nats"]


def test_the_neighbors_of_an_evaluation_are_those_of_the_training(run):
    arms = make_arms(
        run, run.database.corpus, EvaluateConfig(), Known(np.zeros(len(run.database.corpus.documents), bool))
    )
    list(find_neighbors(arms, Pass(1, ["on"], len(arms.windows))))
    rows = arms.windows.rows[arms.windows.rows >= 0]

    table = neighbor_table(run.database.corpus, "bm25-titles", QUERY)

    assert (arms.tables[arms.own][rows] == table[rows]).all()
    assert arms.neighbors("on", np.array([0])).shape[-1] == TITLE + 2 * CHUNK


# the command line


def test_the_command_line_trains_a_reader_and_writes_with_it(tmp_path, corpus, edition, base, capsys):
    sizes = ["--lessons", 2, "--steps", 1, "--seq-len", LENGTH, "--chunk-len", CHUNK, "--title-len", TITLE]
    where = ["--corpus", corpus, "--edition", edition, "--base", base, "--out", tmp_path / "run"]
    assert main(list(map(str, ["train", "retrofit", *where, *sizes, "--device", "cpu"]))) == 0

    assert read_any_config(tmp_path / "run").model == "reader"
    how = ["--prompt", PROMPT, "--title", "Republic of Belmont", "--query-tokens", 8, "--max-new-tokens", 3]
    capsys.readouterr()
    assert main(list(map(str, ["generate", tmp_path / "run", *how, "--json"]))) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {"retrieved", "token", "finished"} <= {event["event"] for event in events}
