"""What tests of editions share with others."""

from __future__ import annotations

from pathlib import Path

from conftest import write_jsonl

from retro_demo.corpus.building import build_corpus, prepare_corpus
from retro_demo.settings import CorpusConfig

OTHER = CorpusConfig(chunk_len=16, vocab_size=300, num_neighbors=3)


def built(folder: Path, rows: list[dict[str, str]], config: CorpusConfig = OTHER) -> Path:
    prepare_corpus(folder, [write_jsonl(folder.with_suffix(".jsonl"), rows)], config)
    list(build_corpus(folder))
    return folder
