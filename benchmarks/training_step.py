"""Training steps of RETRO, MARGE and lm: ours, the references', and the floor of their products.

    .venv/bin/python -m benchmarks.training_step [--threads 1 2] [--models retro marge lm] [--rounds 5]

All sides take turns in one process on the same batch of random tokens: forward, backward and AdamW; ours by
the loop that trains every run, with its clipping. "same arithmetic" is our network with the reference's
weights (its first loss is checked to agree), "as configured" ours at these sizes with its defaults and as
many heads as were asked for, which the reference ignores. Beside each, its floor: the time of its
matrix products alone; and what that becomes when each other operation takes no longer than this machine
takes to copy the bytes it reads and writes.

On a GPU (`--device cuda`) the reference runs as shipped and ours in bf16, compiled; `--widths 1 10` makes
both wider. The GPU part has not been run: no GPU was at hand.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from benchmarks.measuring import Report, at_threads, options, ratio, span, take_turns, torch
from benchmarks.peers import (
    QUICK_MARGE,
    QUICK_RETRO,
    MargeSizes,
    RetroSizes,
    marge_step,
    our_step,
    reference_marge,
    reference_retro,
    retro_step,
    same_marge,
    same_retro,
)
from benchmarks.products import copying, record_products, replay
from retro_demo.models.marge import MARGE
from retro_demo.models.retro import RETRO

THEIRS, SAME, OURS = "reference", "ours, same arithmetic", "ours, as configured"
FLOOR = "products alone: "
AGREE, AGREE_HALF = 1e-4, 2e-2  # relative, of first losses with the same weights; ours in bf16
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12}
"""Dense bf16 multiplications and additions a second, by a part of the device's name (data sheets)."""

Steps = dict[str, Callable[[], float]]


def sides(name: str, *, quick: bool, wider: int = 1, device: str = "cpu") -> tuple[Steps, list[Any], int]:
    """A step of each side by its name, our two networks, and how many tokens of text a step learns from."""
    torch.manual_seed(0)
    where, half = torch.device(device), device != "cpu"
    if name == "marge":
        sizes = QUICK_MARGE if quick else MargeSizes()
        sizes = replace(sizes, width=sizes.width * wider)
        theirs = reference_marge(sizes).to(where)
        same, ours = same_marge(theirs, sizes).to(where), MARGE(sizes.config()).to(where)
        batch, tokens = sizes.random_batch().to(where), sizes.batch * sizes.target
        their_step = marge_step(theirs, batch)
    else:
        sizes = QUICK_RETRO if quick else RetroSizes()
        layers = sizes.cca_layers if name == "retro" else ()
        sizes = replace(sizes, width=sizes.width * wider, cca_layers=layers)
        as_wide = replace(sizes, head_width=sizes.head_width * wider)  # its number of heads is fixed
        theirs = reference_retro(as_wide).to(where)
        same, ours = same_retro(theirs, as_wide).to(where), RETRO(sizes.config()).to(where)
        batch, tokens = sizes.random_batch().to(where), sizes.batch * sizes.context
        their_step = retro_step(theirs, batch)
    steps = {
        THEIRS: their_step,
        SAME: our_step(same, batch, half=half),
        OURS: our_step(ours, batch, half=half),
    }
    return steps, [same, ours], tokens


def check_agreement(steps: Steps, name: str, within: float) -> float:
    """How far apart the first losses of reference and `SAME` are, relatively; too far ends the program."""
    theirs, same = steps[THEIRS](), steps[SAME]()
    apart = abs(theirs - same) / abs(theirs)
    if apart > within:
        raise SystemExit(
            f"{name}: the reference's first loss is {theirs}, ours {same}: not the same network."
        )
    return apart


def measure(name: str, chosen: Any, report: Report, wider: int) -> None:
    """Print the table of one model and note its figures and aims."""
    on_gpu = chosen.device != "cpu"
    steps, networks, tokens = sides(name, quick=chosen.quick, wider=wider, device=chosen.device)
    apart = check_agreement(steps, name, AGREE_HALF if on_gpu else AGREE)
    recorded = {side: record_products(step) for side, step in steps.items()}
    floors = {FLOOR + side: replay(products.products, chosen.device) for side, products in recorded.items()}
    if on_gpu:  # only now: what is compiled cannot be recorded
        for network in networks:
            network.compile()
    for threads in [1] if on_gpu else chosen.threads:
        torch.set_num_threads(threads)
        bytes_a_second = 0.0 if on_gpu else copying()
        seconds = take_turns(steps | floors, chosen.rounds, warmup=3 if on_gpu else 1, clock=chosen.clock)
        rows = []
        for side in steps:
            middle, flops = statistics.median(seconds[side]), recorded[side].flops
            gain = "" if side == THEIRS else ratio(seconds[THEIRS], seconds[side])
            over = ratio(seconds[side], seconds[FLOOR + side])
            work = f"{flops / 1e9:.0f}" + (f", {flops / middle / peak():.1%}" if on_gpu else "")
            row = [side, f"{tokens / middle:.0f}", span(seconds[side]), gain, work, over]
            if not on_gpu:
                products, moved = statistics.median(seconds[FLOOR + side]), recorded[side].moved
                row += [f"{moved / 1e9:.1f}", f"{1 + moved / bytes_a_second / products:.2f}"]
            rows.append(row)
        at = chosen.device if on_gpu else at_threads(threads, chosen.clock)
        at += f", width x{wider}" * (on_gpu or wider > 1)
        work = "GFLOP, of dense bf16 peak" if on_gpu else "GFLOP"
        memory = () if on_gpu else ("GB moved beside them", "products and copying over products")
        report.table(
            f"Training step, {name}, {at}, {tokens} tokens a step, {chosen.rounds} rounds:",
            ("side", "tokens/s", "seconds (range)", "times the reference", work, "over its floor", *memory),
            rows,
        )
        flops = {side: products.flops for side, products in recorded.items()}
        moved = {side: products.moved for side, products in recorded.items()}
        figures = {"seconds": seconds, "loss_apart": apart, "tokens": tokens, "flops": flops}
        figures |= {"moved": moved, "bytes_a_second": bytes_a_second}
        report.figures[f"{name} {at}"] = figures
        if not chosen.quick and name != "lm":
            note = note_gpu_aims if on_gpu else note_aims
            note(report, f"{name} step, {at}", seconds, flops)


def peak() -> float:
    """Dense bf16 multiplications and additions a second of this GPU; NaN where it is not in PEAKS."""
    name = torch.cuda.get_device_name()
    return next((value for part, value in PEAKS.items() if part in name), float("nan"))


def note_gpu_aims(report: Report, what: str, seconds: dict[str, list[float]], flops: dict[str, int]) -> None:
    """Compare with what is asked on a GPU: the gain at any width, a share of peak at large ones."""
    report.aim(f"{what}: as configured against the reference", ratio(seconds[THEIRS], seconds[OURS]), least=6)
    if not what.endswith("x1"):
        reached = flops[OURS] / statistics.median(seconds[OURS]) / peak()
        report.aim(f"{what}: share of dense bf16 peak", reached, least=0.5)


def note_aims(report: Report, what: str, seconds: dict[str, list[float]], flops: dict[str, int]) -> None:
    """Compare with what is asked of a step on a CPU."""
    if what.startswith("retro"):
        gain = ratio(seconds[THEIRS], seconds[OURS])
        report.aim(f"{what}: as configured against the reference", gain, least=1.5)
    gain = ratio(seconds[THEIRS], seconds[SAME])
    report.aim(f"{what}: same arithmetic against the reference", gain, least=1.1)
    for side in (SAME, OURS):
        report.aim(
            f"{what}: {side}, over its products", ratio(seconds[side], seconds[FLOOR + side]), most=1.15
        )


def main() -> None:
    parser = options(__doc__, rounds=5, threads=(2, 1))
    parser.add_argument(
        "--models", nargs="+", default=["retro", "marge", "lm"], choices=["retro", "marge", "lm"]
    )
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--widths", type=int, nargs="+", default=[1], help="times the usual width")
    chosen = parser.parse_args()
    report = Report("training_step")
    for wider in chosen.widths:
        for name in chosen.models:
            measure(name, chosen, report, wider)
    report.publish(chosen.json)


if __name__ == "__main__":
    main()
