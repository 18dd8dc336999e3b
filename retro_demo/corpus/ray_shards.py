"""The shards of a corpus on a Ray cluster: Ray Data calls each, as any other scheduler would.

Ray is no requirement (requirements-ray.txt). Its workers must find this package and see the folder.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from retro_demo.corpus.build_jobs import run_shard
from retro_demo.corpus.building import built, read_corpus_config
from retro_demo.corpus.corpus import MANIFEST
from retro_demo.corpus.sharding import Shard
from retro_demo.errors import UserError
from retro_demo.events import Event, Progress, Started


def build_on_ray(out: Path, count: int) -> Iterator[Event]:
    """Build the corpus that `prepare_corpus` wrote down, in `count` shards, yielding progress.

    It joins the cluster that RAY_ADDRESS names, or starts one here. Raises UserError where Ray is not
    installed, and what a shard raises.
    """
    if count < 1:
        raise UserError(f"There cannot be {count} shards. Name 1 or more.")
    try:
        import ray  # pyright: ignore[reportMissingImports]
        import ray.data  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(
            "Ray is not installed. Install it with `pip install -r requirements-ray.txt`, or start the "
            "shards by another scheduler: build-corpus SOURCE --out DIR --shard 1/3."
        ) from error
    read_corpus_config(out)
    yield Started("corpus", about={"shards": count})
    ray.init(ignore_reinit_error=True, log_to_driver=False)
    shards = [{"out": str(out.resolve()), "number": number, "count": count} for number in range(1, count + 1)]
    for stage in ("vectors", "neighbors"):
        called = ray.data.from_items(shards, override_num_blocks=count).map(_call)
        for done, row in enumerate(called.iter_rows(), start=1):
            if row["error"]:
                raise UserError(row["error"])
            yield Progress(stage, done, count)
    manifest = json.loads((out / MANIFEST).read_text("utf-8"))
    yield built(manifest)


def _call(row: dict[str, Any]) -> dict[str, Any]:
    """In a worker: one call of a shard."""
    try:
        for _ in run_shard(Path(row["out"]), Shard(row["number"], row["count"]), lambda: False):
            pass
        return {"error": ""}
    except UserError as error:
        return {"error": str(error)}
