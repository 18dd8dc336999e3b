"""What the Train form plans, before anything is written: the kind of run, its size, its command.

A plan is a run of one model, or a study (STUDY), whose first run may be of several kinds by its base.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from retro_demo.corpus.store import MIN_DOCUMENTS
from retro_demo.kinds import KINDS, Kind, kind_named
from retro_demo.models.memory import count_parameters
from retro_demo.models.reader_config import ReaderConfig, TunedConfig
from retro_demo.paths import SAMPLE
from retro_demo.pretrained.bases import available_bases
from retro_demo.runs import commands
from retro_demo.runs.planning import check_lengths, shape_beside
from retro_demo.server import run_actions, service
from retro_demo.server.limits import check_settings, limits_of
from retro_demo.server.workspace import Workspace
from retro_demo.training.study import steps_behind

STUDY = "study"
"""The choice beside the kinds of run: does retrieval help here?"""


@dataclass(frozen=True)
class Plan:
    """What is chosen on the Train tab; `settings` are all values of its form."""

    corpus: str
    model: str  # a kind of run, or STUDY
    preset: str
    base: str
    settings: Mapping[str, Any]
    seeds: int = 1
    name: str = ""

    @property
    def kind(self) -> Kind:
        return first_kind(self.model, self.base)


@dataclass(frozen=True)
class Training:
    """One training of a plan: the kind of run, its parameters, its steps, the tokens of a step."""

    model: str
    parameters: int
    steps: int
    tokens: int


def first_kind(model: str, base: str | None) -> Kind:
    """The kind of run whose settings a plan has: that of its first training, but with all of a RETRO's."""
    if model != STUDY:
        return kind_named(model)
    if base and base in available_bases():
        return KINDS["reader"]
    return KINDS["retrofit" if base else "retro"]


def base_choices(workspace: Workspace, corpus: str | None, model: str) -> list[tuple[str, str]]:
    """What a plan may begin with, as (label, id); of a study a pretrained base first, where there is one."""
    if model != STUDY:
        return service.base_choices(workspace, corpus, model)
    own = service.base_choices(workspace, corpus, "retrofit")
    pretrained = [(f"{name} (pretrained)", name) for name in available_bases()]
    return [*pretrained, ("none: train an lm first", ""), *own]


def changed_settings(workspace: Workspace, plan: Plan) -> dict[str, Any]:
    """The settings of a plan that its preset does not have already."""
    usual, own = (
        run_actions.starting_settings(workspace, plan.kind.name, plan.preset, plan.base),
        plan.kind.settings(),
    )
    return {
        name: value
        for name, value in plan.settings.items()
        if name in own and value != usual.get(name, getattr(own[name], name))
    }


def trainings(workspace: Workspace, plan: Plan) -> list[Training]:
    """What a plan trains, for each seed; raises UserError where it cannot be trained here."""
    kind, settings = plan.kind, plan.settings
    base = service.named_base(workspace, kind, plan.base) if kind.trains_pretrained and plan.base else ""
    if base:  # what nobody changed follows from the base
        chosen = kind.settings_of_part("network", changed_settings(workspace, plan))
        shape = shape_beside(kind, chosen, base)
    else:
        shape = kind.settings_of_part("network", {**settings, **kind.always}) | _of_corpus(workspace, plan)
    network = kind.part_types()["network"](**shape)
    for name, part in kind.part_types().items():
        if name != "network":
            part(**kind.settings_of_part(name, settings))  # which checks the ranges
    check_settings(limits_of(workspace.home), network, settings)
    tokens = math.prod(settings[name] for name in kind.batch)
    one = Training(kind.name, count_parameters(network), settings["steps"], tokens)
    if plan.model != STUDY:
        return [one]
    if isinstance(network, ReaderConfig):
        first = {"first_tuned": network.first_written}
        baseline = TunedConfig(**(shape_beside(KINDS[kind.baseline], first, base) if base else first))
        tuned = count_parameters(baseline)
        return [one, replace(one, model=kind.baseline, parameters=tuned)]
    plain = count_parameters(replace(network, cca_layers=()))
    if plan.base:
        return [one, replace(one, model="lm", parameters=plain)]
    steps = steps_behind(plan.preset, settings["steps"])["steps"]
    retrofit = replace(one, model="retrofit", steps=steps)
    return [
        replace(one, model="lm", parameters=plain),
        retrofit,
        replace(retrofit, model="lm", parameters=plain),
    ]


def _of_corpus(workspace: Workspace, plan: Plan) -> dict[str, Any]:
    """What the network takes from the corpus, {} before one is chosen; UserError where they do not fit."""
    if plan.corpus not in run_actions.built_ones(workspace) or plan.kind.trains_pretrained:
        return {}
    known = service.statistics(workspace.corpus(plan.corpus)) or {}
    if "seq_len" in plan.settings:
        read = plan.settings["num_neighbors"] if plan.kind.retrieves else 0
        check_lengths(known["chunk_len"], known["stored_neighbors"], plan.settings["seq_len"], read)
    return {"vocab_size": known["vocabulary"]}


def doubts(workspace: Workspace, plan: Plan) -> str:
    """Why a study could come to no verdict, in a sentence; "" where it can come to one."""
    if plan.model != STUDY or plan.corpus not in run_actions.built_ones(workspace):
        return ""
    held = (service.statistics(workspace.corpus(plan.corpus)) or {}).get("held_out_documents", 0)
    if held >= MIN_DOCUMENTS:
        return ""
    return (
        f"Only {held} documents of this corpus are held out, and a verdict needs at least {MIN_DOCUMENTS}. "
        "Build it with more documents, or with a larger share held out."
    )


def command_of_plan(workspace: Workspace, plan: Plan) -> str:
    """The command line that trains what is planned; "" before a corpus is chosen."""
    if plan.corpus not in run_actions.built_ones(workspace):
        return ""
    place = commands.name_for_command(
        plan.corpus if plan.corpus.startswith(SAMPLE) else workspace.corpus(plan.corpus)
    )
    changed = changed_settings(workspace, plan)
    usual = f"{plan.corpus.removeprefix(SAMPLE)}-study"
    if plan.model != STUDY:
        usual = service.usual_name(plan.corpus, plan.model, plan.preset, plan.base)
    words = ["--corpus", place, "--out", plan.name.strip() or usual, "--preset", plan.preset]
    if plan.base and plan.kind.base != "cannot":
        base = plan.base
        words += [
            "--base",
            base if base in available_bases() else commands.name_for_command(_run(workspace, base)),
        ]
    if plan.model == STUDY:
        seeds = ["--seeds", str(plan.seeds)] if plan.seeds != 1 else []
        return commands.command("study", *words, *seeds, *commands.flags(changed.items()))
    return commands.command("train", plan.model, *words, *commands.flags(changed.items()))


def _run(workspace: Workspace, base: str) -> Path | str:
    return base if base.startswith(SAMPLE) else workspace.run(base)
