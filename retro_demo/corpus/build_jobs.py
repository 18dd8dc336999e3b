"""The jobs on the folder of a corpus: build it, change it, do a share of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from retro_demo.corpus.building import read_corpus_config
from retro_demo.corpus.changing import carry_out, is_pending
from retro_demo.corpus.corpus import is_built
from retro_demo.corpus.samples import prepare_sample
from retro_demo.corpus.sharding import Shard, begun_in_shards, build_shard, check_count, finish_shards
from retro_demo.errors import UserError
from retro_demo.events import (
    Event,
    Finished,
    Stopped,
    cut_back,
)
from retro_demo.jobs.jobs import claim
from retro_demo.jobs.record import record
from retro_demo.paths import SAMPLE, data_home


def run_build(out: Path, stop: Callable[[], bool]) -> Iterator[Event]:
    """Build or change the corpus prepared in `out`, alone and on record; a stop costs the stage it is in."""
    read_corpus_config(out)
    with claim(out):
        cut_back(out / "events.jsonl", 0)
        # a change that was cut off comes first: its corpus was whole, however it was built
        in_shards = begun_in_shards(out) and not is_pending(out)
        yield from record(out, _until(stop, finish_shards(out) if in_shards else carry_out(out)))


def run_shard(out: Path, shard: Shard, stop: Callable[[], bool]) -> Iterator[Event]:
    """Do what there is to do of one shard of the corpus prepared in `out`, on a record of its own."""
    read_corpus_config(out)
    check_count(out, shard)
    folder = shard.folder(out)
    with claim(folder):
        cut_back(folder / "events.jsonl", 0)
        yield from record(folder, _until(stop, build_shard(out, shard)))


def _until(stop: Callable[[], bool], events: Iterable[Event]) -> Iterator[Event]:
    for event in events:
        yield event
        if stop() and not isinstance(event, Finished):
            yield Stopped()
            return


def ensure_sample(corpus: str, stop: Callable[[], bool] = lambda: False) -> Iterator[Event]:
    """Build the sample corpus that is meant by "sample:NAME", where it is not built yet.

    Raises UserError where it was stopped before its end: nothing can go on without it.
    """
    if corpus.startswith(SAMPLE):
        folder = prepare_sample(data_home()[0], corpus.removeprefix(SAMPLE))
        if not is_built(folder):
            yield from run_build(folder, stop)
            if not is_built(folder):
                raise UserError(f"The sample corpus {corpus} was not built to its end. Call again to go on.")
