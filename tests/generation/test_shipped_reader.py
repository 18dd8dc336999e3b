"""The shipped reader on the real base: what it writes stands in the edition that it reads."""

from __future__ import annotations

import pytest

from retro_demo.events import Event
from retro_demo.generation.retro import write
from retro_demo.generation.sampling import Written
from retro_demo.paths import CHECKPOINTS
from retro_demo.pretrained.bases import available_bases
from retro_demo.runs.loading import LoadedRun, ready_run
from retro_demo.settings import GenerateConfig

PROMPT = "France\n\nGovernment\n\nExecutive branch:\nchief of state:"


def reading(corpus: str | None) -> LoadedRun:
    """The shipped run with a corpus, made ready."""
    making = ready_run(CHECKPOINTS / "factbook-smollm2", "cpu", corpus, "", lambda: False)
    while True:
        try:
            next(making)
        except StopIteration as ended:
            return ended.value


@pytest.mark.proof
@pytest.mark.parametrize(
    ("corpus", "name"), [(None, "Francois HOLLANDE"), ("sample:factbook2026", "Emmanuel MACRON")]
)
def test_the_chief_of_state_is_that_of_the_edition_that_is_read(corpus, name, tmp_path, monkeypatch):
    monkeypatch.delenv("RETRO_DEMO_SMOLLM2")
    monkeypatch.setenv("RETRO_DEMO_HOME", str(tmp_path))
    if not available_bases():
        pytest.skip("smollm2 is not installed: make setup fetches it")
    run = reading(corpus)
    how = GenerateConfig(max_new_tokens=16, temperature=0.0)

    told: list[Event | Written] = list(write(run, PROMPT, how))
    off = list(write(run, PROMPT, GenerateConfig(max_new_tokens=16, temperature=0.0, retrieval="off")))

    texts = [run.tokenizer.decode(one.tokens) for one in (told[-1], off[-1]) if isinstance(one, Written)]
    assert name in texts[0]
    assert name not in texts[1]
