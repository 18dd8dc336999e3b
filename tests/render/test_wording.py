"""Settings in sentences: each asker reads the names that it can use."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from retro_demo.documents.rows import no_column
from retro_demo.errors import UserError
from retro_demo.jobs.lifecycle import JobStatus
from retro_demo.models.config import MargeConfig, RetroConfig
from retro_demo.render import html_parts, job_views, wording
from retro_demo.render.wording import CONFIGS, FLAG, LABELS, for_page, for_programs
from retro_demo.settings import TrainConfig, settings_of
from retro_demo.ui.form import shows_errors
from retro_demo.ui.gradio_patches import public

PACKAGE = Path(html_parts.__file__).parent
OF_THE_TERMINAL = {
    *("cli", "flags", "job_verbs", "share_verbs", "change_verbs", "sharding", "ray_shards", "distributed"),
    *("building", "changing", "checkpoint", "corpus", "evaluation_request", "exporting", "hub", "embedding"),
    "model_card",
}
"""Modules with sentences that only a terminal is told: about folders of its own, --out and processes."""

SENTENCES = {
    "name the field with --fields text=NAME.": (
        "name the field with “Fields”: text=NAME.",
        'name the field with fields="text=NAME".',
    ),
    """give --fields 'text="Body, English"', or""": (
        'give “Fields”: text="Body, English", or',
        """give fields='text="Body, English"', or""",
    ),
    "name it with --base RUN. Without": (
        "name it with “Base”: RUN. Without",
        'name it with base="RUN". Without',
    ),
    "a larger --holdout, and train": ("a larger “Held out”, and train", "a larger holdout, and train"),
    "with --neighbor-source random.": ("with “Neighbors from” random.", "with neighbor_source random."),
    "so --baseline means nothing here": (
        "so “Matched baseline” means nothing here",
        "so baseline means nothing here",
    ),
    "a smaller --batch-size (now 4), --seq-len or --dim (now 64)": (
        "a smaller “Batch” (now 4), “Context” or “Width” (now 64)",
        "a smaller batch_size (now 4), seq_len or dim (now 64)",
    ),
    "chunk_len.txt is broken. Left out, as empty: seq_len/a.txt": (
        "chunk_len.txt is broken. Left out, as empty: seq_len/a.txt",
        "chunk_len.txt is broken. Left out, as empty: seq_len/a.txt",
    ),
    "There is no folder batch_size in my steps, --dim of /srv/--dim/dim": (
        "There is no folder batch_size in my steps, “Width” of /srv/--dim/dim",
        "There is no folder batch_size in my steps, dim of /srv/--dim/dim",
    ),
    "There is no document 'seq_len' in \"--fields\" (--nproc-per-node)": (
        "There is no document 'seq_len' in \"--fields\" (--nproc-per-node)",
        "There is no document 'seq_len' in \"--fields\" (--nproc-per-node)",
    ),
}


@pytest.mark.parametrize(("text", "page", "program"), [(a, *b) for a, b in SENTENCES.items()])
def test_a_sentence_of_the_command_line_names_labels_on_the_page_and_arguments_to_programs(
    text, page, program
):
    assert for_page(text) == page
    assert for_programs(text) == program


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.__name__)
def test_each_setting_out_of_its_range_is_called_on_the_page_as_its_form_calls_it(config):
    asked = 0
    for setting in settings_of(config):
        number = setting.metadata["low"] is not None
        wrong: Any = setting.metadata["low"] - 1 if number else object()
        wrong = (wrong,) if isinstance(setting.default, tuple) else wrong
        with pytest.raises(UserError) as error:
            config(**{setting.name: wrong})
        assert str(error.value).startswith(f"{setting.name} is ")
        assert for_page(error.value).startswith(f"“{setting.metadata['label']}” is ")
        asked += 1
    assert asked


def test_errors_that_name_two_settings_name_both_as_labels():
    for config, values in (
        (TrainConfig, {"compile": True, "sharded": True}),
        (MargeConfig, {"num_heads": 7}),
        (RetroConfig, {"dim": 64, "enc_dim": 32, "copying_start": True}),
        (RetroConfig, {"rotary_dims": 7}),
    ):
        with pytest.raises(UserError) as error:
            config(**values)
        assert for_page(error.value).count("“") == 2


def test_a_toast_of_the_page_and_the_answer_of_an_endpoint_differ_in_their_words():
    def missing(workspace: str) -> None:
        raise no_column("text", "text", ["Body"], f"{workspace}.csv")

    with pytest.raises(gr.Error) as toast:
        shows_errors(missing)("a")
    with pytest.raises(gr.Error) as answer:
        public(missing)("a")

    assert "“Fields”: text=NAME" in toast.value.message
    assert 'fields="text=NAME"' in answer.value.message
    assert "--fields text=NAME" in str(no_column("text", "text", ["Body"], "a.csv"))


def test_what_a_job_kept_as_the_command_line_says_it_is_told_in_the_askers_words():
    failed = {"event": "failed", "error": "Build it with a larger --holdout."}
    warned = {"event": "warned", "text": "Give --fields text=NAME."}
    mine = {
        "event": "finished",
        "neighbors": [{"text": "cut --fields 2 -- /srv/runs/a"}],
        "warnings": ["--seed"],
    }

    assert "larger “Held out”" in html_parts.failure(JobStatus("failed", [failed], ""))
    assert "larger “Held out”" in job_views.build_status(JobStatus("failed", [failed], ""), "x")
    assert wording.values_to_program(failed)["error"] == "Build it with a larger holdout."
    assert wording.values_to_program(warned)["text"] == 'Give fields="text=NAME".'
    told = wording.values_to_program(mine)
    assert told["neighbors"] == [{"text": "cut --fields 2 -- a"}]
    assert told["warnings"] == ["seed"]


def sentences(path: Path) -> list[str]:
    """The texts of several words of a module, but its docstrings and styles."""
    tree = ast.parse(path.read_text())
    alone = [node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)]
    texts = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and node not in alone]
    words = [node.value for node in texts if isinstance(node.value, str)]
    return [text for text in words if " " in text and ";" not in text]


def test_each_flag_that_a_sentence_outside_the_terminal_names_is_known_to_page_and_programs():
    strange = []
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.stem not in OF_THE_TERMINAL:
            flags = [name for text in sentences(path) for name, *_ in FLAG.findall(text)]
            strange += [(path.stem, name) for name in flags if name.replace("-", "_") not in LABELS]

    assert strange == []


def test_no_label_of_a_form_is_itself_a_flag_or_the_name_of_a_variable():
    assert not [label for label in LABELS.values() if re.search("--|_", label)]
