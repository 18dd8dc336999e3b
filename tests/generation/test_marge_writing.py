"""Writing passages from evidence: chosen or found, in any language of the run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from marge_training_helpers import advance, folder, prepare  # noqa: F401

from retro_demo.cli.main import main
from retro_demo.errors import UserError
from retro_demo.events import Event, Retrieved, Token
from retro_demo.evidence.passages import Passages
from retro_demo.generation import marge
from retro_demo.generation.marge import (
    LoadedMarge,
    choose_passages,
    find_passages,
    ids_of,
    likely_language,
    load_marge_run,
    write_from_evidence,
)
from retro_demo.generation.sampling import Written
from retro_demo.settings import GenerateConfig

GREEDY = GenerateConfig(max_new_tokens=8, temperature=0.0)


@pytest.fixture(scope="module")
def run(tmp_path_factory, folder) -> LoadedMarge:  # noqa: F811
    out = prepare(tmp_path_factory.mktemp("runs") / "run", folder, steps=6)
    advance(out)
    return load_marge_run(out, "cpu")


def written(
    run: LoadedMarge, prompt: str, config: GenerateConfig = GREEDY, **how
) -> tuple[list[Event], Written]:
    *events, last = write_from_evidence(run, prompt, config, **how)
    assert isinstance(last, Written)
    return [event for event in events if isinstance(event, Event)], last


def test_a_prompt_finds_its_evidence_and_writes_on_from_it(run):
    text = run.corpus.documents[3].text
    events, last = written(run, text[:12])
    assert isinstance(events[0], Retrieved)
    assert len(events[0].neighbors) == round(run.config.evidence.evidence_per_target)
    scores = [neighbor["score"] for neighbor in events[0].neighbors]
    assert scores == sorted(scores, reverse=True)
    assert all(-1.0001 <= score <= 1.0001 for score in scores)
    assert all(isinstance(event, Token) for event in events[1:])
    assert run.tokenizer.decode(last.tokens).startswith(text[:12])
    assert len(last.tokens) - last.prompt_tokens == len(events) - 1 > 0


def test_greedy_text_is_that_of_reading_everything_anew_at_each_token(run):
    _, last = written(run, "N7", language="yy")
    language = run.config.network.vocab_size + 1
    ids = [language, *last.tokens[: last.prompt_tokens]]
    found = find_passages(run, ids, round(run.config.evidence.evidence_per_target))
    evidence = torch.from_numpy(run.passages.tokens[found])
    with torch.inference_mode():
        f = run.model(torch.tensor([ids]), evidence).relevance
        for token in last.tokens[last.prompt_tokens :]:
            logits = run.model(torch.tensor([ids]), evidence, relevance=f).logits[0, -1]
            logits[0] = float("-inf")
            logits[run.config.network.vocab_size :] = float("-inf")
            assert int(logits.argmax()) == token
            ids.append(token)


def test_chosen_documents_are_the_evidence_and_nothing_else_is(run):
    events, _ = written(run, "", documents=["3-xx", "5-yy"], language="xx")
    assert isinstance(events[0], Retrieved)
    assert {neighbor["document"] for neighbor in events[0].neighbors} == {"3-xx", "5-yy"}
    assert {neighbor["score"] for neighbor in events[0].neighbors} == {
        None
    }  # nothing stands there to compare


def test_another_language_another_text_and_another_seed_another_draw(run):
    warm = replace(GREEDY, temperature=1.5)
    assert written(run, "N7", warm)[1].tokens == written(run, "N7", warm)[1].tokens
    assert written(run, "N7", warm)[1].tokens != written(run, "N7", replace(warm, seed=9))[1].tokens
    model_says = [written(run, "N7", language=name)[1].probabilities[0] for name in ("xx", "yy")]
    assert model_says[0] != model_says[1]


def test_off_reads_nothing_and_shuffled_takes_other_passages(run):
    off, _ = written(run, "N7", replace(GREEDY, retrieval="off"))
    assert isinstance(off[0], Retrieved)
    assert off[0].neighbors == []
    shuffled, _ = written(run, "N7", replace(GREEDY, retrieval="shuffled"))
    plain, _ = written(run, "N7")
    assert isinstance(shuffled[0], Retrieved)
    assert isinstance(plain[0], Retrieved)
    assert shuffled[0].neighbors != plain[0].neighbors


def test_a_passage_is_never_evidence_for_itself(run):
    for passage in (0, 4):
        tokens = run.passages.tokens[passage]
        found = find_passages(run, tokens[tokens != 0].tolist(), 5)
        assert passage not in found
        assert not np.isin(run.passages.content[passage], run.passages.content[found])


@pytest.mark.parametrize(
    ("prompt", "how", "sentence"),
    [
        ("", {}, "neither a prompt nor evidence"),
        ("N7", {"language": "zz"}, "writes no 'zz'"),
        ("N7", {"language": "z" * 900_000}, f"writes no '{'z' * 80}'"),
        ("", {"documents": ["nowhere"]}, "has no document 'nowhere'"),
        ("word " * 40, {}, "nothing can follow. Shorten it"),
        ("N7", {"documents": [str(n) for n in range(99)]}, "has no document '0'"),
        ("", {"documents": ["3-xx"], "config": replace(GREEDY, retrieval="off")}, "retrieval is off"),
        ("", {"documents": ["3-xx"], "config": replace(GREEDY, num_neighbors=2)}, "2 pieces are asked for"),
    ],
)
def test_what_cannot_be_written_is_said(run, prompt, how, sentence):
    with pytest.raises(UserError, match=sentence):
        written(run, prompt, **how)


def test_the_command_line_writes_from_chosen_evidence_in_a_language(run, capsys):
    path = str(Path(run.folder))
    flags = ["--max-new-tokens", "5", "--device", "cpu", "--json"]
    assert main(["generate", path, "--prompt", "", "--evidence", "3-xx", "--language", "yy", *flags]) == 0
    told = capsys.readouterr().out
    assert '"document": "3-xx"' in told
    assert '"event": "finished"' in told
    assert main(["generate", path, "--prompt", "N7", "--retriever", "bm25", *flags]) == 2
    assert main(["generate", "sample:factbook-lm", "--prompt", "N7", "--language", "yy", *flags]) == 2


def test_the_command_line_refuses_a_title_which_no_evidence_is_found_by(run, capsys):
    assert main(["generate", str(Path(run.folder)), "--prompt", "N7", "--title", "x"]) == 2
    assert "and the title" in capsys.readouterr().err


def test_a_text_ends_where_its_passage_is_full(run):
    _, last = written(run, "N7", replace(GREEDY, max_new_tokens=128), language="xx")
    assert len(last.tokens) <= run.config.evidence.passage_len - 1


def test_where_no_language_is_named_it_is_that_of_what_is_most_like_the_prompt(run):
    for document in run.corpus.documents[:12]:
        found = likely_language(run, " ".join(document.text.split()[:8]), [])
        assert found in run.config.network.languages
    texts = [document for document in run.corpus.documents[:12] if document.lang == "yy"]
    right = sum(likely_language(run, document.text, []) == "yy" for document in texts)
    assert right > len(texts) / 2
    assert likely_language(run, "", [texts[0].id, "3-xx"]) == "yy"


def test_too_many_chosen_passages_are_refused_in_a_sentence(run):
    everything = [document.id for document in run.corpus.documents] * 2
    with pytest.raises(UserError, match="at most 64"):
        choose_passages(replace(run, passages=twice(run.passages)), everything)


def twice(passages: Passages) -> Passages:
    """All passages two times: more than may be chosen."""
    fields = ("tokens", "document", "position", "language", "group", "content", "held_out", "database_only")
    return replace(passages, **{name: np.concatenate([getattr(passages, name)] * 2) for name in fields})


def test_ids_come_with_commas_between_or_as_a_list_and_may_hold_a_comma(run):
    assert ids_of(run, " 3-xx, 5-yy ,") == ["3-xx", "5-yy"]
    assert ids_of(run, ["3-xx", "5-yy"]) == ["3-xx", "5-yy"]
    first = replace(run.corpus.documents[0], id="a,1")
    other = replace(run, corpus=replace(run.corpus, documents=[first, *run.corpus.documents[1:]]))
    assert ids_of(other, "a,1") == ["a,1"]
    for bad in (5, None, [3]):
        with pytest.raises(UserError, match="Give ids of documents"):
            ids_of(run, bad)


def test_a_prompt_that_is_no_text_is_refused_in_a_sentence(run):
    with pytest.raises(UserError, match="The prompt is 5, which is no text"):
        written(run, 5, language="xx")  # pyright: ignore[reportArgumentType]


def test_of_a_prompt_without_end_no_more_is_embedded_than_a_passage_holds(run, monkeypatch):
    """The memory that it takes grows with the square of the length: a request of 50 kB took 11 GB."""
    lengths = []
    embed = marge.embed_passages
    monkeypatch.setattr(
        marge,
        "embed_passages",
        lambda model, tokens: lengths.append(tokens.shape[1]) or embed(model, tokens),
    )

    with pytest.raises(UserError, match="Shorten it"):
        written(run, "word " * 3000)

    assert lengths == [run.config.evidence.passage_len]
