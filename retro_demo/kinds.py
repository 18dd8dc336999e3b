"""The kinds of run: named sets of settings (presets), and a row for each kind with all in which it differs.

Code that works for any kind asks the row, or the run's config, and never compares names. A new kind is a row
here and files of its own. Code in higher packages is named by its import path, as "package.module:name",
because this table lies below the packages that it names; `resolve` imports it on use, as entry points are.

Presets: tiny takes about two minutes on two CPU cores, small about an hour, base wants a GPU; random is tiny
with random neighbors, a control; lookup is for the lookup world, where it shows within minutes that facts
are looked up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from typing import Any

from retro_demo.errors import UserError
from retro_demo.settings import TrainConfig, settings_of

PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {},
    "small": {
        "dim": 192,
        "depth": 6,
        "num_heads": 6,
        "cca_layers": (3, 6),
        "enc_dim": 192,
        "steps": 4500,
        "lr": 1.5e-3,
        "warmup": 200,
        "eval_every": 500,
        "save_every": 200,
    },
    "base": {
        "dim": 512,
        "depth": 12,
        "num_heads": 8,
        "cca_layers": (6, 9, 12),
        "enc_dim": 512,
        "enc_depth": 2,
        "batch_size": 32,
        "seq_len": 512,
        "steps": 20_000,
        "lr": 6e-4,
        "warmup": 500,
        "eval_every": 500,
        "eval_tokens": 100_000,
        "save_every": 500,
    },
    # the second control: the work and the network of tiny, but nothing to read
    "random": {"neighbor_source": "random"},
    "lookup": {"steps": 400, "eval_every": 200},
}

MARGE: dict[str, Any] = {
    "dim": 96,
    "beta_start": 5.0,
    "copying_start": True,
    "shifted_keys": True,
    "abstain": True,
    "relevance_words": 0.3,
    "relevance_ngrams": 0.6,  # the rest is the table
    "relevance_table": 256,
    "center": True,
    "relevance_lr": 0.1,
    "hub_neighbors": 8,
    "subgraphs": 2,
    "shared_dropout": 0.5,
    "passage_len": 160,
    "batch_tokens": 1024,
    "evidence_languages": "other",  # where there are several
    "shard_size": 10_000_000,  # one shard, so that no group's label makes the batches
    "lr": 3e-3,
    "warmup": 50,
    "reading": 0.2,
    "lessons_kept": 0.1,
}

MARGE_PRESETS: dict[str, dict[str, Any]] = {
    "tiny": MARGE | {"steps": 600, "refresh_every": 200, "eval_every": 300},
    "small": MARGE | {"steps": 2000, "refresh_every": 500, "eval_every": 1000, "save_every": 100},
}
"""The same for MARGE: about two minutes, and about five, on one core; docs/science.md has the trials."""

BEGUN: dict[str, dict[str, Any]] = {
    "tiny": {"steps": 300, "warmup": 30, "lr": 1.3e-3},
    "random": {"steps": 300, "warmup": 30, "lr": 1.3e-3},
    "small": {"steps": 1000, "warmup": 50, "lr": 5e-4},
    "base": {"steps": 6000, "warmup": 200, "lr": 2e-4},
    "lookup": {"steps": 400, "warmup": 30, "lr": 1.3e-3},
}
"""What changes where a run begins with the weights of another: fewer steps, and smaller ones."""

READER: dict[str, Any] = {
    "seq_len": 96,
    "batch_size": 6,
    "num_neighbors": 2,
    "retriever": "bm25-titles",
    "query_tokens": 16,
    "weight_decay": 0.0,
    "eval_tokens": 2_000,
}

READER_PRESETS: dict[str, dict[str, Any]] = {
    "tiny": READER
    | {"lessons": 300, "steps": 100, "warmup": 10, "lr": 1e-3, "eval_every": 100, "save_every": 50},
    "small": READER
    | {"lessons": 4320, "steps": 720, "warmup": 20, "lr": 1e-3, "eval_every": 240, "save_every": 120},
}
"""The same for a pretrained base: docs/science.md has the trials."""

TUNED: dict[str, Any] = {
    name: READER[name] for name in ("seq_len", "batch_size", "weight_decay", "eval_tokens")
} | {"lr": 4e-3}

TUNED_PRESETS: dict[str, dict[str, Any]] = {
    preset: TUNED | {name: reader[name] for name in ("steps", "warmup", "eval_every", "save_every")}
    for preset, reader in READER_PRESETS.items()
}
"""Of its fine-tuning: as many steps as a reader has, at a learning rate that was tried on a large and a small
corpus (docs/pretrained.md)."""

RETROFIT_LR = {"tiny": 6e-3, "random": 6e-3, "small": 4e-3, "base": 2e-3, "lookup": 6e-3}
"""Learning rates of a retrofit: what it trains is new, and the rest is frozen."""

READING: dict[str, Any] = {
    "shifted_keys": True,
    "copying_start": True,
    "abstain": True,
    "reading": 0.4,
    "lessons_kept": 0.1,
}
"""What makes a network read its neighbors within minutes, in every preset of a model that has some;
docs/science.md has the measurements, one by one."""


def resolve(path: str) -> Any:
    """What an import path such as "retro_demo.models.retro:RETRO" names."""
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)


@dataclass(frozen=True)
class Kind:
    """What one kind of run is made of. Of the names in quotes, those with a colon are import paths."""

    name: str  # as in `train NAME` and in config.json; the glossary explains it
    title: str  # what the model card calls it
    tag: str  # of the model card
    config: str  # dataclass of config.json, a `checkpoint.AnyRun`
    parts: Mapping[str, str]  # its fields that hold settings, and their dataclasses
    network: str  # nn.Module, made from the part "network"
    planner: str  # what settings mean to it: a `planning.Planner`
    work: str  # how it is trained: a `trainer.Work`
    writer: str  # how it writes text: see `sampling.Continuation`
    measurement: str  # what `evaluate` measures: a `runner.Measurement`
    arm_names: str  # name of an arm -> what people call it
    memory: str  # (shape of the network, tokens, neighbors of a chunk) -> megabytes that reading a text takes
    passes: str  # (corpus folder, settings) -> passes over the text that a training makes
    tabs: tuple[str, ...]  # of the page that can show it; the first one writes with it
    batch: tuple[str, ...]  # settings whose product is the tokens of a step
    even_batches: bool  # whether each step has so many tokens, or at most so many
    context: str  # the setting that says how many tokens it reads at a time
    claims: tuple[str, ...]  # arms without which nothing can be claimed about retrieval
    own_controls: bool  # whether these arms need no other run
    presets: Mapping[str, Mapping[str, Any]]
    place: int  # among the models that the page offers
    choice: str  # what the page calls it where one chooses
    about: str  # in the page's sentence on what one chooses from
    sizes: str  # what the page says of its presets
    retrieves: bool = True  # whether it reads anything that is retrieved
    recipe: Mapping[str, Any] = field(default_factory=dict)  # what each preset has unless it says otherwise
    begun: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # changes where it has a base
    always: Mapping[str, Any] = field(default_factory=dict)  # settings that make it what it is
    trained_by: tuple[str, ...] = ()  # settings of TrainConfig that it knows; none named: all
    base: str = "may"  # whether it "may", "must" or "cannot" begin with the weights of another run
    freezes_base: bool = False
    baseline: str = ""  # the kind of its matched baseline
    of_pretrained: str = ""  # the kind of run that it is where its base is a pretrained one
    trains_pretrained: bool = False
    width: tuple[str, ...] = ("dim",)  # settings of the network that cost memory in training
    smaller: str = "Choose a smaller --dim or fewer layers."  # what to do where its network is too large
    reading_grows_with: str = "a vocabulary of {vocab_size:,} and {num_heads} heads"  # in words, of its shape
    pipeline: str = ""  # of the model card
    chosen_evidence: bool = False  # whether a visitor may choose the documents that it writes from

    def part_types(self) -> dict[str, type]:
        """The fields of its config that hold settings, and their dataclasses."""
        return {name: resolve(path) for name, path in self.parts.items()}

    def settings(self) -> dict[str, type]:
        """Each setting that such a run has, with the dataclass that it belongs to."""
        return _settings(tuple(self.part_types().values()), self.trained_by)

    def settings_of_part(self, part: str, values: Mapping[str, Any]) -> dict[str, Any]:
        """Those of some settings that belong to one of its parts."""
        own, of_part = self.settings(), resolve(self.parts[part])
        return {name: value for name, value in values.items() if own.get(name) is of_part}

    def preset_settings(self, preset: str, *, begun: bool = False) -> dict[str, Any]:
        """The settings that a preset gives; what it leaves out keeps the default of its dataclass.

        `begun`: the run begins with the weights of another one.
        """
        changes = self.begun.get(preset, {}) if begun or self.base == "must" else {}
        return {**self.recipe, **self.presets[preset], **changes}


@cache
def _settings(parts: tuple[type, ...], trained_by: tuple[str, ...]) -> dict[str, type]:
    return {
        setting.name: part
        for part in parts
        for setting in settings_of(part)
        if part is not TrainConfig or not trained_by or setting.name in trained_by
    }


_SHARED: dict[str, Any] = {
    "tag": "retro",
    "config": "retro_demo.runs.checkpoint:RunConfig",
    "parts": {
        "network": "retro_demo.models.config:RetroConfig",
        "training": "retro_demo.settings:TrainConfig",
    },
    "network": "retro_demo.models.retro:RETRO",
    "planner": "retro_demo.runs.planning:RetroPlanner",
    "work": "retro_demo.training.trainer:RetroWork",
    "writer": "retro_demo.generation.retro:begin_writing",
    "measurement": "retro_demo.evaluation.retro_measurement:RetroMeasurement",
    "arm_names": "retro_demo.evaluation.arms:ARM_NAMES",
    "memory": "retro_demo.models.memory:retro_megabytes",
    "passes": "retro_demo.training.retro_batches:retro_passes",
    "tabs": ("generate", "evaluate"),
    "batch": ("batch_size", "seq_len"),
    "even_batches": True,
    "context": "seq_len",
    "claims": ("on", "off", "shuffled", "baseline", "control_random"),
    "own_controls": False,
    "baseline": "lm",
    "presets": PRESETS,
    "recipe": READING,
    "begun": BEGUN,
    "sizes": "Sets all settings: tiny for minutes, small for an hour, base for a GPU; random is tiny with "
    "random neighbors, a control; lookup is for the lookup world.",
    "pipeline": "text-generation",
}
"""What the kinds with the network of RETRO have in common."""

_LM = Kind(
    **_SHARED
    | {
        "name": "lm",
        "title": "plain language model (the matched baseline of a RETRO: the same decoder, which reads "
        "nothing)",
        "place": 1,
        "choice": "Plain lm",
        "about": "lm reads no neighbors",
        "retrieves": False,
        "tabs": ("generate",),
        "claims": (),
        "baseline": "",
        "of_pretrained": "tuned",
        "recipe": {},
        # the same decoder, without cross-attention and encoder
        "always": {"cca_layers": ()},
    }
)

_RETRO = Kind(
    **_SHARED,
    name="retro",
    title="RETRO (Borgeaud et al. 2022), trained with its neighbors from scratch",
    place=0,
    choice="One quick RETRO",
    about="retro learns to write and to read neighbors at once",
)

_RETROFIT = Kind(
    **_SHARED
    | {
        "name": "retrofit",
        "title": "RETRO (Borgeaud et al. 2022), a plain model that was taught to read neighbors",
        "begun": {preset: changes | {"lr": RETROFIT_LR[preset]} for preset, changes in BEGUN.items()},
        "place": 3,
        "choice": "Retrofit of an lm",
        "about": "retrofit teaches a finished lm to read neighbors and changes nothing else: with "
        "retrieval off it stays that lm",
        "base": "must",
        "freezes_base": True,
        "of_pretrained": "reader",
    }
)

_BESIDE_BASE: dict[str, Any] = {
    name: _SHARED[name]
    for name in (
        *("writer", "measurement", "arm_names", "batch", "even_batches", "context", "own_controls"),
        "pipeline",
    )
} | {
    "sizes": "Sets all settings: tiny for three minutes, small for a quarter of an hour.",
    "base": "must",
    "freezes_base": True,
    "trains_pretrained": True,
}
"""What the kinds that stand on a pretrained base have in common."""

_TUNED_BY = (
    "steps",
    "batch_size",
    "seq_len",
    "lr",
    "warmup",
    "weight_decay",
    "clip",
    "seed",
    "eval_every",
    "eval_tokens",
    "save_every",
    "keep",
)

_READER = Kind(
    **_BESIDE_BASE,
    name="reader",
    title="pretrained language model that was taught to read neighbors "
    "(RETRO's retrofit, Borgeaud et al. 2022)",
    tag="retro",
    config="retro_demo.runs.checkpoint:ReaderRun",
    parts={
        "network": "retro_demo.models.reader_config:ReaderConfig",
        "lessons": "retro_demo.models.reader_config:LessonConfig",
        "training": "retro_demo.settings:TrainConfig",
    },
    network="retro_demo.models.reader:Reader",
    planner="retro_demo.runs.planning:ReaderPlanner",
    work="retro_demo.training.reader_training:ReaderWork",
    memory="retro_demo.models.memory:reader_megabytes",
    passes="retro_demo.training.lessons:reader_passes",
    tabs=("generate", "evaluate"),
    claims=("on", "off", "shuffled", "baseline"),
    baseline="tuned",
    presets=READER_PRESETS,
    place=4,
    choice="Reader of a pretrained model",
    about="reader teaches a pretrained model to read neighbors and changes nothing else of it",
    of_pretrained="reader",
    width=("match_dim",),
    smaller="Choose a smaller --match-dim.",
    trained_by=(*_TUNED_BY, "num_neighbors", "retriever", "query_tokens"),
)

_TUNED = Kind(
    **_BESIDE_BASE,
    name="tuned",
    title="pretrained language model, fine-tuned (LoRA, Hu et al. 2021): the matched baseline of a reader",
    tag="lora",
    config="retro_demo.runs.checkpoint:TunedRun",
    parts={
        "network": "retro_demo.models.reader_config:TunedConfig",
        "training": "retro_demo.settings:TrainConfig",
    },
    network="retro_demo.models.tuned:Tuned",
    planner="retro_demo.runs.planning:TunedPlanner",
    work="retro_demo.training.tuning:TunedWork",
    memory="retro_demo.models.memory:tuned_megabytes",
    passes="retro_demo.training.tuning:tuned_passes",
    tabs=("generate",),
    claims=(),
    presets=TUNED_PRESETS,
    place=5,
    choice="Fine-tuned pretrained model",
    about="tuned trains a pretrained model on the texts themselves, without neighbors",
    retrieves=False,
    of_pretrained="tuned",
    width=("rank",),
    smaller="Choose a smaller --rank.",
    trained_by=_TUNED_BY,
)

_MARGE = Kind(
    name="marge",
    title="MARGE (Lewis et al. 2020), which writes a document anew from others that it finds",
    tag="marge",
    config="retro_demo.runs.checkpoint:MargeRun",
    parts={
        "network": "retro_demo.models.config:MargeConfig",
        "evidence": "retro_demo.models.config:EvidenceConfig",
        "training": "retro_demo.settings:TrainConfig",
    },
    network="retro_demo.models.marge:MARGE",
    planner="retro_demo.runs.planning:MargePlanner",
    work="retro_demo.training.trainer:MargeWork",
    writer="retro_demo.generation.marge:begin_writing",
    measurement="retro_demo.evaluation.marge_measurement:MargeMeasurement",
    arm_names="retro_demo.evaluation.marge_measurement:NAMES",
    memory="retro_demo.models.memory:marge_megabytes",
    passes="retro_demo.training.marge_batches:marge_passes",
    tabs=("from-evidence", "evaluate", "evidence"),
    batch=("batch_tokens",),
    even_batches=False,
    context="passage_len",
    claims=("on", "off", "random", "shuffled"),
    own_controls=True,
    presets=MARGE_PRESETS,
    place=2,
    choice="MARGE",
    about="marge needs documents that say the same: it finds them, and writes one from the others",
    sizes="Sets all settings: tiny for about two minutes, small for about five.",
    base="cannot",
    chosen_evidence=True,
    # its batches follow from EvidenceConfig
    trained_by=(
        "steps",
        "reading",
        "lessons_kept",
        "lr",
        "warmup",
        "weight_decay",
        "clip",
        "seed",
        "eval_every",
        "eval_tokens",
        "save_every",
        "precision",
        "sharded",
        "keep",
    ),
)

KINDS: dict[str, Kind] = {kind.name: kind for kind in (_LM, _RETRO, _RETROFIT, _READER, _TUNED, _MARGE)}


def kind_named(name: Any) -> Kind:
    """The kind of run of this name; raises UserError where there is none."""
    if not isinstance(name, str) or name not in KINDS:
        raise UserError(f"There is no model {str(name)[:80]!r}; choose one of {', '.join(KINDS)}.")
    return KINDS[name]


def kind_of_shape(shape: object) -> Kind:
    """A kind whose networks have shapes of this class, such as RetroConfig."""
    return next(kind for kind in KINDS.values() if resolve(kind.parts["network"]) is type(shape))


def setting_types() -> list[type]:
    """The dataclasses of the settings of all kinds, those of training first."""
    parts = (part for kind in KINDS.values() for part in reversed(kind.part_types().values()))
    return list(dict.fromkeys(parts))
