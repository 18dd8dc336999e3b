"""Write docs/settings.md, the reference table of all settings, from their declarations.

.venv/bin/python -m benchmarks.settings_table
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from retro_demo.kinds import KINDS, MARGE_PRESETS, READER_PRESETS, TUNED_PRESETS
from retro_demo.models.config import EvidenceConfig, MargeConfig, RetroConfig
from retro_demo.models.reader_config import LessonConfig, ReaderConfig, TunedConfig
from retro_demo.server.limits import PUBLIC, Limits
from retro_demo.settings import (
    AddConfig,
    CorpusConfig,
    EvaluateConfig,
    ExplainConfig,
    GenerateConfig,
    OriginsConfig,
    TrainConfig,
    WeighConfig,
    settings_of,
)

DOCS = Path(__file__).resolve().parent.parent / "docs"
VERBS = [
    (CorpusConfig, "build-corpus", "How a corpus is built"),
    (AddConfig, "add-documents", "How documents join a built corpus"),
    (WeighConfig, "weigh", "How it is measured what documents are worth to a run"),
    (RetroConfig, "train", "The shape of the network"),
    (TrainConfig, "train", "How a run is trained"),
    (MargeConfig, "train marge", "The shape of a MARGE"),
    (EvidenceConfig, "train marge", "The evidence of a MARGE"),
    (ReaderConfig, "train retrofit --base smollm2", "The shape of a reader"),
    (LessonConfig, "train retrofit --base smollm2", "The lessons of a reader"),
    (TunedConfig, "train lm --base smollm2", "The shape of a fine-tuned base"),
    (GenerateConfig, "generate", "How text is written"),
    (EvaluateConfig, "evaluate", "How a run is measured"),
    (ExplainConfig, "explain", "How a text is read to explain it"),
    (OriginsConfig, "trace", "Which stretches of a text count as standing in the corpus"),
    (Limits, "app.py", "What one visitor, and all, may take of a server; 0 is no limit"),
]


def shown(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def table(config: type) -> list[str]:
    lines = ["| setting | default | range | what it is |", "|---|---|---|---|"]
    for setting in settings_of(config):
        meta = setting.metadata
        span = ", ".join(meta["choices"]) or (
            f"{meta['low']} to {meta['high']}" if meta["low"] is not None else ""
        )
        lines.append(f"| `{setting.name}` | {shown(setting.default)} | {span} | {meta['help']} |")
    return lines


def preset_table(presets: dict[str, dict[str, object]], configs: list[type], begun: bool) -> list[str]:
    """What the presets say otherwise than the defaults; who begins with a run keeps its decoder."""
    defaults = {setting.name: setting.default for kind in configs for setting in settings_of(kind)}
    lines = ["| setting | " + " | ".join(presets) + " |", "|---|" + "---|" * len(presets)]
    for name in dict.fromkeys(name for preset in presets.values() for name in preset):
        if begun and name in ("dim", "depth", "num_heads"):
            continue
        values = [shown(preset.get(name, defaults[name])) for preset in presets.values()]
        lines.append(f"| `{name}` | " + " | ".join(values) + " |")
    return lines


def page() -> str:
    """The whole of docs/settings.md."""
    lines = [
        "# Settings",
        "",
        "Made by `python -m benchmarks.settings_table` from the declarations of settings, presets and",
        "the limits. A setting `batch_size` is the flag `--batch-size` of its verb and a",
        "field of its form on the page; a limit `minutes` is the flag `--minutes` of `app.py` and the",
        "variable `RETRO_DEMO_LIMIT_MINUTES`.",
    ]
    for config, verb, title in VERBS:
        lines += ["", f"## {title} (`{verb}`)", "", *table(config)]
    for title, model, begun in (
        ("`train lm`", "lm", False),
        ("`train retro`", "retro", False),
        ("`train lm --base RUN`", "lm", True),
        ("`train retrofit --base RUN`", "retrofit", True),
    ):
        presets = {
            preset: KINDS[model].preset_settings(preset, begun=begun) for preset in KINDS[model].presets
        }
        lines += ["", f"## Presets of {title} (`--preset`)", ""]
        lines += preset_table(presets, [RetroConfig, TrainConfig], begun)
    lines += ["", "## Presets of `train retrofit --base smollm2` (`--preset`)", ""]
    lines += preset_table(READER_PRESETS, [ReaderConfig, LessonConfig, TrainConfig], False)
    lines += ["", "## Presets of `train lm --base smollm2` (`--preset`)", ""]
    lines += preset_table(TUNED_PRESETS, [TunedConfig, TrainConfig], False)
    lines += ["", "## Presets of `train marge` (`--preset`)", ""]
    lines += preset_table(MARGE_PRESETS, [TrainConfig, EvidenceConfig, MargeConfig], False)
    lines += ["", "## The limits of a public page (`app.py --public`)", ""]
    lines += preset_table({"private": {}, "--public": asdict(PUBLIC)}, [Limits], False)
    return "\n".join(lines) + "\n"


def main() -> None:
    (DOCS / "settings.md").write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
