"""What a GPU does for this project, in one command of under eight minutes on an H100 or H200.

    python -m benchmarks.gpu [--minutes 8] [--parts steps reader decoding faiss resume] [--json FILE]
    python -m benchmarks.gpu --smoke          # on a CPU, tiny: to see that it works, no figures

Each figure is a JSON line as it comes, so that a run that is cut off has told what it measured; all of them
go into build/benchmarks/gpu.json at the end. Parts that no time is left for are named. The parts:

- resume: a training that was stopped and went on is bit for bit the one that was not.
- steps: RETRO and MARGE, small and ten times as wide, in bf16 and compiled, in turns with the references as
  shipped (benchmarks.training_step; ours alone where the references cannot be fetched).
- reader: SmolLM2's shape (its weights where it is installed), a reader's steps, and the making of lessons.
- decoding: tokens a second of the base and of a reader, with their cache.
- faiss: a search in the GPU's copy of an index against the same on the CPU, and whether they agree.

It has not been run on a GPU yet: none was at hand.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.measuring import Report, take_turns, torch

import numpy as np  # isort: skip

from benchmarks.peers import MargeSizes, RetroSizes, our_step
from benchmarks.pretrained import (
    reader_of,
    training_batch,
    training_step,
    written_by_base,
    written_by_reader,
)
from benchmarks.training_step import measure
from retro_demo.corpus.building import build_corpus, open_files, prepare_corpus, write_index
from retro_demo.corpus.samples import LookupConfig, write_lookup_world
from retro_demo.devices import allowed_memory
from retro_demo.errors import UserError
from retro_demo.events import Step
from retro_demo.files import file_hash
from retro_demo.models.llama import Llama, LlamaConfig
from retro_demo.models.marge import MARGE
from retro_demo.models.retro import RETRO
from retro_demo.pretrained.bases import load_base
from retro_demo.retrieval.dense import gpu_available
from retro_demo.runs.planning import plan_run, prepare_run
from retro_demo.settings import CorpusConfig
from retro_demo.training.trainer import run_training

SMOLLM2 = LlamaConfig(
    vocab_size=49_152, dim=576, depth=30, num_heads=9, num_kv_heads=3, head_dim=64, ff_dim=1536, max_len=8192
)
TINY = LlamaConfig(vocab_size=512, depth=6)
Figures = Iterator[dict[str, Any]]


def base_here(options: argparse.Namespace) -> tuple[Llama, str]:
    """SmolLM2 on the device in bfloat16, and whose weights it has."""
    if options.smoke:
        return Llama(TINY), "random, tiny"
    try:
        return load_base("smollm2", "bfloat16").model.to(options.device), "smollm2"
    except UserError:
        return Llama(SMOLLM2, precision="bfloat16").to(options.device), "random, of its shape"


def waited(way: Callable[[], object]) -> float:
    """Seconds of one call, the work on the GPU included."""
    begun = time.perf_counter()
    way()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def resume_part(options: argparse.Namespace, report: Report) -> Figures:
    """Trains a tiny RETRO twice, once with a stop in the middle, and compares all of its saved state."""
    steps, half = (8, 4) if options.smoke else (40, 17)
    with tempfile.TemporaryDirectory() as place:
        home = Path(place)
        source = write_lookup_world(home / "world.jsonl", LookupConfig(countries=60, held_out=8))
        folder = home / "corpus"
        prepare_corpus(folder, [source], CorpusConfig(chunk_len=32, vocab_size=600))
        for _ in build_corpus(folder):
            pass
        settings = {"steps": steps, "eval_every": steps, "save_every": 2, "batch_size": 4, "seq_len": 128}
        hashes = {}
        for name in ("whole", "stopped"):
            run = home / name
            config = plan_run("retro", str(folder), preset="tiny", settings=settings, device=options.device)
            prepare_run(run, config)
            done = 0
            if name == "stopped":
                for event in run_training(run, lambda: done >= half):  # noqa: B023 - it counts as it goes
                    done += isinstance(event, Step)
            list(run_training(run, lambda: False))
            hashes[name] = file_hash(run / "model.safetensors")
    yield {"same": hashes["whole"] == hashes["stopped"], "steps": steps, "stopped_after": half}


def steps_part(options: argparse.Namespace, report: Report) -> Figures:
    """Training steps against the references."""
    chosen = argparse.Namespace(
        device=options.device, quick=options.smoke, rounds=options.rounds, threads=[1], clock="wall"
    )
    for wider in (1,) if options.smoke else (1, 10):
        for name in ("retro", "marge"):
            begun, before = time.perf_counter(), set(report.figures)
            try:
                measure(name, chosen, report, wider)
                new = [value for key, value in report.figures.items() if key not in before][0]
                middle = {side: statistics.median(each) for side, each in new["seconds"].items()}
                figure = {"seconds": middle, "tokens": new["tokens"], "flops": new["flops"]}
            except SystemExit as error:
                figure = ours_alone(name, wider, options) | {"references": str(error)[:200]}
            yield {"model": name, "width": wider, "took": round(time.perf_counter() - begun, 1)} | figure


def ours_alone(name: str, wider: int, options: argparse.Namespace) -> dict[str, Any]:
    """A compiled step of ours in bf16 without a reference beside it."""
    sizes = MargeSizes(width=256 * wider) if name == "marge" else RetroSizes(width=256 * wider)
    network = (MARGE if name == "marge" else RETRO)(sizes.config()).to(options.device)  # pyright: ignore[reportArgumentType]
    batch = sizes.random_batch().to(torch.device(options.device))
    step = our_step(network, batch, half=options.device != "cpu")
    network.compile()
    seconds = take_turns({"ours": step}, options.rounds, warmup=3)["ours"]
    tokens = sizes.batch * (sizes.target if isinstance(sizes, MargeSizes) else sizes.context)
    return {"seconds": {"ours, as configured": statistics.median(seconds)}, "tokens": tokens}


def reader_part(options: argparse.Namespace, report: Report) -> Figures:
    """Steps of a reader for some sizes of a batch, and the making of lessons."""
    base, weights = base_here(options)
    length = 64 if options.smoke else 224
    for size in (2,) if options.smoke else (3, 24, 96):
        model = reader_of(base).train()
        batch = training_batch(model, size, length)

        def ahead(model: Any = model, batch: Any = batch) -> Any:
            return model.read_ahead(batch.tokens[:, :-1], batch.titles, batch.neighbors, keep=False)

        step = training_step(model, batch._replace(ahead=ahead()))
        seconds = take_turns({"step": step, "lessons": ahead}, options.rounds, warmup=2)
        each = {name: size * length / statistics.median(one) for name, one in seconds.items()}
        memory = torch.cuda.max_memory_allocated() / 1e6 if torch.cuda.is_available() else None
        yield {"weights": weights, "batch": size, "tokens_per_second": each, "most_mb": memory}


def decoding_part(options: argparse.Namespace, report: Report) -> Figures:
    """Greedy writing of one text by the base, by a reader that is off, and by one that reads."""
    base, weights = base_here(options)
    model, count = reader_of(base), 4 if options.smoke else 128
    prompt = (
        np.random.default_rng(0).integers(1, base.config.vocab_size, 40 if options.smoke else 256).tolist()
    )
    ways: dict[str, Callable[[int], object]] = {
        "base": lambda n: written_by_base(base, prompt, n),
        "reader, off": lambda n: written_by_reader(model, prompt, n, read=False),
        "reader": lambda n: written_by_reader(model, prompt, n),
    }
    for name, way in ways.items():
        waited(lambda way=way: way(2))
        first = statistics.median(waited(lambda way=way: way(1)) for _ in range(3))
        whole = statistics.median(waited(lambda way=way: way(1 + count)) for _ in range(3))
        speed = count / max(1e-9, whole - first)
        yield {"way": name, "weights": weights, "first_ms": 1000 * first, "tokens_per_second": speed}


def faiss_part(options: argparse.Namespace, report: Report) -> Figures:
    """The same index on the CPU and, where FAISS can use it, copied to the GPU."""
    count, dim = (2_000, 32) if options.smoke else (300_000, 256)
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((count, dim), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    near = vectors[:2048] + 0.5 * rng.standard_normal((2048, dim), dtype=np.float32)[: len(vectors[:2048])]
    queries = (near / np.linalg.norm(near, axis=1, keepdims=True)).astype(np.float32)
    can, words = gpu_available()
    with tempfile.TemporaryDirectory() as place:
        for _ in write_index(Path(place), vectors, np.arange(count), "cpu", memory=allowed_memory()):
            pass
        found = {}
        for device in ("cpu", *(["cuda"] if can else [])):
            index = open_files(Path(place), device)
            index.search(queries[:8], 4)
            seconds = statistics.median(
                waited(lambda index=index: index.search(queries, 4)) for _ in range(3)
            )
            alone = statistics.median(
                waited(lambda index=index: index.search(queries[:1], 4)) for _ in range(9)
            )
            found[device] = index.search(queries, 4).ids
            batch = 1000 * seconds / len(queries)
            yield {"device": device, "chunks": count, "ms_in_batches": batch, "ms_alone": 1000 * alone}
    same = float((found["cuda"] == found["cpu"]).mean()) if can else None
    yield {"agree": same, "why": words}


PARTS: dict[str, Callable[[argparse.Namespace, Report], Figures]] = {
    "resume": resume_part,
    "decoding": decoding_part,
    "reader": reader_part,
    "faiss": faiss_part,
    "steps": steps_part,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--minutes", type=float, default=8.0, help="no part begins after nine tenths of it")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--smoke", action="store_true", help="tiny, on the CPU")
    parser.add_argument("--json", metavar="FILE", help="where the figures go (default: build/benchmarks)")
    options = parser.parse_args()
    if not options.smoke and not torch.cuda.is_available():
        raise SystemExit("There is no GPU here. Try it on the CPU with --smoke.")
    options.device = "cpu" if options.smoke else "cuda"
    options.rounds = 1 if options.smoke else options.rounds
    report, figures = Report("gpu"), {}
    for name in options.parts:
        if time.perf_counter() - report.begun > 54 * options.minutes:
            print(json.dumps({"part": name, "left_out": "no time"}), flush=True)
            continue
        try:
            for figure in PARTS[name](options, report):
                figures.setdefault(name, []).append(figure)
                print(json.dumps({"part": name, **figure}), flush=True)
        except Exception as error:  # noqa: BLE001 - what the other parts measure is not lost
            print(json.dumps({"part": name, "failed": f"{type(error).__name__}: {error}"[:300]}), flush=True)
            figures.setdefault(name, []).append({"failed": str(error)[:300]})
    report.figures["parts"] = figures
    report.publish(options.json)


if __name__ == "__main__":
    main()
