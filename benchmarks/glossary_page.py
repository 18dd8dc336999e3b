"""Write docs/glossary.md from the words that the page explains.

.venv/bin/python -m benchmarks.glossary_page
"""

from __future__ import annotations

from pathlib import Path

from retro_demo.render.wording import GLOSSARY

PLACE = Path(__file__).resolve().parent.parent / "docs" / "glossary.md"


def page() -> str:
    """The whole of docs/glossary.md, in the order of the alphabet."""
    words = sorted(GLOSSARY.items(), key=lambda entry: (entry[0].lower(), entry[0]))
    lines = ["# Glossary", "", "Made by `python -m benchmarks.glossary_page` from what the page explains."]
    for word, sentence in words:
        lines += ["", f"**{word}**: {sentence}"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PLACE.write_text(page(), encoding="utf-8")
