"""What usually comes after a command that is done, as a command that can be pasted."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from retro_demo.cli.listing import shortened
from retro_demo.evaluation.baselines import baseline_settings
from retro_demo.kinds import KINDS
from retro_demo.paths import SAMPLE, data_home, run_folder
from retro_demo.runs.checkpoint import read_any_config
from retro_demo.runs.commands import flags, name_for_command
from retro_demo.settings import TrainConfig

MOST_TEXT = 200  # letters of a text in a command


def next_step(options: argparse.Namespace, result: Mapping[str, Any]) -> str:
    """The words of the command after this one, without the program's name; "" where there is none to name.

    result: what the `finished` of the command holds.
    """
    after = AFTER.get(options.command)
    return shlex.join(shortened(after(options, result))) if after else ""


def _after_building(options: argparse.Namespace, result: Mapping[str, Any]) -> list[str]:
    if "documents" not in result:  # one of several shards
        return []
    return _study_of(str(Path(options.out or options.corpus)))  # a shell may have put a slash behind it


def _study_of(corpus: str) -> list[str]:
    out = corpus.removeprefix(SAMPLE) if corpus.startswith(SAMPLE) else _beside(corpus)
    return ["study", "--corpus", corpus, "--out", f"{out}-study"]


def _after_training(options: argparse.Namespace, _result: Mapping[str, Any]) -> list[str]:
    out, config = options.out, read_any_config(options.out)
    if config.kind.claims:
        return ["evaluate", str(out)]
    if config.base:  # it goes on from another one, as a matched baseline does
        return _text_by(str(out))
    return ["train", "retrofit", "--corpus", config.corpus, "--base", str(out), "--out", f"{out}-retrofit"]


def _text_by(run: str) -> list[str]:
    return ["generate", run, "--prompt", "Once upon a time"]


def _after_study(options: argparse.Namespace, result: Mapping[str, Any]) -> list[str]:
    """A text by the run that was judged."""
    return _text_by(str(options.out / result["seeds"][0]["run"]))


def _after_writing(options: argparse.Namespace, result: Mapping[str, Any]) -> list[str]:
    """What retrieval did to the text; not of a run that reads nothing, nor of a MARGE."""
    config = read_any_config(options.run)
    if not config.retrieves or config.kind.chosen_evidence:
        return []
    if "\n" in options.prompt:  # its first line is its title, and no command of one line says so
        return []
    letters = (one if one.isprintable() else " " for one in str(result["text"]))
    text = " ".join("".join(letters).split())[:MOST_TEXT]
    return ["explain", named_run(options.run), *_same_corpus(options), f"--text={text}"]


def _after_explaining(options: argparse.Namespace, _result: Mapping[str, Any]) -> list[str]:
    """Which of it stands in the corpus word for word."""
    given = [f"--text={options.text}"] if options.text else ["--tokens", ",".join(map(str, options.tokens))]
    return ["trace", named_run(options.run), *_same_corpus(options), *given]


def _same_corpus(options: argparse.Namespace) -> list[str]:
    return ["--corpus", options.corpus] if options.corpus else []


def named_run(folder: Path) -> str:
    """A run as a command names it: what ships by its name, a folder as it was given."""
    name = name_for_command(folder)
    return name if name.startswith(SAMPLE) else str(folder)


def _after_weighing(options: argparse.Namespace, _result: Mapping[str, Any]) -> list[str]:
    """The corpus without the documents, under another name."""
    corpus = options.corpus or read_any_config(options.run).corpus
    name = Path(corpus.removeprefix(SAMPLE)).name
    return ["forget", corpus, *options.documents, "--out", f"{name}-without"]


def _after_import(_options: argparse.Namespace, result: Mapping[str, Any]) -> list[str]:
    return _text_by(str(result["run"])) if "run" in result else _study_of(str(result["corpus"]))


def _after_export(_options: argparse.Namespace, result: Mapping[str, Any]) -> list[str]:
    return ["import", str(result["out"]), "--as", f"{result['name']}-again"]


def _after_measuring(options: argparse.Namespace, result: Mapping[str, Any]) -> list[str]:
    """The matched baseline, where one is needed and none was named; else others may want the run."""
    if not options.run:
        return []
    return _baseline_of(options.run, result) or [
        "export",
        options.run,
        "--out",
        f"{_beside(options.run)}.zip",
    ]


def _beside(run: str) -> str:
    """A place for what is made of a run or corpus: beside it, or in the folder one is in.

    The latter of what ships, and of what lies in the data folder, which the page keeps in order.
    """
    folder = Path(run_folder(run))
    kept = folder != Path(run) or folder.resolve().is_relative_to(data_home()[0])
    return str(folder.name if kept else folder)


def _baseline_of(run: str, result: Mapping[str, Any]) -> list[str]:
    config = read_any_config(run_folder(run))
    if "baseline" in result["arms"] or not config.kind.baseline:
        return []
    folder, kind = Path(run_folder(run)), KINDS[config.kind.baseline]
    out = f"{_beside(run)}-baseline"
    words = ["train", kind.name, "--corpus", config.corpus, "--out", out, "--preset", config.preset]
    words += ["--base", config.base] if config.base else []
    usual = kind.preset_settings(config.preset, begun=bool(config.base))
    types = kind.settings()
    wanted = baseline_settings(folder)
    if config.base and not kind.trains_pretrained:  # which has the shape of the decoder
        wanted = {name: value for name, value in wanted.items() if types.get(name) is TrainConfig}
    other = [
        (name, value)
        for name, value in wanted.items()
        if name in types and value != usual.get(name, getattr(types[name], name, None))
    ]
    return [*words, *flags(other)]


AFTER: dict[str, Callable[[argparse.Namespace, Mapping[str, Any]], list[str]]] = {
    "prepare": lambda _options, _result: ["serve"],
    "build-corpus": _after_building,
    "add-documents": _after_building,
    "forget": _after_building,
    "train": _after_training,
    "study": _after_study,
    "evaluate": _after_measuring,
    "generate": _after_writing,
    "explain": _after_explaining,
    "weigh": _after_weighing,
    "import": _after_import,
    "export": _after_export,
}
"""What comes after each verb; of the others nothing does."""
