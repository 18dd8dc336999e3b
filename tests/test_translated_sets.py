"""The sets of translations that MARGE is measured on are built from what packages hold."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

import pytest

from benchmarks import translated_sets

WORDS = {
    "de": "Dieses Programm zeigt den Inhalt einer Datei auf der Konsole an und beendet sich danach wieder.",
    "fr": "Ce programme affiche le contenu d'un fichier sur la console puis se termine sans autre message.",
    "C": "This program shows what is in a file on the console and ends after that without a message.",
}


def gnome(folder: Path, language: str) -> None:
    place = folder / "usr/share/help" / language / "gnome-help"
    place.mkdir(parents=True)
    text = f"<title>{language}</title><p>{WORDS[language]} {WORDS[language]}</p>"
    page = f'<page xmlns="http://projectmallard.org/1.0/">{text}</page>'
    (place / "show.page").write_text(page, "utf-8")


def man(folder: Path, language: str) -> None:
    base = folder / "usr/share/man"
    place = base / "man1" if language == "C" else base / language / "man1"
    place.mkdir(parents=True)
    body = f"{WORDS[language]} " * 4
    page = f".TH SHOW 1\n.SH NAME\nshow \\- {WORDS[language]}\n.SH SYNOPSIS\n.B show\n"
    page += f".SH DESCRIPTION\n\\fBshow\\fR {body}\n"
    with gzip.open(place / "show.1.gz", "wt", encoding="utf-8") as file:
        file.write(page)


@pytest.mark.parametrize(("kind", "make", "group"), [("gnome", gnome, "show"), ("man", man, "show.1")])
def test_a_page_becomes_a_document_in_each_of_its_languages(kind, make, group, tmp_path, monkeypatch):
    for language in WORDS:
        make(tmp_path, language)
    monkeypatch.setattr(sys, "argv", ["", kind, str(tmp_path), str(tmp_path / "set.jsonl.gz")])

    translated_sets.main()

    with gzip.open(tmp_path / "set.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    assert [(row["lang"], row["group"]) for row in rows] == [("de", group), ("en", group), ("fr", group)]
    assert all("\\f" not in row["text"] for row in rows)
    assert all("show" not in row["text"].split() for row in rows) or kind == "gnome"
