"""Forms: every knob goes into a widget and comes back as a value of its field's type."""

from __future__ import annotations

import logging
import re

import gradio as gr
import pytest
from places import ROOT

from retro_demo.errors import UserError
from retro_demo.kinds import PRESETS
from retro_demo.models.config import RetroConfig
from retro_demo.settings import CorpusConfig, GenerateConfig, TrainConfig, settings_of
from retro_demo.ui.form import Form, shows_errors

CONFIGS = [CorpusConfig, RetroConfig, TrainConfig, GenerateConfig]


def whole_form(*configs: type) -> Form:
    form = Form(*configs)
    with gr.Blocks():
        form.show(main=True)
        form.show(main=False)
    return form


@pytest.mark.parametrize("config", CONFIGS)
def test_the_widgets_of_a_config_give_back_its_defaults(config):
    form = whole_form(config)
    values = [widget.value for widget in form.inputs]

    read = form.read(values)

    assert read == {setting.name: setting.default for setting in settings_of(config)}
    assert {name: type(value) for name, value in read.items()} == {
        setting.name: type(setting.default) for setting in settings_of(config)
    }


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_fills_the_widgets_with_its_values(preset):
    form = whole_form(TrainConfig, RetroConfig)

    read = form.read(form.fill(PRESETS[preset]))

    assert PRESETS[preset].items() <= read.items()
    TrainConfig(**{setting.name: read[setting.name] for setting in settings_of(TrainConfig)})
    RetroConfig(**{setting.name: read[setting.name] for setting in settings_of(RetroConfig)})


@pytest.mark.parametrize("config", CONFIGS)
def test_every_widget_carries_label_and_explanation(config):
    for widget in whole_form(config).inputs:
        assert widget.label
        assert widget.info


def test_whole_numbers_that_come_as_floats_are_read_as_whole_numbers():
    form = whole_form(TrainConfig)
    values = [widget.value for widget in form.inputs]
    values[list(form.widgets).index("steps")] = 12.0

    assert type(form.read(values)["steps"]) is int


@pytest.mark.parametrize("junk", [None, "many", 1.5])
def test_a_number_that_is_none_is_refused_by_name(junk):
    form = whole_form(TrainConfig)
    values = [widget.value for widget in form.inputs]
    values[list(form.widgets).index("steps")] = junk

    with pytest.raises(UserError, match="Steps"):
        form.read(values)


def test_a_fraction_reaches_the_form_as_it_was_typed():
    assert whole_form(TrainConfig).widgets["steps"].preprocess(1.5) == 1.5


def test_a_list_of_layers_that_is_none_is_refused():
    form = whole_form(RetroConfig)
    values = [widget.value for widget in form.inputs]
    values[list(form.widgets).index("cca_layers")] = "two, four"

    with pytest.raises(UserError, match="2, 4"):
        form.read(values)


def test_a_user_error_is_a_toast_without_folders_of_the_server():
    @shows_errors
    def handler():
        raise UserError("There is no corpus at /srv/data/workspaces/secret-code/corpora/towns.")

    with pytest.raises(gr.Error) as toast:
        handler()
    assert toast.value.message == "There is no corpus at towns."
    assert toast.value.print_exception is False


def test_a_bug_is_one_sentence_with_the_id_of_its_log_entry(caplog):
    @shows_errors
    def handler():
        yield 1
        raise ZeroDivisionError("secret")

    with caplog.at_level(logging.ERROR), pytest.raises(gr.Error) as toast:
        list(handler())
    number = toast.value.message.split("log id ")[1][:8]
    assert "secret" not in toast.value.message
    assert number in caplog.text
    assert "Traceback" in caplog.text


def test_each_lane_is_declared_once():
    files = (ROOT / "retro_demo" / "ui").glob("*.py")
    text = "\n".join(path.read_text("utf-8") for path in files)
    declared = re.findall(r"""["']?concurrency_id["']?\s*[:=]\s*["'](\w+)["']""", text)

    assert {"model", "share"} <= set(declared)
    assert len(declared) == len(set(declared)), declared
