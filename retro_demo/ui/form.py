"""A config's settings as widgets, read back as values of the fields' types; errors as toasts."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import logging
import secrets
import tempfile
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.processing_utils import hash_file
from gradio.utils import get_upload_folder

from retro_demo.errors import UserError, describe_error
from retro_demo.paths import SAMPLE
from retro_demo.render.wording import on_page, told, values_to_program
from retro_demo.server.limits import HERE
from retro_demo.settings import settings_of, whole

log = logging.getLogger(__name__)
ONE_LINE = 30  # characters of help
BRIEF = "brief"
"""The class of a widget whose help is one line until it is pointed at or focused (assets/style.css)."""


class Form:
    """Widgets for the settings of some configs, in the order of the fields; each is made once.

    Call `show` inside a layout for the settings that shall stand there. `inputs` are the widgets made
    so far, and `read` takes their values in that order. `choices` narrows what the page offers, `only`
    which settings there are; `prefix` stands before their ids where two forms hold the same settings.
    """

    def __init__(
        self,
        *configs: type,
        values: Mapping[str, Any] | None = None,
        choices: Mapping[str, Sequence[str]] | None = None,
        only: Collection[str] | None = None,
        prefix: str = "",
    ) -> None:
        every = {setting.name: setting for config in configs for setting in settings_of(config)}
        self.fields = {name: setting for name, setting in every.items() if only is None or name in only}
        self.prefix = prefix
        self.values = dict(values or {})
        self.choices: dict[str, Sequence[str]] = dict(choices or {})
        self.widgets: dict[str, Any] = {}

    def show(self, *, main: bool, without: Sequence[str] = (), short: bool = False) -> None:
        """Make the widgets of the main settings, or of the others; `short` as for `show_named`."""
        fields = self.fields.items()
        names = [n for n, f in fields if f.metadata["main"] == main and n not in without]
        self.show_named(names, short=short)

    def show_named(self, names: Iterable[str], *, short: bool = False) -> None:
        """Make the widgets of these settings; `short`: help is one line, the rest behind "?"."""
        for name in names:
            if name in self.fields and name not in self.widgets:
                setting = self.fields[name]
                choices = self.choices.get(name) or setting.metadata["choices"]
                value = self.values.get(name, setting.default)
                self.widgets[name] = _widget(setting, value, choices, self.prefix, short)

    @property
    def inputs(self) -> list[Any]:
        return list(self.widgets.values())

    def read(self, values: Sequence[Any]) -> dict[str, Any]:
        """The widgets' values, cast to the types of the fields; raises UserError for what is none."""
        return {
            name: _cast(self.fields[name], value) for name, value in zip(self.widgets, values, strict=True)
        }

    def fill(self, settings: Mapping[str, Any]) -> list[Any]:
        """New values for the widgets, the fields' defaults where `settings` says nothing."""
        return [_shown(settings.get(name, self.fields[name].default)) for name in self.widgets]


def _widget(
    setting: dataclasses.Field[Any], value: Any, choices: Sequence[str], prefix: str, short: bool = False
) -> Any:
    meta = setting.metadata
    said = {"label": meta["label"], "info": meta["help"], "elem_id": f"{prefix}knob-{setting.name}"}
    if short and len(meta["help"]) > ONE_LINE:
        said["elem_classes"] = BRIEF
    if choices:
        return gr.Radio([(name or "as in training", name) for name in choices], value=value, **said)
    if isinstance(setting.default, bool):
        return gr.Checkbox(value=value, min_width=240, **said)
    if isinstance(setting.default, (int, float)):
        # also for whole numbers no precision: Gradio would round what is none, and say nothing
        return gr.Number(value=value, min_width=120, **said)
    return gr.Textbox(value=_shown(value), max_lines=1, min_width=120, **said)


def _shown(value: Any) -> Any:
    return ", ".join(map(str, value)) if isinstance(value, (tuple, list)) else value


def _cast(setting: dataclasses.Field[Any], value: Any) -> Any:
    label, default = setting.metadata["label"], setting.default
    if isinstance(default, tuple):
        try:
            return tuple(int(part) for part in str(value or "").split(",") if part.strip())
        except ValueError:
            raise UserError(f"{label} is {value!r}; write whole numbers such as 2, 4.") from None
    if isinstance(default, str):
        return str(value or "").strip()
    if isinstance(default, bool):
        return bool(value)
    if value is None or isinstance(value, (str, bool)):
        raise UserError(f"{label} is {value!r}. Give a number such as {default}.")
    return whole(value, label) if isinstance(default, int) else float(value)


def shows_errors(
    handler: Callable[..., Any], words: Callable[[Exception], str] = on_page
) -> Callable[..., Any]:
    """A handler (function or generator) whose UserErrors are toasts and whose bugs are one sentence.

    `words` makes of an error what is shown: the page and programs know settings by other names.
    """
    if inspect.isgeneratorfunction(handler):

        @functools.wraps(handler)
        def stream(*values: Any, **named: Any) -> Any:
            try:
                yield from handler(*values, **named)
            except (UserError, gr.Error) as error:
                raise _toast(error, words) from None
            except Exception as error:
                raise _bug(handler, error) from None

        return stream

    @functools.wraps(handler)
    def call(*values: Any, **named: Any) -> Any:
        try:
            return handler(*values, **named)
        except (UserError, gr.Error) as error:
            raise _toast(error, words) from None
        except Exception as error:
            raise _bug(handler, error) from None

    return call


def once_known(handler: Callable[..., Any]) -> Callable[..., Any]:
    """A look at things that waits for the visitor's code, which a page has a moment after loading."""
    if inspect.isgeneratorfunction(handler):

        @functools.wraps(handler)
        def stream(code: str, *values: Any, **named: Any) -> Any:
            if code:
                yield from handler(code, *values, **named)

        return shows_errors(stream)

    @functools.wraps(handler)
    def look(code: str, *values: Any, **named: Any) -> Any:
        return handler(code, *values, **named) if code else gr.skip()

    return shows_errors(look)


def _toast(error: Exception, words: Callable[[Exception], str]) -> gr.Error:
    shown = UserError(error.message) if isinstance(error, gr.Error) else error
    return gr.Error(words(shown), duration=12, print_exception=False)


def _bug(handler: Callable[..., Any], error: Exception) -> gr.Error:
    if trouble := describe_error(error):
        log.warning("%s: %s", handler.__name__, error)
        return gr.Error(trouble, duration=12, print_exception=False)
    number = secrets.token_hex(4)
    log.error("%s failed (log id %s)", handler.__name__, number, exc_info=error)
    return gr.Error(
        f"Something went wrong inside the program ({type(error).__name__}, log id {number}). "
        "Nothing was lost; the log has the details.",
        duration=12,
        print_exception=False,
    )


FOR_HERE = "Runs in a terminal of this machine, in any folder."
FOR_OTHERS = "Names stand for folders: give those where your corpora and runs lie, such as unpacked exports."

Values = dict[Any, Any]
"""What a handler gives: new values by component; one that is not in it stays as it is."""

PRIVATE: dict[str, Any] = {"api_visibility": "private"}
HIDDEN: dict[str, Any] = {"show_progress": "hidden", "show_progress_on": []}
"""For what shows no progress: by default Gradio's page looks up each output of each event in its whole tree
to tell it how far the event is, also where that is hidden, whenever any event begins or ends."""
QUIET: dict[str, Any] = PRIVATE | HIDDEN | {"queue": False}
"""For polls and looks: not queued, so that a full queue cannot blank them, and nothing flickers."""
CHEAP: dict[str, Any] = PRIVATE | HIDDEN | {"concurrency_limit": None}
"""For handlers that cost little: visitors need not wait for each other."""
LOOKS: dict[str, Any] = CHEAP | {"concurrency_id": "looks", "concurrency_limit": 2}
"""For looks that compute: strangers who look at much wait for each other, and nobody else does."""
MODEL: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1}
"""The lane of what computes with a run: one at a time for all."""
ON_PAGE = CHEAP | MODEL
"""The same lane, for handlers of the page."""
SHARE: dict[str, Any] = {"concurrency_id": "share", "concurrency_limit": 2}
"""The lane of exports and imports."""


MEAN = "mean"
"""The choice of a layer or a head that stands for all of them."""


def first_of(row: Any) -> Any:
    """The text of an example that was clicked; nothing changes for what is no example."""
    return row[0] if isinstance(row, (list, tuple)) and row else gr.skip()


def chosen_index(chosen: str | None, most: int) -> int | None:
    """Which of 1 to `most` is chosen, counted from 0; None for MEAN, over all of them."""
    number = int(chosen) if chosen and chosen.isdecimal() else 0
    return number - 1 if 0 < number <= most else None


def into_view(shown: str, block: str) -> str:
    """A script that scrolls to what a selector names, where it stands under what was pressed.

    block: where in the window it comes to stand, as in scrollIntoView.
    """
    return f"""() => {{
  const shown = document.querySelector('{shown}');
  const top = shown?.getBoundingClientRect().top ?? 0;
  if (top >= 0 && top < innerHeight * 0.6) return;
  const calm = matchMedia('(prefers-reduced-motion: reduce)').matches;
  shown?.scrollIntoView({{block: '{block}', behavior: calm ? 'auto' : 'smooth'}});
}}"""


def clicked(event: gr.EventData, what: str, *names: str) -> list[int]:
    """The numbers by which a script of the page names what was clicked, or a stranger's program for it."""
    try:
        return [int(getattr(event, name)) for name in names]
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
        raise UserError(f"That names no {what}. Click one of those that are shown.") from None


def named_runs(runs: Iterable[str]) -> list[tuple[str, str]]:
    """Runs to choose from, each with the name that the page shows for it."""
    return [(run.removeprefix(SAMPLE), run) for run in runs]


def relisted(choices: Sequence[Any], now: Any, chosen: Any, **more: Any) -> gr.Dropdown:
    """A dropdown with other choices. Its value is sent only where it has to change.

    A visitor may have chosen something else while the answer was on its way; that stays.
    """
    return gr.Dropdown(choices, **more) if chosen == now else gr.Dropdown(choices, value=chosen, **more)


def relisted_runs(runs: Iterable[str], now: Any, chosen: Any) -> gr.Dropdown:
    """As `relisted`, of `named_runs`."""
    return relisted(named_runs(runs), now, chosen)


def stop_and_resume(state: str, new: str = "Resume") -> list[gr.Button]:
    """The two buttons of a job: each can be pressed where it would do something.

    `new`: what the second one is called for a job that never began.
    """
    label = new if state == "new" else "Resume"
    can_go_on = state in ("stopped", "failed", "interrupted", "new")
    return [gr.Button(interactive=state in ("running", "waiting")), gr.Button(label, interactive=can_go_on)]


def download(make: Callable[[Path], Path]) -> Path:
    """The file that `make` writes into the folder it is given, where Gradio may hand it out.

    It lies among the uploads, as these do under the hash of its content: made again it takes no more room.
    """
    uploads = Path(get_upload_folder())
    uploads.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=uploads) as scratch:
        made = make(Path(scratch))
        folder = uploads / hash_file(made)
        folder.mkdir(exist_ok=True)
        return made.replace(folder / made.name)  # with the date of now: it goes an hour after its last making


def json_file(name: str, values: Any, indent: int | None = 1) -> str:
    """Values as a file that Gradio may hand out; without `indent` on one line, for very many."""

    def write(folder: Path) -> Path:
        text = json.dumps(values_to_program(values), indent=indent, ensure_ascii=False)
        (folder / name).write_bytes(text.encode("utf-8", "replace"))
        return folder / name

    return str(download(write))


def command_box(label: str, elem_id: str) -> gr.Textbox:
    """Where a command to paste into a terminal stands; `shown_command` fills it."""
    return gr.Textbox(label=label, buttons=["copy"], interactive=False, elem_id=elem_id, info=FOR_OTHERS)


def shown_command(command: str) -> gr.Textbox:
    """A command as whoever looks can use it, and what is to be known of that."""
    return gr.Textbox(told(command), info=FOR_HERE if HERE.get() else FOR_OTHERS)


def sure(kind: str) -> str:
    """JavaScript that asks before something is lost: the last of three inputs becomes the answer."""
    ask = f"window.confirm('Delete the {kind} ' + name + ' with all its files?')"
    return f"(code, name, answer) => [code, name, {ask} ? 'yes' : 'no']"
