"""How long each view of an explanation takes, on a held-out document of the sample.

    .venv/bin/python -m benchmarks.explanations [--tokens 256] [--threads 2] [--json]

The run is the shipped one with as many neighbors as in training; then with more of them. What is
measured is what the page waits for: the numbers of the view with its HTML, an edited neighbor, a
look at another head, the timeline.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from retro_demo.corpus.sharding import ensure_sample
from retro_demo.explain.edits import rewrite
from retro_demo.explain.text import explain_text, held_out_documents, trace_values
from retro_demo.paths import CHECKPOINTS
from retro_demo.render.trace_views import edit_html, heatmap, linked, timeline_html, token_table
from retro_demo.runs.loading import load_run
from retro_demo.settings import ExplainConfig

NEIGHBORS = (4, 6, 10)


def seconds(work: Callable[[], object], repeats: int) -> tuple[float, float]:
    """The median time of some repeats by the clock and on the processor, after one that is not counted.

    On one thread the two agree on a machine that does nothing else; beside other work the second
    says what a quiet one would take.
    """
    work()
    taken = []
    for _ in range(repeats):
        begun = time.perf_counter(), time.process_time()
        work()
        taken.append((time.perf_counter() - begun[0], time.process_time() - begun[1]))
    clock, processor = zip(*taken, strict=True)
    return round(statistics.median(clock), 3), round(statistics.median(processor), 3)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--run", type=Path, default=CHECKPOINTS / "factbook-retrofit")
    options.add_argument("--tokens", type=int, default=256)
    options.add_argument("--threads", type=int, default=0, help="0: as torch decides")
    options.add_argument("--repeats", type=int, default=5)
    options.add_argument("--json", action="store_true")
    chosen = options.parse_args()
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    for _ in ensure_sample("sample:factbook2015"):
        pass
    run = load_run(chosen.run, "cpu")
    assert run.database is not None
    corpus = run.database.corpus
    document = corpus.documents[held_out_documents(corpus.folder)[0][1]]
    text = run.tokenizer.decode(run.tokenizer.encode(document.text)[: chosen.tokens])
    trace = explain_text(run, chosen.run.name, text, ExplainConfig())
    made = rewrite(run, trace, 3, 0, "The capital is Mibo.", "")

    def explain(k: int) -> None:
        linked(explain_text(run, chosen.run.name, text, ExplainConfig(num_neighbors=k)))

    with tempfile.TemporaryDirectory() as folder:
        views: dict[str, Callable[[], object]] = {
            "explain a text, as in training": lambda: explain(0),
            "linked view from a kept trace": lambda: linked(trace),
            "edit a neighbor": lambda: edit_html(
                trace, rewrite(run, trace, 3, 0, "The capital is Mibo.", ""), 130
            ),
            "the edit as HTML": lambda: edit_html(trace, made, 130),
            "attention of one head": lambda: heatmap(trace, trace.layers[0], 0),
            "timeline": lambda: timeline_html(trace),
            "table of all numbers": lambda: token_table(trace),
            "JSON file": lambda: (Path(folder) / "trace.json").write_text(json.dumps(trace_values(trace))),
        }
        taken = {name: seconds(work, chosen.repeats) for name, work in views.items()}
    for k in NEIGHBORS:
        taken[f"explain a text, {k} neighbors"] = seconds(lambda k=k: explain(k), 1)
    about = {"tokens": len(trace.ids), "threads": torch.get_num_threads(), "run": chosen.run.name}
    if chosen.json:
        print(json.dumps(about | {"seconds": taken}))
        return
    print(about)
    for name, value in taken.items():
        print(f"{value[0]:8.3f} s by the clock, {value[1]:8.3f} s on the processor  {name}")


if __name__ == "__main__":
    main()
