"""Write docs/settings.md, the reference table of all settings, from their declarations.

.venv/bin/python -m benchmarks.settings_table
"""

from __future__ import annotations

from pathlib import Path

from retro_demo.config import PRESETS, CorpusConfig, GenerateConfig, RetroConfig, TrainConfig, knobs

DOCS = Path(__file__).resolve().parent.parent / "docs"
VERBS = [
    (CorpusConfig, "build-corpus", "How a corpus is built"),
    (RetroConfig, "train", "The shape of the network"),
    (TrainConfig, "train", "How a run is trained"),
    (GenerateConfig, "generate", "How text is written"),
]


def shown(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def table(config: type) -> list[str]:
    lines = ["| setting | default | range | what it is |", "|---|---|---|---|"]
    for knob in knobs(config):
        meta = knob.metadata
        span = ", ".join(meta["choices"]) or (
            f"{meta['low']} to {meta['high']}" if meta["low"] is not None else ""
        )
        lines.append(f"| `{knob.name}` | {shown(knob.default)} | {span} | {meta['help']} |")
    return lines


def main() -> None:
    lines = [
        "# Settings",
        "",
        "Made by `python -m benchmarks.settings_table` from the declarations in `retro_demo/config.py`.",
        "A setting `batch_size` is the flag `--batch-size` of its verb and a field of its form on the page.",
    ]
    for config, verb, title in VERBS:
        lines += ["", f"## {title} (`{verb}`)", "", *table(config)]
    lines += ["", "## Presets (`train --preset`)", "", "| setting | " + " | ".join(PRESETS) + " |"]
    lines.append("|---|" + "---|" * len(PRESETS))
    defaults = {knob.name: knob.default for kind in (RetroConfig, TrainConfig) for knob in knobs(kind)}
    for name in dict.fromkeys(name for preset in PRESETS.values() for name in preset):
        values = [shown(preset.get(name, defaults[name])) for preset in PRESETS.values()]
        lines.append(f"| `{name}` | " + " | ".join(values) + " |")
    (DOCS / "settings.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
