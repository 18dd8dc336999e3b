"""The command line: one verb is parsed and run, its events are printed for people or as JSON lines.

Exit codes: 0 done, 1 a bug, 2 user error (a sentence on stderr says how to fix it), 130 stopped.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: a busy neighbor core costs less
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # likewise: fresh memory in huge pages costs a tenth

from retro_demo import __version__
from retro_demo.cli.listing import near_to, resolve_names
from retro_demo.cli.next_step import next_step
from retro_demo.cli.printing import Printer, print_json
from retro_demo.cli.verbs import add_verbs
from retro_demo.console import CommandParser, escape_what_cannot_be_shown
from retro_demo.devices import launched_rank
from retro_demo.errors import NotFound, UserError, describe_error
from retro_demo.events import Event, Failed, Stopped
from retro_demo.paths import check_shipped, settle_data_home

COMMAND = "retro-demo"  # as it is installed
PROGRAM = COMMAND if Path(sys.argv[0]).stem == COMMAND else "python -m retro_demo"
SHELLS = ("bash", "zsh", "fish", "tcsh", "powershell")
PATHS = {
    "run",
    "sources",
    "source",
    "corpus",
    "base",
    "baseline",
    "control",
    "out",
    "folder",
    "name",
    "tensorboard",
}
"""Arguments that a shell completes with files and folders."""


def main(arguments: list[str] | None = None, *, stop: Callable[[], bool] = lambda: False) -> int:
    """Run one verb until its end or until `stop` says so; returns the exit code."""
    escape_what_cannot_be_shown()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    as_json = "--json" in (sys.argv[1:] if arguments is None else arguments)  # also where flags are wrong
    if rank := launched_rank():  # one of several processes speaks for all
        as_json = False
    try:
        options = build_parser().parse_args(arguments)
        check_shipped()
        if warning := settle_data_home()[1]:
            print(warning, file=sys.stderr)
        resolve_names(options)
        ending: Event | None = None
        with ExitStack() as close:
            show = (lambda _event: None) if rank else _shower(options, close)
            for event in options.verb(options, stop):
                show(event)
                ending = event
        return 130 if isinstance(ending, Stopped) else 0
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        said = str(error) if isinstance(error, UserError) else describe_error(error)
        if isinstance(error, NotFound):
            said = error.guessing(near_to(error))
        if said:
            print(f"process {rank}: {said}" if rank else said, file=sys.stderr)
        else:
            logging.getLogger(__name__).exception("%s failed", PROGRAM)
        if as_json:
            print_json(Failed(said or f"Something went wrong inside the program ({type(error).__name__})."))
        return 2 if said else 1


def _shower(options: argparse.Namespace, close: ExitStack) -> Callable[[Event], None]:
    """What shows the events of a verb: to a program, to who watches a terminal, or line by line."""
    if getattr(options, "json", False):
        return print_json
    if not sys.stdout.isatty():
        return Printer()
    from retro_demo.cli.terminal import Terminal  # here: nothing else needs rich

    terminal = Terminal(PROGRAM, lambda result: next_step(options, result))
    close.callback(terminal.close)
    return terminal


class _Completion(argparse.Action):
    """Print the script by which a shell completes `retro-demo`, and leave."""

    def __call__(self, parser: argparse.ArgumentParser, _options: Any, shell: Any, _flag: Any = None) -> None:
        import shtab  # here: nothing else needs it

        whole = build_parser(COMMAND)
        verbs = next(a for a in whole._actions if isinstance(a, argparse._SubParsersAction))
        for action in (action for verb in verbs.choices.values() for action in verb._actions):
            if action.dest in PATHS:
                vars(action)["complete"] = shtab.FILE
        print(shtab.complete(whole, shell))
        parser.exit()


def build_parser(program: str = PROGRAM) -> argparse.ArgumentParser:
    """All verbs with their flags; each setting of a config is a flag."""
    parser = CommandParser(
        prog=program, description="Retrieval-augmented language models to train and look into."
    )
    parser.add_argument("--version", action="version", version=f"retro_demo {__version__}")
    parser.add_argument(
        "--print-completion", action=_Completion, choices=SHELLS, help="print a script for this shell to read"
    )
    add_verbs(parser.add_subparsers(required=True, metavar="VERB"))
    return parser
