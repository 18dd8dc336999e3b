"""A pretrained base that is fine-tuned: trained, resumed, used to write, and a reader's matched baseline."""

from __future__ import annotations

import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_readers import TUNED, changed_base, prepare_reader, prepare_tuned, small_base
from train_helpers import advance, same_weights, steps

from retro_demo.cli.main import build_parser
from retro_demo.cli.next_step import next_step
from retro_demo.corpus.store import load_corpus
from retro_demo.errors import UserError
from retro_demo.evaluation.baselines import baseline_settings, match, tokens_seen
from retro_demo.evaluation.over_seeds import verdict_over
from retro_demo.evaluation.runner import Request, prepare_evaluation, run_evaluation
from retro_demo.explain.text import watch_writing
from retro_demo.files import file_hash
from retro_demo.generation.retro import write
from retro_demo.generation.sampling import Written
from retro_demo.models.tuned import Tuned
from retro_demo.pretrained.bases import load_base
from retro_demo.runs.checkpoint import (
    ReaderRun,
    TunedRun,
    load_model,
    read_any_config,
    save_weights,
    write_run_config,
)
from retro_demo.runs.loading import load_own_corpus, load_run
from retro_demo.runs.planning import extend_run, plan_run, prepare_run
from retro_demo.server.run_actions import command_of, passes_ahead
from retro_demo.settings import EvaluateConfig, GenerateConfig
from retro_demo.training.study import Study, prepare_study
from retro_demo.training.tuning import TextWindows

QUICK = EvaluateConfig(first_tokens=200, max_tokens=200, resamples=200, prepend="off", retrievers="")


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory):
    """The fixtures below outlive a test, so they need a data folder that does; both train in float32."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RETRO_DEMO_HOME", str(tmp_path_factory.mktemp("home")))
        patch.setattr("retro_demo.runs.checkpoint.fastest_precision", lambda home: "float32")
        for module in ("reader_training", "tuning"):
            patch.setattr(f"retro_demo.training.{module}.training_precision", lambda: "float32")
        yield


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return small_base(tmp_path_factory.mktemp("bases") / "base")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, half_held_out) -> Path:
    """A copy: what a run makes of a corpus lies beside the corpus."""
    return shutil.copytree(half_held_out.folder, tmp_path_factory.mktemp("corpora") / "half")


@pytest.fixture(scope="module")
def reader(tmp_path_factory, corpus, base) -> Path:
    """A trained reader; do not change it."""
    out = prepare_reader(tmp_path_factory.mktemp("runs") / "reader", corpus, base)
    advance(out)
    return out


@pytest.fixture(scope="module")
def tuned(tmp_path_factory, corpus, base) -> Path:
    """The matched baseline of that reader, trained; do not change it."""
    out = prepare_tuned(tmp_path_factory.mktemp("runs") / "tuned", corpus, base, lr=0.02)
    advance(out)
    return out


@pytest.fixture(scope="module")
def unchanged(tmp_path_factory, corpus, base) -> Path:
    """A baseline whose updates are still nothing."""
    out = prepare_tuned(tmp_path_factory.mktemp("runs") / "unchanged", corpus, base)
    config = read_any_config(out)
    assert isinstance(config, TunedRun)
    save_weights(out, Tuned(config.network), config.training.steps)
    return out


# planning


def test_an_lm_with_a_pretrained_base_is_that_base_fine_tuned(corpus, base):
    wanted = plan_run("lm", str(corpus), base=str(base), device="cpu")

    assert isinstance(wanted, TunedRun)
    assert (wanted.model, wanted.retrieves, wanted.chunk_len) == ("tuned", False, 0)
    assert (wanted.network.dim, wanted.network.ff_dim, wanted.network.num_kv_heads) == (32, 48, 2)
    assert wanted.network.first_tuned == 3  # of five layers
    assert wanted.base_weights == load_base(base).fingerprint
    assert plan_run("tuned", str(corpus), base=str(base), device="cpu") == wanted


@pytest.mark.parametrize(
    ("model", "named", "settings", "said"),
    [
        ("tuned", "", {}, "pretrained base"),
        ("lm", "base", {"first_tuned": 5}, "first_tuned"),
        ("lm", "base", {"depth": 2}, "has no setting depth"),
        ("lm", "base", {"lessons": 3}, "has no setting lessons"),
        ("lm", "base", {"rank": 0}, "rank"),
        ("retro", "base", {}, "retrofit"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_sentence(corpus, base, model, named, settings, said):
    with pytest.raises(UserError, match=said):
        plan_run(model, str(corpus), base=str(base) if named else "", settings=settings, device="cpu")


@pytest.mark.parametrize("model", ["lm", "retro"])
def test_nothing_but_a_reader_begins_with_a_base_that_was_fine_tuned(tuned, corpus, model):
    with pytest.raises(UserError, match="begin with an lm"):
        plan_run(model, str(corpus), base=str(tuned), device="cpu")


def test_a_context_of_one_chunk_is_refused(tmp_path, corpus, base):
    with pytest.raises(UserError, match="multiple of 8"):
        prepare_tuned(tmp_path / "run", corpus, base, seq_len=8)


# training


def test_windows_are_of_training_documents_with_their_titles_and_new_in_each_step(tuned):
    corpus = load_own_corpus(tuned, read_any_config(tuned))
    windows = TextWindows(corpus, seq_len=32, batch_size=6, title_len=4, seed=3)
    first, again, next_one = (windows.train_batch(step) for step in (0, 0, 1))

    assert torch.equal(first.tokens, again.tokens)
    assert not torch.equal(first.tokens, next_one.tokens)
    assert not corpus.held_out[windows.documents].any()
    rows = {tuple(row) for row in corpus.title_rows(4)[windows.documents].tolist()}
    assert {tuple(row) for row in first.titles.tolist()} <= rows
    for row, title in zip(first.tokens.numpy(), first.titles.numpy(), strict=True):
        there = [d for d in windows.documents.tolist() if (corpus.title_rows(4)[d] == title).all()]
        part = row[row != 0].tobytes()
        assert any(part in windows.texts.tokens[d].astype(np.int64).tobytes() for d in there)


def test_held_out_loss_is_told_and_that_in_training_falls(tmp_path, corpus, base):
    events = advance(prepare_tuned(tmp_path / "run", corpus, base, steps=30, lr=0.02, eval_every=30))

    losses = [event["loss"] for event in steps(events)]
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.3
    measured = [event for event in events if event["event"] == "evaluated"]
    assert [set(event["arms"]) for event in measured] == [{"off"}, {"off"}]
    assert measured[-1]["arms"]["off"]["nats"] < measured[0]["arms"]["off"]["nats"]


def test_one_that_was_stopped_goes_on_to_the_weights_of_one_never_stopped(tmp_path, tuned, corpus, base):
    cut = prepare_tuned(tmp_path / "cut", corpus, base, lr=0.02)

    first, second = advance(cut, stop_after=3), advance(cut)

    assert first[-1]["event"] == "stopped"
    assert steps(second)[0]["step"] == 4
    assert same_weights(tuned, cut)
    extend_run(cut, 8)
    assert [step["step"] for step in steps(advance(cut))] == [7, 8]


def test_another_base_in_its_place_is_refused(tmp_path, corpus):
    own = small_base(tmp_path / "base")
    out = prepare_tuned(tmp_path / "run", corpus, own)
    changed_base(own)

    with pytest.raises(UserError, match="other weights"):
        advance(out)


def test_the_passes_over_the_text_are_told_before_the_start(corpus, tuned):
    assert passes_ahead(corpus, "tuned", TUNED)["passes"] > 0


# writing


def written(folder: Path, retrieval: str = "on") -> str:
    run = load_run(folder, "cpu")
    how = GenerateConfig(max_new_tokens=12, temperature=0.0, retrieval=retrieval)
    *_, last = write(run, "Area of Arden:", how)
    assert isinstance(last, Written)
    return run.tokenizer.decode(last.tokens)


def test_before_it_is_trained_it_writes_what_its_base_writes_and_trained_something_else(
    unchanged, tuned, reader
):
    assert written(unchanged) == written(reader, retrieval="off")
    assert written(tuned) != written(unchanged)
    assert load_model(tuned).pretrained is load_model(reader).pretrained  # type: ignore[attr-defined]


def test_what_it_writes_is_shown_token_by_token_without_neighbors(tuned):
    *_, last = watch_writing(
        load_run(tuned, "cpu"), "tuned", "Area of Arden:", GenerateConfig(max_new_tokens=9), lambda: False
    )

    assert last.trace is not None
    assert not last.trace.neighbors
    assert np.isfinite(last.trace.numbers.loss_on[:-1]).all()
    assert (last.trace.numbers.loss_on[:-1] == last.trace.numbers.loss_off[:-1]).all()


def test_another_corpus_or_retriever_is_refused(tuned, corpus):
    with pytest.raises(UserError, match="reads no neighbors"):
        load_run(tuned, "cpu", corpus)
    with pytest.raises(UserError, match="reads no neighbors"):
        load_run(tuned, "cpu", retriever="bm25")


def test_a_title_is_refused_where_nothing_is_searched_for_by_it(tuned, reader):
    titled = GenerateConfig(max_new_tokens=2, title="Arden")
    with pytest.raises(UserError, match="no title is searched for"):
        write(load_run(tuned, "cpu"), "Area", titled)
    with pytest.raises(UserError, match="With retrieval off"):
        write(load_run(reader, "cpu"), "Area", replace(titled, retrieval="off"))
    with pytest.raises(UserError, match="looks up by bm25"):
        write(load_run(reader, "cpu", retriever="bm25"), "Area", replace(titled, retriever="bm25"))

    *_, last = write(load_run(reader, "cpu"), "Area", titled)  # by titles, as it was trained
    assert isinstance(last, Written)


def test_its_command_trains_it_again(tuned, base, data_folder):
    words = shlex.split(command_of(tuned, read_any_config(tuned), data_folder))

    options = build_parser().parse_args(words[words.index("train") :])
    assert (options.model, options.base, options.lr) == ("tuned", str(base), 0.02)


# as the baseline of a reader


def test_the_settings_of_a_readers_baseline_make_one_that_matches(tmp_path, reader, corpus, base):
    settings = baseline_settings(reader)
    out = tmp_path / "baseline"
    prepare_run(out, plan_run("tuned", str(corpus), settings=settings, device="cpu", base=str(base)))
    advance(out)

    ours, theirs = read_any_config(reader), read_any_config(out)
    for name in ("steps", "batch_size", "seq_len", "seed", "warmup", "weight_decay", "eval_every", "keep"):
        assert getattr(ours.training, name) == getattr(theirs.training, name), name
    assert isinstance(theirs, TunedRun)
    assert theirs.training.lr == theirs.kind.preset_settings("tiny")["lr"]
    assert theirs.network.first_tuned == ours.network.first_written  # type: ignore[attr-defined]
    found = match(reader, out)
    assert found.unfit == ""
    assert "tokens are matched, time is not" in found.words


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"steps": 3}, "it saw only"),
        ({"seq_len": 16}, "16 tokens of context"),
        ({"first_tuned": 4}, "layers above 4"),
        ({"rank": 1}, "rank 1, not 8"),
    ],
)
def test_one_that_had_less_is_no_match(tmp_path, reader, corpus, base, changes, said):
    out = prepare_tuned(tmp_path / "less", corpus, base, **changes)
    advance(out)

    found = match(reader, out)
    assert said in found.unfit
    assert ("tokens are matched" in found.words) == (not {"steps", "seq_len"} & set(changes))


def test_one_of_another_base_is_no_match_and_one_of_no_base_is_refused(tmp_path, reader, corpus, base):
    other = prepare_tuned(tmp_path / "other", corpus, changed_base(tmp_path / "changed"))
    advance(other)
    assert match(reader, other).unfit == "it began with another base"

    small = {"dim": 16, "depth": 2, "num_heads": 2, "seq_len": 32, "steps": 2}
    lm = plan_run("lm", str(corpus), settings=small, device="cpu")
    prepare_run(tmp_path / "lm", lm)
    with pytest.raises(UserError, match=r"without a pretrained base.*train lm --base"):
        match(reader, tmp_path / "lm")
    retro = plan_run("retro", str(corpus), settings=small | {"cca_layers": (2,), "enc_dim": 16}, device="cpu")
    prepare_run(tmp_path / "retro", retro)
    with pytest.raises(UserError, match="fine-tuned, which"):
        match(tmp_path / "retro", other)


def measured(reader: Path, baseline: Path, out: Path) -> dict:
    request = Request(str(reader), baseline=str(baseline), device="cpu", settings=QUICK)
    prepare_evaluation(out, request)
    return list(run_evaluation(out, lambda: False))[-1].to_json()


def test_it_is_measured_on_the_tokens_of_its_reader_and_untrained_it_is_retrieval_off(
    tmp_path, reader, unchanged, tuned
):
    same, other = (measured(reader, one, tmp_path / one.name) for one in (unchanged, tuned))

    arms = same["arms"]
    assert arms["baseline"]["bpb"] == arms["off"]["bpb"]
    assert arms["baseline"]["tokens"] == arms["on"]["tokens"]
    assert other["arms"]["baseline"]["bpb"] != other["arms"]["off"]["bpb"]
    for result in (same, other):
        assert "no matched baseline" not in result["verdict"]
        assert result["arms"]["on"]["differences"]["baseline"]["bpb_ci"]
        assert "baseline_before" not in result["arms"]  # retrieval off is what it began as


def test_a_baseline_that_training_made_worse_is_held_against_the_base_as_it_is(
    reader, tmp_path, corpus, base
):
    spoilt = prepare_tuned(tmp_path / "spoilt", corpus, base)
    config = read_any_config(spoilt)
    assert isinstance(config, TunedRun)
    network = Tuned(config.network).attach(load_base(base).model)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.05)
    windows = TextWindows(load_own_corpus(spoilt, config), seq_len=32, batch_size=4, title_len=4, seed=0)
    for step in range(10):
        optimizer.zero_grad()
        (-network.loss(windows.train_batch(step))[0]).backward()
        optimizer.step()
    save_weights(spoilt, network, config.training.steps)

    result = measured(reader, spoilt, tmp_path / "evaluation")

    assert result["arms"]["baseline"]["differences"]["off"]["bpb_ci"][0] > 0
    for told in (result, verdict_over([result, result])):
        assert "the pretrained model as it is" in told["verdict"]


def test_a_reader_measured_without_it_is_told_the_command_that_trains_it(reader, base):
    options = build_parser().parse_args(["evaluate", str(reader)])
    arms = {name: {} for name in ("on", "off", "shuffled")}

    words = shlex.split(next_step(options, {"arms": arms}))

    told = build_parser().parse_args(words)
    assert (told.model, told.base, told.first_tuned) == ("tuned", str(base), 3)
    assert (told.steps, told.chunk_len, told.title_len) == (6, 8, 4)
    assert next_step(options, {"arms": arms | {"baseline": {}}}).startswith("export ")


def test_the_corpus_of_a_reader_and_of_its_baseline_is_made_ready_once(reader, tuned, corpus):
    one, other = (load_own_corpus(each, read_any_config(each)) for each in (reader, tuned))

    assert one.folder == other.folder != load_corpus(corpus).folder


# as the base of a reader


@pytest.fixture(scope="module")
def reads_with_it(tmp_path_factory, corpus, tuned) -> Path:
    """A reader whose base is the fine-tuned one, trained; do not change it."""
    out = prepare_reader(tmp_path_factory.mktemp("runs") / "reads-with-it", corpus, tuned)
    advance(out)
    return out


def test_a_retrofit_of_a_fine_tuned_base_is_a_reader_that_keeps_what_both_began_with(tuned, corpus, base):
    wanted = plan_run("retrofit", str(corpus), base=str(tuned), device="cpu")

    assert isinstance(wanted, ReaderRun)
    assert (wanted.base, wanted.base_weights) == (str(base), load_base(base).fingerprint)
    assert (wanted.tuned, wanted.tuned_weights) == (str(tuned), file_hash(tuned / "model.safetensors"))
    assert (wanted.network.first_tuned, wanted.network.rank) == (3, 8)
    assert plan_run("reader", str(corpus), base=str(tuned), device="cpu") == wanted


def test_a_fine_tuning_without_weights_or_of_another_base_is_refused(tmp_path, corpus):
    own = small_base(tmp_path / "base")
    out = prepare_tuned(tmp_path / "tuned", corpus, own)
    with pytest.raises(UserError, match="no weights yet"):
        plan_run("retrofit", str(corpus), base=str(out), device="cpu")

    config = read_any_config(out)
    save_weights(out, Tuned(config.network), 1)  # type: ignore[arg-type]
    shutil.rmtree(own)
    changed_base(own)
    with pytest.raises(UserError, match="other weights"):
        plan_run("retrofit", str(corpus), base=str(out), device="cpu")


@torch.no_grad()
def test_off_it_is_the_fine_tuned_base_bit_for_bit_and_training_changed_nothing_of_that(
    reads_with_it, tuned, reader
):
    text = torch.randint(3, 60, (2, 24), generator=torch.Generator().manual_seed(0))
    ours, theirs, other = (load_model(run) for run in (reads_with_it, tuned, reader))

    assert torch.equal(ours(text), theirs(text))
    assert not torch.equal(ours(text), other(text))
    assert ours.pretrained is other.pretrained  # type: ignore[attr-defined]
    assert ours.look.null.any()  # which begins at zero  # type: ignore[attr-defined]


def test_it_does_without_the_run_that_fine_tuned_its_base(tmp_path, reads_with_it, tuned):
    out = shutil.copytree(reads_with_it, tmp_path / "alone")
    write_run_config(out, replace(read_any_config(out), tuned=str(tmp_path / "gone")))  # type: ignore[call-arg]

    assert written(out) == written(reads_with_it)
    assert tokens_seen(out) == tokens_seen(reads_with_it)
    assert baseline_settings(out) == baseline_settings(reads_with_it)
    assert "384 tokens" in match(out, tuned).unfit


def test_its_baseline_is_the_base_fine_tuned_for_as_many_tokens_as_both_read(
    reads_with_it, tuned, tmp_path, corpus
):
    assert tokens_seen(reads_with_it) == 2 * tokens_seen(tuned)  # type: ignore[operator]

    settings, config = baseline_settings(reads_with_it), read_any_config(reads_with_it)
    assert (settings["steps"], settings["rank"]) == (12, 8)
    out = tmp_path / "baseline"
    prepare_run(out, plan_run("tuned", str(corpus), settings=settings, device="cpu", base=config.base))
    advance(out)
    assert match(reads_with_it, out).unfit == ""


@pytest.mark.parametrize(("first_tuned", "wanted"), [(2, 2), (4, 3)])
def test_its_baseline_changes_all_layers_that_either_changed(tmp_path, corpus, base, first_tuned, wanted):
    tuned = prepare_tuned(tmp_path / "tuned", corpus, base, first_tuned=first_tuned, steps=1, batch_size=4)
    advance(tuned)
    out = prepare_reader(tmp_path / "reader", corpus, tuned)
    advance(out)

    settings = baseline_settings(out)
    assert (settings["first_tuned"], settings["steps"]) == (wanted, 6 + 2)
    prepare_run(
        tmp_path / "b", plan_run("tuned", str(corpus), settings=settings, device="cpu", base=str(base))
    )
    advance(tmp_path / "b")
    assert match(out, tmp_path / "b").unfit == ""


def test_a_study_does_not_begin_with_it(tmp_path, corpus, tuned):
    with pytest.raises(UserError, match="as it is, and tuned"):
        prepare_study(tmp_path / "study", Study(str(corpus), base=str(tuned)))


def test_its_command_names_the_run_that_fine_tuned_its_base(reads_with_it, tuned, data_folder):
    words = shlex.split(command_of(reads_with_it, read_any_config(reads_with_it), data_folder))

    options = build_parser().parse_args(words[words.index("train") :])
    assert (options.model, options.base) == ("reader", str(tuned))
