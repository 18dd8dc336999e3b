"""Writing, one token after the other: ours against the references' shipped `generate`, and against length.

    .venv/bin/python -m benchmarks.generation [--threads 2 1] [--models retro marge] [--parts short long]

With two threads ours uses one of them, as the app does: waking the second for each small product of a token
costs more than it brings. Batch 1, random weights, a table for a retriever; MARGE gets its evidence and
relevance given. Each side samples as it does by default, and all take turns in one process. "same arithmetic"
is our network with the reference's weights and sampling: its text is compared with the reference's, token for
token; "as configured" is ours with its defaults; "recomputed" is that without any memory of earlier tokens.

short: 192 tokens after 64. long: up to 1024 after 64 with a context of 2048. There the reference would take
minutes, so it writes 2 tokens at each of several lengths, by its own `generate`, and what N tokens cost is
added up from these, with straight lines between.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from benchmarks.measuring import CLOCKS, Report, at_threads, options, ratio, span, take_turns, torch
from benchmarks.peers import (
    EOS,
    QUICK_MARGE,
    QUICK_RETRO,
    MargeSizes,
    RetroSizes,
    load_references,
    reference_marge,
    reference_retro,
    same_marge,
    same_retro,
    silence,
)
from benchmarks.reference_marge_sampling import reference_generate
from benchmarks.reference_sampling import generate_as_reference
from retro_demo.generation.sampling import next_token
from retro_demo.models.layers import lay_out_for_writing
from retro_demo.models.marge import MARGE
from retro_demo.models.retro import RETRO, DecodeCache
from retro_demo.settings import GenerateConfig

from torch import Tensor, nn  # isort: skip

THEIRS, SAME, OURS, ANEW = "reference", "ours, same arithmetic", "ours, as configured", "ours, recomputed"
PROMPT, SHORT, CONTEXT = 64, 192, 2048
LENGTHS = (64, 128, 192, 256, 512, 1024)
PLACES = (80, 144, 208, 336, 464, 592, 720, 848, 976, 1072)
"""Lengths at which the reference writes: in the middle of a chunk, where it has as many as on average."""
AT_ONCE = 2  # tokens that it writes there
SEED = 99
AIMS = {"retro": 15.0, "marge": 12.0}
LONG_AIM, FLAT_AIM = 60.0, 0.9


Tick = Callable[[], object]  # called after each token


class Sides(NamedTuple):
    """How each side writes a text of a fixed length; ours of any length, ticking; theirs at a length."""

    ways: dict[str, Callable[[], list[int]]]
    timed: Callable[[int, Tick], object]
    at_length: Callable[[int], object]


class TableRetriever:
    """Stands for a search that costs nothing: chunks (..., C) -> neighbors (..., K, 2 C)."""

    def __init__(self, sizes: RetroSizes) -> None:
        self.table = random_text(sizes.vocab, 61, sizes.neighbors, 2 * sizes.chunk)

    def __call__(self, chunks: Tensor) -> Tensor:
        return self.table[chunks.sum(dim=-1) % len(self.table)]


def random_text(vocab: int, *shape: int) -> Tensor:
    """Random tokens, none of which ends a text."""
    return torch.randint(EOS + 1, vocab, shape)


def never_end(theirs: nn.Module, to_logits: nn.Linear) -> None:
    """Let the token that ends a text have no chance."""
    with torch.no_grad():
        to_logits.bias[EOS] = -1e9
    theirs.eval()


def reference_writer(theirs: Any, sizes: RetroSizes, retrieve: TableRetriever) -> Any:
    """RETRO-pytorch's TrainingWrapper around a network, without the corpus that its constructor reads."""
    package, _ = load_references()
    wrapper = package.TrainingWrapper.__new__(package.TrainingWrapper)
    nn.Module.__init__(wrapper)
    wrapper.retro, wrapper.chunk_size, wrapper.fetch_knn_chunks_fn = theirs, sizes.chunk, retrieve
    return wrapper


def reference_text(writer: Any, prompt: Tensor, count: int) -> list[int]:
    """The `count` tokens that RETRO-pytorch writes after `prompt` (1, T)."""
    torch.manual_seed(SEED)
    writer.max_seq_len = prompt.shape[1] + count - 1
    with silence():
        return writer.generate(prompt)[0, prompt.shape[1] :].tolist()


@torch.inference_mode()
def our_text(
    model: RETRO, prompt: Tensor, count: int, retrieve: TableRetriever, tick: Tick = lambda: None
) -> list[int]:
    """The same by ours, reading each token once; `tick` is called after each."""
    chunk_len, cache, tokens = model.config.chunk_len, DecodeCache(), prompt
    config, chance = GenerateConfig(), torch.Generator().manual_seed(SEED)
    while tokens.shape[1] < prompt.shape[1] + count:
        while (place := cache.length) < tokens.shape[1]:
            chunk, inside = divmod(place + 1, chunk_len)
            found = None if inside else retrieve(tokens[:, place + 1 - chunk_len : place + 1])
            logits = model.next_logits(tokens[:, place : (chunk + 1) * chunk_len - 1], cache, found)
        chosen, _ = next_token(logits[0], config, chance)
        tokens = torch.cat([tokens, torch.tensor([[chosen]])], dim=1)
        tick()
    return tokens[0, prompt.shape[1] :].tolist()


@torch.inference_mode()
def recomputed_text(model: RETRO, prompt: Tensor, count: int, retrieve: TableRetriever) -> list[int]:
    """The same by ours without any memory: the whole forward pass for each token."""
    chunk_len, tokens = model.config.chunk_len, prompt
    config, chance = GenerateConfig(), torch.Generator().manual_seed(SEED)
    for _ in range(count):
        chunks = tokens[:, : tokens.shape[1] // chunk_len * chunk_len].unflatten(1, (-1, chunk_len))
        chosen, _ = next_token(model(tokens, retrieve(chunks))[0, -1], config, chance)
        tokens = torch.cat([tokens, torch.tensor([[chosen]])], dim=1)
    return tokens[0, prompt.shape[1] :].tolist()


@torch.inference_mode()
def our_passage(
    model: MARGE, prompt: Tensor, count: int, evidence: Tensor, tick: Tick = lambda: None
) -> list[int]:
    """What MARGE writes after `prompt` (1, T) from evidence (1, M, S), all of it alike relevant."""
    room = prompt.shape[1] + count
    cache = model.begin(model.encode_evidence(evidence), torch.ones(evidence.shape[:2]), room=room)
    config, chance = GenerateConfig(), torch.Generator().manual_seed(SEED)
    part, written = prompt, []
    while len(written) < count:
        chosen, _ = next_token(model.next_logits(part, cache)[0], config, chance)
        written.append(chosen)
        part = torch.tensor([[chosen]])
        tick()
    return written


def as_loaded(*models: nn.Module) -> None:
    """Lay the weights out as those of a run that was read from its folder are."""
    for model in models:
        lay_out_for_writing(model)


def retro_sides(sizes: RetroSizes, prompt: int, count: int) -> Sides:
    """RETRO: texts of `count` tokens after `prompt` random ones."""
    torch.manual_seed(0)
    theirs = reference_retro(sizes)
    never_end(theirs, theirs.to_logits)
    same, ours, retrieve = same_retro(theirs, sizes), RETRO(sizes.config()).eval(), TableRetriever(sizes)
    as_loaded(same, ours)
    start, writer = random_text(sizes.vocab, 1, prompt), reference_writer(theirs, sizes, retrieve)

    def same_text() -> list[int]:
        chance = torch.Generator().manual_seed(SEED)
        return generate_as_reference(same, start, retrieve, generator=chance)[0, prompt:].tolist()

    return Sides(
        {
            THEIRS: lambda: reference_text(writer, start, count),
            SAME: same_text,
            OURS: lambda: our_text(ours, start, count, retrieve),
            ANEW: lambda: recomputed_text(ours, start, count, retrieve),
        },
        lambda many, tick: our_text(ours, start, many, retrieve, tick),
        lambda length: reference_text(writer, random_text(sizes.vocab, 1, length), AT_ONCE),
    )


def marge_sides(sizes: MargeSizes, prompt: int, count: int) -> Sides:
    """MARGE: texts of `count` tokens after `prompt` random ones, from random evidence."""
    torch.manual_seed(0)
    theirs = reference_marge(sizes)
    never_end(theirs, theirs.decoder.net.to_logits)
    same, ours = same_marge(theirs, sizes), MARGE(sizes.config()).eval()
    as_loaded(same, ours)
    evidence, start = sizes.random_batch().evidence[:1], random_text(sizes.vocab, 1, prompt)
    relevance = torch.ones(evidence.shape[:2])
    with torch.no_grad():
        encoded = theirs.encoder(evidence[0])[0][None]

    def reference_passage() -> list[int]:
        torch.manual_seed(SEED)
        return theirs.generate(start, count, evidence, similarities=relevance)[0].tolist()

    def same_passage() -> list[int]:
        chance = torch.Generator().manual_seed(SEED)
        return reference_generate(same, start, count, evidence, relevance, generator=chance)[0].tolist()

    def at_length(length: int) -> object:  # past the evidence, which is encoded once
        text = random_text(sizes.vocab, 1, length)
        return theirs.decoder.generate(text, AT_ONCE, context=encoded, similarities=relevance)

    return Sides(
        {
            THEIRS: reference_passage,
            SAME: same_passage,
            OURS: lambda: our_passage(ours, start, count, evidence),
        },
        lambda many, tick: our_passage(ours, start, many, evidence, tick),
        at_length,
    )


def sides_of(name: str, *, quick: bool, context: int = 0) -> tuple[Sides, int, int]:
    """The sides of a model, the tokens of its prompt and the new ones of a short text."""
    prompt, count = (16, 24) if quick else (PROMPT, SHORT)
    if name == "retro":
        sizes = QUICK_RETRO if quick else RetroSizes()  # the reference writes until its context is full
        return (
            retro_sides(replace(sizes, context=context or prompt + count - 1), prompt, count),
            prompt,
            count,
        )
    sizes = QUICK_MARGE if quick else MargeSizes()
    return marge_sides(replace(sizes, context=context or sizes.context), prompt, count), prompt, count


def threads_of(side: str, threads: int) -> int:
    """How many of the threads a side uses: ours writes with half of them, as the app does."""
    return max(1, threads // 2) if side in (SAME, OURS) else threads


def with_threads(way: Callable[[], object], threads: int) -> Callable[[], object]:
    def run() -> object:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            return way()
        finally:
            torch.set_num_threads(before)

    return run


def agreement(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two texts have in common before they differ."""
    alike = [a == b for a, b in zip(one, other, strict=True)]
    return alike.index(False) if False in alike else len(alike)


def short(name: str, chosen: Any, report: Report) -> None:
    """The table of short texts."""
    sides, prompt, count = sides_of(name, quick=chosen.quick)
    common = agreement(sides.ways[THEIRS](), sides.ways[SAME]())
    for threads in chosen.threads:
        torch.set_num_threads(threads)
        ways = {side: with_threads(way, threads_of(side, threads)) for side, way in sides.ways.items()}
        seconds = take_turns(ways, chosen.rounds, warmup=0, clock=chosen.clock)
        rows = []
        for side, times in seconds.items():
            gain = "" if side == THEIRS else ratio(seconds[THEIRS], times)
            rows.append((side, f"{count / statistics.median(times):.1f}", span(times, 2), gain))
        at = at_threads(threads, chosen.clock)
        report.table(
            f"Writing {count} tokens after {prompt}, {name}, {at}, {chosen.rounds} rounds; with the same "
            f"arithmetic the text is the reference's for {common} of {count} tokens:",
            ("side", "tokens/s", "seconds (range)", "times the reference"),
            rows,
        )
        report.figures[f"{name} short {at}"] = {"seconds": seconds, "tokens": count, "in_common": common}
        if threads == 2 and not chosen.quick:
            gain = ratio(seconds[THEIRS], seconds[OURS])
            report.aim(f"{name}: {count} tokens after {prompt}, {at}", gain, least=AIMS[name])


def added_up(places: Sequence[int], costs: Sequence[float], prompt: int, count: int) -> float:
    """Seconds of `count` tokens after `prompt`, from the seconds of one token at some lengths."""
    return float(np.interp(np.arange(prompt, prompt + count), places, costs).sum())


def long(name: str, chosen: Any, report: Report) -> None:
    """The table of cost against length."""
    context = 96 if chosen.quick else CONTEXT
    lengths = (16, 32, 64) if chosen.quick else LENGTHS
    places = (24, 40, 72) if chosen.quick else PLACES
    sides, prompt, _ = sides_of(name, quick=chosen.quick, context=context)
    now = CLOCKS[chosen.clock]
    for threads in chosen.threads:
        torch.set_num_threads(threads)
        clocks: list[list[float]] = []
        costs: dict[int, list[float]] = {place: [] for place in places}
        for _ in range(chosen.rounds):
            begun, times = now(), []
            ours = partial(sides.timed, lengths[-1], lambda times=times: times.append(now()))
            with_threads(ours, threads_of(OURS, threads))()
            clocks.append([at - begun for at in times])
            for place in places:
                begun = now()
                sides.at_length(place)
                costs[place].append((now() - begun) / AT_ONCE)
        at = at_threads(threads, chosen.clock)
        rows, theirs, flat = [], [], []
        for last, count in zip((0, *lengths), lengths, strict=False):
            ours = [clock[count - 1] for clock in clocks]
            piece = [clock[count - 1] - (clock[last - 1] if last else 0.0) for clock in clocks]
            theirs = [
                added_up(places, [costs[place][turn] for place in places], prompt, count)
                for turn in range(chosen.rounds)
            ]
            flat.append((count - last) / statistics.median(piece))
            figures = (span(ours, 2), f"{flat[-1]:.1f}", span(theirs, 1), ratio(theirs, ours))
            rows.append((f"{last + 1} to {count}", *figures))
        report.table(
            f"Cost against length, {name}, {at}, prompt {prompt}, context {context}, {chosen.rounds} rounds:",
            (
                "new tokens",
                "ours up to there, s",
                "tokens/s between",
                "reference up to there, s",
                "times the reference",
            ),
            rows,
        )
        report.figures[f"{name} long {at}"] = {
            "ours": [[clock[count - 1] for clock in clocks] for count in lengths],
            "reference_at": {place: costs[place] for place in places},
            "lengths": lengths,
        }
        if not chosen.quick:
            gain = ratio(theirs, [clock[-1] for clock in clocks])
            report.aim(f"{name}: {lengths[-1]} new tokens, {at}", gain, least=LONG_AIM)
            report.aim(
                f"{name}: tokens/s at the end over the start, {at}", flat[-1] / flat[0], least=FLAT_AIM
            )


def main() -> None:
    parser = options(__doc__, rounds=3, threads=(2, 1))
    parser.add_argument("--models", nargs="+", default=["retro", "marge"], choices=["retro", "marge"])
    parser.add_argument("--parts", nargs="+", default=["short", "long"], choices=["short", "long"])
    chosen = parser.parse_args()
    report = Report("generation")
    for part in chosen.parts:
        for name in chosen.models:
            {"short": short, "long": long}[part](name, chosen, report)
    report.publish(chosen.json)


if __name__ == "__main__":
    main()
