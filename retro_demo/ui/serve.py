"""Serve the page: what `python app.py` and `retro-demo serve` do, with the flags of the server.

Without flags host and port come from Gradio's own environment, as on a Hugging Face Space, where the page
is public. Each limit is a flag, and a variable such as RETRO_DEMO_LIMIT_STEPS. What needs gradio or torch is
imported inside functions, because what is set here must be set before.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from types import SimpleNamespace
from typing import TYPE_CHECKING

from retro_demo.console import CommandParser, add_flags, escape_what_cannot_be_shown, given
from retro_demo.errors import UserError
from retro_demo.paths import ASSETS, check_shipped, settle_data_home

if TYPE_CHECKING:
    from pathlib import Path

    import gradio as gr

    from retro_demo.server.limits import Limits

DEFAULT_HOST, DEFAULT_PORT = "127.0.0.1", 7860  # the first free port from there on
os.environ.setdefault("GRADIO_SERVER_NAME", DEFAULT_HOST)
os.environ.setdefault("GRADIO_SERVER_PORT", str(DEFAULT_PORT))
# no calls home, and idle threads that leave cores to others
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
# nor a table of the last 10,000 calls, made anew after each of them for a page of figures that is shut
os.environ["GRADIO_ANALYTICS_CACHE_FREQUENCY"] = "1000000000"
os.environ["GRADIO_ANALYTICS_MAX_EVENTS"] = "100"
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # huge pages: fresh memory costs a tenth


def main(arguments: list[str] | None = None, program: str | None = None) -> int:
    """Serve the page with these flags (default: those of this process) until Ctrl-C; the exit code."""
    escape_what_cannot_be_shown()
    if os.environ.get("SPACES_ZERO_GPU"):  # a platform's own package, which changes torch before it is used
        import spaces  # noqa: F401  # pyright: ignore[reportMissingImports]
    parser = CommandParser(program, description="Serve the page of retro_demo.")
    add_server_flags(parser)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    try:
        serve_page(parser.parse_args(arguments))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def on_space(environment: Mapping[str, str]) -> bool:
    """Whether this is a Hugging Face Space, which is public unless somebody says otherwise."""
    return environment.get("SYSTEM") == "spaces" or "SPACE_ID" in environment


def add_server_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of a server: where it listens, whom it serves, and each limit."""
    parser.add_argument("--host", help=f"address to listen on (default: Gradio's, {DEFAULT_HOST})")
    parser.add_argument("--port", type=int, help=f"port to listen on (default: Gradio's, {DEFAULT_PORT})")
    parser.add_argument("--mcp", action="store_true", help="also serve the HTTP endpoints as tools (MCP)")
    parser.add_argument(
        "--public",
        action=argparse.BooleanOptionalAction,
        default=on_space(os.environ),
        help="serve strangers: the strict limits hold (default: on a Space)",
    )
    parser.add_argument(
        "--behind-proxy",
        type=int,
        choices=range(10),
        default=1 if on_space(os.environ) else 0,
        metavar="N",
        help="how many proxies of yours stand before it, such as nginx, each of which must add to "
        "X-Forwarded-For: the limit of requests counts whom the first of them heard (default: 0; a Space: 1)",
    )
    from retro_demo.server.limits import Limits  # here: it imports torch

    add_flags(parser, Limits)


def serve_page(options: argparse.Namespace) -> None:
    """Serve the page until Ctrl-C. Raises UserError where it cannot be served as the flags say."""
    from retro_demo.server.cleanup import UPLOADS, serve_alone
    from retro_demo.server.limits import Limits, chosen_limits
    from retro_demo.ui.page import build_app

    if os.environ.get("GRADIO_VIBE_MODE"):  # it lets whoever opens the page run code here
        raise UserError("GRADIO_VIBE_MODE is set, which lets visitors run code on this machine. Unset it.")
    os.umask(0o077)  # what is written here is for nobody else on the machine
    check_shipped()
    limits = chosen_limits(options.public, os.environ, given(options, Limits))
    home, warning = settle_data_home()
    alone = serve_alone(home)
    if options.mcp and (why := mcp_missing() or mcp_uncounted(limits, options.behind_proxy)):
        raise UserError(why)
    os.environ.setdefault("GRADIO_TEMP_DIR", str(home / UPLOADS))  # not where other programs' files are
    demo, prepare = build_app(home, warning, limits)
    try:
        local_url = launch(
            demo, home, options.host, options.port, mcp=options.mcp, proxies=options.behind_proxy
        )
    except OverflowError as error:
        raise UserError(f"--port is {options.port}; it must lie between 0 and 65535.") from error
    except OSError as error:
        host, port = options.host or DEFAULT_HOST, options.port or DEFAULT_PORT
        raise UserError(
            f"The page cannot be served at {host}, port {port}: another program has that port, or the "
            "address is none of this machine's. Choose another --port or --host."
        ) from error
    print(f"retro_demo is at {local_url} and keeps its data in {home}", flush=True)
    if options.mcp:
        print(f"Its tools for MCP clients are at {local_url}gradio_api/mcp/", flush=True)
    prepare()
    demo.block_thread()
    alone.release()


def mcp_missing() -> str:
    """Why --mcp cannot be had here, and what to do; "" where it can."""
    try:
        found = version("mcp")
    except PackageNotFoundError:
        found = ""
    if found and int(found.split(".")[0]) < 2:
        return ""
    seen = (
        f"mcp {found} is installed, which gradio cannot use" if found else "the package mcp is not installed"
    )
    return (
        f"--mcp cannot be had: {seen}. Run pip install -r requirements-mcp.txt (for an installed package: "
        "pip install 'retro_demo[mcp]'), or leave --mcp out."
    )


def mcp_uncounted(limits: Limits, proxies: int) -> str:
    """Why --mcp does not go with a limit of requests here, and what to do; "" where it does.

    Gradio asks itself what a tool is asked for, from this machine, and passes the headers on.
    """
    if not limits.requests_per_minute or proxies:
        return ""
    return (
        "--mcp cannot be had with a limit of requests: the calls of all its visitors come from this machine, "
        "and whose they are only a proxy before it can say. Add --behind-proxy N if there are such, leave "
        "--mcp out, or let nobody be counted with --requests-per-minute 0."
    )


def launch(
    demo: gr.Blocks, home: Path, host: str | None, port: int | None, *, mcp: bool = False, proxies: int = 0
) -> str:
    """Start serving in the background, behind so many proxies; returns the address."""
    from starlette.middleware import Middleware

    from retro_demo.server.cleanup import never_served
    from retro_demo.ui.middleware import Compressed, RateLimiter, SecurityHeaders
    from retro_demo.ui.page import head, theme

    os.environ["FORWARDED_ALLOW_IPS"] = ""  # uvicorn would believe X-Forwarded-For of all on this machine
    app, local_url, _ = demo.launch(
        server_name=host,
        server_port=port,
        prevent_thread_lock=True,
        quiet=True,
        show_error=False,
        max_file_size="300mb",
        state_session_capacity=4_000,  # a call of a program is one, too; a page in use is never the oldest
        max_threads=160,  # who follows a job that waits holds one, and a public queue has 42 of them
        run_history=False,
        enable_monitoring=False,
        footer_links=["api", "settings"],
        ssr_mode=False,
        pwa=False,
        mcp_server=mcp,  # the environment alone does not open it
        _frontend=False,  # else it asks itself for the page, and ends where that takes more than 3 seconds
        theme=theme(),
        head=head(),
        css_paths=[ASSETS / "style.css"],
        blocked_paths=never_served(home),
        app_kwargs={
            "middleware": [
                Middleware(SecurityHeaders),
                Middleware(RateLimiter, home=home, proxies=proxies),
                Middleware(Compressed),
            ]
        },
    )
    # each session, so each call of a program, would copy all values of the page for deep links, which are
    # shut: 1 MB and 45 ms, kept for 10,000 sessions
    lean = SimpleNamespace(default_config=demo.default_config, blocks=())
    app.state_holder.blocks = lean  # pyright: ignore[reportAttributeAccessIssue]
    return local_url
