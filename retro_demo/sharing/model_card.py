"""The model card of an export: README.md with YAML front matter, honest figures and how to repeat them.

It says what was measured with its intervals, and just as plainly what was not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from retro_demo.evaluation.arms import ARM_NAMES, arm_name, arms_in_order
from retro_demo.evaluation.marge_evaluate_report import NAMES
from retro_demo.paths import ASSETS
from retro_demo.runs.checkpoint import AnyRun, MargeRun, RunConfig
from retro_demo.runs.provenance import NOT_COMPARABLE, place_name, weights_of
from retro_demo.sharing.sharing import CorpusNote

LANGUAGE = re.compile(r"[a-z]{2,3}")
LICENSE = re.compile(r"[a-z0-9][a-z0-9.-]{0,40}")
KIND = {
    "lm": "plain language model (the matched baseline of a RETRO: the same decoder, which reads nothing)",
    "retro": "RETRO (Borgeaud et al. 2022), trained with its neighbors from scratch",
    "retrofit": "RETRO (Borgeaud et al. 2022), a plain model that was taught to read neighbors",
    "marge": "MARGE (Lewis et al. 2020), which writes a document anew from others that it finds",
}
WANTED = {"lm": (), "marge": ("on", "off", "random", "shuffled")}
"""The arms without which a claim about retrieval stands on nothing, where they are not `WANTED_OF_RETRO`."""

WANTED_OF_RETRO = ("on", "off", "shuffled", "baseline", "control_random")


def model_card(
    name: str,
    run: Path,
    config: AnyRun,
    corpus: CorpusNote,
    *,
    result: Mapping[str, Any] | None,
    events: list[dict[str, Any]],
    license: str,
    has: frozenset[str],
    imported: bool,
) -> str:
    """README.md of an export; `result` are the figures of an evaluation of these weights, None = none.

    `has`: "corpus" and "state" where they are along.
    """
    parts = [
        _front(config, license),
        f"# {plain(name)}\n\nA small {KIND[config.model]}, made with retro_demo.",
        _origin(run, config, corpus, imported),
        _figures(config, result, events, weights_of(run)[0]),
        _not_measured(config, result),
        _data(corpus, "corpus" in has),
        _use(name, config, has),
    ]
    return "\n\n".join(parts) + "\n"


def plain(text: str) -> str:
    """A text of a user as Markdown that shows it and does nothing."""
    one_line = " ".join(text.split())[:200]
    return re.sub(r"([\\`*_{}\[\]()<>#|!~$&])", r"\\\1", one_line)


def _front(config: AnyRun, license: str) -> str:
    languages = config.network.languages if isinstance(config, MargeRun) else ()
    known = [one for one in languages if LANGUAGE.fullmatch(one)]
    kind = "marge" if isinstance(config, MargeRun) else "retro"
    lines = ["---", f"license: {license}", "library_name: retro_demo"]
    lines += ["language:", *(f'- "{one}"' for one in known)] if known else []  # "no" would be a truth value
    lines += [] if isinstance(config, MargeRun) else ["pipeline_tag: text-generation"]
    lines += ["tags:", f"- {kind}", "- retrieval-augmented", "- small-model", "---"]
    return "\n".join(lines)


def _origin(run: Path, config: AnyRun, corpus: CorpusNote, imported: bool) -> str:
    step, parameters = weights_of(run)
    training = config.training
    rows = {
        "Parameters": f"{parameters:,}",
        "Steps": f"{step:,} of {training.steps:,}" + (", the best save" if training.keep == "best" else ""),
        "Seed": str(training.seed),
        "Preset": plain(config.preset),
        "Trained on": f"{plain(corpus.title)} (fingerprint {plain(corpus.fingerprint)})",
        "Machine": f"{plain(config.device)}, {config.threads} threads, "
        + ", ".join(f"{plain(k)} {plain(v)}" for k, v in config.versions.items()),
    }
    if isinstance(config, RunConfig):
        tokens = step * training.batch_size * training.seq_len
        rows["Tokens read in training"] = f"{tokens:,} (batch {training.batch_size}, {training.seq_len} each)"
        if config.retrieves:
            rows["Neighbors"] = f"{training.num_neighbors} of each chunk, by {training.retriever}"
        if config.base:
            rows["Begun with"] = f"{plain(place_name(config.base))} (weights {config.base_weights[:16]})"
    table = "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])
    note = (
        "\n\nThis run was imported before it was exported here: its record is as its maker gave it, and "
        "nobody here saw the training."
        if imported
        else ""
    )
    return f"## What it is\n\n{table}\n\n{NOT_COMPARABLE}{note}"


def _figures(
    config: AnyRun, result: Mapping[str, Any] | None, events: list[dict[str, Any]], step: int
) -> str:
    names = NAMES if isinstance(config, MargeRun) else ARM_NAMES
    if result is not None:
        arms = {name: result["arms"][name] for name in arms_in_order(result)}
        rows = [
            f"| {arm_name(name, names)} | {arm['bpb']:.4f} | {_interval(arm)} | {arm['nats']:.4f} |"
            for name, arm in arms.items()
            if arm.get("bpb") is not None and arm.get("nats") is not None
        ]
        counts = result["counts"]
        head = (
            f"Measured on {counts['tokens']:,} held-out tokens of {counts['documents']:,} documents; the "
            "intervals are drawn anew from the documents (bootstrap).\n\n"
            "| Arm | Bits a byte | 95% interval | Nats a token |\n|---|---|---|---|\n"
        )
        said = plain_sentence(result["verdict"])
        command = " ".join(result.get("provenance", {}).get("command", "").split())
        made = f"\n\nMeasured with:\n\n{code_block(command)}" if command else ""
        return f"## Held-out loss\n\n{head}" + "\n".join(rows) + f"\n\n{said}{made}"
    told = [event for event in events if event["event"] == "evaluated" and event["step"] <= step]
    measured = [event for event in told if event["arms"]]
    if not measured:
        return "## Held-out loss\n\nNothing was measured."
    rows = [
        f"| {names.get(name, plain(name))} | {arm['bpb']:.4f} | {arm['nats']:.4f} |"
        for name, arm in measured[-1]["arms"].items()
    ]
    return (
        f"## Held-out loss\n\nMeasured while training, at step {measured[-1]['step']:,}, on a part of the "
        "held-out text: without intervals and without a matched baseline, so it does not say whether "
        "retrieval is worth its cost.\n\n| Arm | Bits a byte | Nats a token |\n|---|---|---|\n"
    ) + "\n".join(rows)


def plain_sentence(text: str) -> str:
    """A verdict as Markdown: as long as it is, on one line."""
    return re.sub(r"([\\`*_{}\[\]<>#|~$&])", r"\\\1", " ".join(text.split()))


def code_block(text: str) -> str:
    """A line as Markdown that shows it as it is: a fence that nothing in it closes."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text}\n{fence}"


def _interval(arm: Mapping[str, Any]) -> str:
    found = arm.get("ci")
    whole = isinstance(found, (list, tuple)) and all(isinstance(end, (int, float)) for end in found)
    return f"{found[0]:.4f} to {found[1]:.4f}" if whole and found else "too few documents"


def _not_measured(config: AnyRun, result: Mapping[str, Any] | None) -> str:
    names = NAMES if isinstance(config, MargeRun) else ARM_NAMES
    arms = result["arms"] if result is not None else {}
    missing = [names[arm] for arm in WANTED.get(config.model, WANTED_OF_RETRO) if arm not in arms]
    lines = [f"- With intervals: {', '.join(missing)}."] if missing else []
    lines += [
        "- Other seeds: this is one training.",
        "- Whether what it writes is true, fair or safe. Expect made-up facts, and passages of its corpus "
        "word for word.",
        "- Any other corpus, language or task than the held-out part of its own corpus.",
    ]
    return "## What was not measured\n\n" + "\n".join(lines)


def _data(corpus: CorpusNote, along: bool) -> str:
    notice = ASSETS / corpus.shipped / "NOTICE"
    if corpus.shipped == "lookup":
        terms = "Made-up facts that retro_demo writes itself; there is nothing to license."
    elif corpus.shipped and notice.exists():
        terms = notice.read_text("utf-8").strip()
        terms = "\n".join(f"> {line}".rstrip() for line in terms.splitlines())
    else:
        terms = (
            "The texts are its maker's. Their license is not known to the program that wrote this card; "
            "whoever shares it must say so here, and must be allowed to share them."
        )
    where = "It is in the folder `corpus`." if along else "It is not in this export."
    said = f"{plain(corpus.title)}, fingerprint `{plain(corpus.fingerprint)}`. {where}"
    return f"## The corpus\n\n{said}\n\n{terms}"


def _use(name: str, config: AnyRun, has: frozenset[str]) -> str:
    run = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "run"
    lines = [
        f"python -m retro_demo import EXPORT --as {run}     # EXPORT: this folder, a clone or .zip of it",
        f'python -m retro_demo generate {run} --prompt "Some words"',
    ]
    if config.retrieves:
        lines.append(f"python -m retro_demo evaluate {run}     # measure it yourself")
    more = "A larger number of `--steps` trains it on: `train --out RUN --steps N`." if "state" in has else ""
    more = more or "It has no optimizer state, so it cannot be trained on as it was."
    if "corpus" not in has and config.retrieves:
        more += " Where its corpus is missing, name another one with `--corpus`."
    config_note = "`config.json` holds every setting and the seed; with the corpus they repeat the training."
    return "## Use\n\n```\n" + "\n".join(lines) + f"\n```\n\n{more} {config_note}"
