"""Events on a terminal that somebody watches: bars that move, tables, and what to do next.

What goes into a file or a pipe is printed line by line instead (cli/printing.py), and has nothing of this.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rich import progress
from rich.console import Console
from rich.table import Table
from rich.text import Text

from retro_demo.cli.printing import CONTROLS, Printer
from retro_demo.events import MEASURING, Evaluated, Event, Finished, Progress, Saved, Step, Token

ROOM = 300  # letters of a sample
STEPS = "steps"


class Terminal(Printer):
    """Events for whoever watches; `next_step` gives the command after this one, "" for none.

    `close` ends the bars; it has to be called whatever happens.
    """

    def __init__(self, program: str, next_step: Callable[[Mapping[str, Any]], str]) -> None:
        super().__init__()
        self.console = Console(highlight=False, markup=False, emoji=False)
        self.program, self.next_step = program, next_step
        self.bars: progress.Progress | None = None
        self.tasks: dict[str, progress.TaskID] = {}
        self.saved = 0

    def __call__(self, event: Event) -> None:
        if isinstance(event, Progress):
            unit = " kB" if event.stage == "read" else ""
            self._move(event.stage, event.done, event.total, unit)
        elif isinstance(event, Step):
            saved = f", saved at {self.saved:,}" if self.saved else ""
            figures = f"  loss {event.loss:.4f}, {event.tokens_per_second:,.0f} tokens/s{saved}"
            self._move(STEPS, event.step, self.steps, figures)
        elif isinstance(event, Saved):
            self.saved = event.step
        elif isinstance(event, Evaluated):
            if self.bars and (task := self.tasks.pop(MEASURING, None)) is not None:
                self.bars.remove_task(task)
            self._print_measured(event)
        else:
            if isinstance(event, (Token, Finished)) or event.NAME in ("stopped", "failed"):
                self.close()
            super().__call__(event)
            if isinstance(event, Finished) and (words := self.next_step(event.result)):
                self._print(f"next: {self.program} {words}", style="bold")

    def close(self) -> None:
        """End the bars where they stand."""
        if self.bars:
            self.bars.stop()
        self.bars, self.tasks = None, {}

    def _move(self, stage: str, done: int, total: int, more: str) -> None:
        if self.bars is None:
            self.bars = progress.Progress(
                progress.TextColumn("{task.description}", markup=False),
                progress.BarColumn(),
                progress.TextColumn("{task.fields[count]}", markup=False),
                progress.TimeRemainingColumn(),
                console=self.console,
            )
            self.bars.start()
        if stage not in self.tasks:
            self.tasks[stage] = self.bars.add_task(stage.translate(CONTROLS), total=None, count="")
        known = None if stage == MEASURING and not done else total or None  # it tells its beginning only
        count = f"{done:,} of {total:,}{more}" if known else ""
        self.bars.update(self.tasks[stage], completed=done, total=known, count=count)

    def _print(self, text: str, style: str = "") -> None:
        self.console.print(Text(text.translate(CONTROLS), style=style), soft_wrap=True)

    def _print_measured(self, event: Evaluated) -> None:
        table = Table(title=f"held out at step {event.step:,}", title_justify="left", title_style="bold")
        table.add_column("retrieval")
        for column in ("nats/token", "bits/byte", "tokens"):
            table.add_column(column, justify="right")
        for arm, figures in event.arms.items():
            table.add_row(arm, f"{figures['nats']:.4f}", f"{figures['bpb']:.4f}", f"{figures['tokens']:,.0f}")
        self.console.print(table)
        if event.sample:
            words = " ".join(event.sample.split())
            self._print(f"it writes: {words[:ROOM]}{'...' if len(words) > ROOM else ''}", style="dim")

    def ended(self, name: str, values: Mapping[str, Any], said: str) -> str:
        """The figures of an end as a table; what is empty is left out."""
        table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
        for key, value in values.items():
            if value not in ("", None, [], {}):
                table.add_row(key.replace("_", " "), Text(_shown(value).translate(CONTROLS)))
        self._print(name, style="bold")
        if table.row_count:
            self.console.print(table)
        return said.lstrip("\n")


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        return ", ".join(value)
    return str(value)
