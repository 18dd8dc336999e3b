"""The corpora that ship with the code, and where each is built."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from retro_demo.config import CorpusConfig
from retro_demo.corpus.building import write_corpus_config
from retro_demo.corpus.cutting import SHIPPED_TOKENIZERS
from retro_demo.corpus.lookup_world import WRITERS, LookupConfig, write_lookup_world
from retro_demo.errors import UserError
from retro_demo.paths import ASSETS, SAMPLE, STATIC_FOLDER
from retro_demo.whole_files import file_hash


@dataclass(frozen=True)
class Sample:
    """A corpus that ships with the code: as a file, or as a world that is written when it is asked for."""

    title: str
    source: Path | LookupConfig
    config: CorpusConfig
    at_start: bool = True  # whether it is built before anybody asks


SAMPLES = {
    "factbook2015": Sample(
        "World Factbook 2015",
        ASSETS / "factbook2015" / "factbook2015.jsonl.gz",
        CorpusConfig(tokenizer="factbook", chunk_len=32),
    ),
    "udhr44": Sample(
        "Human rights in 44 languages",
        ASSETS / "udhr44" / "udhr44.jsonl.gz",
        CorpusConfig(holdout=0.2),
    ),
    "lookup": Sample(
        "Lookup world", LookupConfig(), CorpusConfig(chunk_len=32, vocab_size=4096), at_start=False
    ),
}


def sample_folder(home: Path, name: str) -> Path:
    """Where the sample corpus `name` is built; another version of its source is another folder."""
    if name not in SAMPLES:
        raise UserError(f"There is no sample corpus {name}. There is: {', '.join(SAMPLES)}.")
    sample = SAMPLES[name]
    source = sample.source
    parts = [
        file_hash(source) if isinstance(source, Path) else repr((source, *map(file_hash, WRITERS))),
        file_hash(STATIC_FOLDER / "table.safetensors"),
        repr(sample.config),
    ]
    if sample.config.tokenizer in SHIPPED_TOKENIZERS:
        parts += [file_hash(SHIPPED_TOKENIZERS[sample.config.tokenizer])]
    return home / "samples" / f"{name}-{hashlib.sha256(repr(parts).encode()).hexdigest()[:8]}"


def prepare_sample(home: Path, name: str) -> Path:
    """The folder of a sample corpus, ready for `build_corpus` (which finds it done the second time)."""
    folder, sample = sample_folder(home, name), SAMPLES[name]
    if not (folder / "config.json").exists():
        source = sample.source
        if isinstance(source, LookupConfig):
            folder.mkdir(parents=True, exist_ok=True)
            source = write_lookup_world(folder / "world.jsonl", source)
        write_corpus_config(folder, [source], sample.config)
    return folder


def corpus_folder(home: Path, corpus: str) -> Path:
    """The folder that a run's config means by its corpus: a path, or "sample:NAME"."""
    if corpus.startswith(SAMPLE):
        return sample_folder(home, corpus.removeprefix(SAMPLE))
    return Path(corpus)
