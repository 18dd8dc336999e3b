"""How long a visitor waits, and how much is sent: the page, the first token, the weight of the first load.

    .venv/bin/python -m benchmarks.startup [--home FOLDER] [--rounds 3]

Starts app.py on a free port, waits for the page, and asks the shipped run for a few tokens through
the public endpoint. The first round fills the page cache and builds the sample corpus, unless --home has it.
Then a browser with an empty cache opens the page once: requests, bytes over the wire, bytes unpacked.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from benchmarks.measuring import Report, options
from benchmarks.serving import served_app
from retro_demo.server.workspace import new_code

SETTLE = 3.0  # seconds after the page is drawn in which nothing more may be asked for
ROWS = {
    "page": "start to answering page",
    "first_token_cold": "first token, asked at once",
    "first_token_warm": "first token after that",
}


def one_round(home: str) -> dict[str, float]:
    """Seconds to the page, to a first token asked at once, and to a first token when all is warm."""
    from gradio_client import Client

    begun = time.perf_counter()
    with served_app(Path(home)) as (url, _):
        seconds = {"page": time.perf_counter() - begun}
        client = Client(url, verbose=False)
        for name in ("first_token_cold", "first_token_warm"):
            asked = time.perf_counter()
            job = first_token(client)
            seconds[name] = time.perf_counter() - asked
            job.result()
        return seconds


def first_token(client: Any) -> Any:
    """Ask for a text until it begins: before, the sample may still be being built. The text's job."""
    from gradio_client.exceptions import AppError

    while True:
        values = (new_code(), "sample:factbook-retrofit", "Introduction", 8, 0.8, 0, 0.95, 7, "on")
        job = client.submit(*values, api_name="/generate")
        try:
            next(said for said in job if said["new_tokens"])
            return job
        except (StopIteration, AppError):
            said = job.exception()
            if said is None or "being built" not in str(said):
                raise
            time.sleep(0.2)


def installed_browser() -> str | None:
    """An installed Chromium or Chrome; None: playwright's own."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return next((found for name in names if (found := shutil.which(name))), None)


def page_weight(url: str) -> dict[str, dict[str, float]]:
    """By kind of file: requests, kB over the wire, kB unpacked; and when the page was drawn, in seconds."""
    from playwright.sync_api import Error, sync_playwright

    kinds: dict[str, str] = {}
    requests: Counter[str] = Counter()
    wire: defaultdict[str, float] = defaultdict(float)
    unpacked: defaultdict[str, float] = defaultdict(float)

    def asked(event: Any) -> None:
        kinds[event["requestId"]] = event.get("type", "Other")
        requests[kinds[event["requestId"]]] += 1

    def note(into: defaultdict[str, float], field: str) -> Any:
        def listen(event: Any) -> None:
            into[kinds.get(event["requestId"], "Other")] += event[field] / 1000

        return listen

    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
        try:
            browser = playwright.chromium.launch(executable_path=installed_browser(), args=flags)
        except Error as error:
            raise SystemExit(
                f"There is no browser to weigh the page with ({str(error).splitlines()[0]}). "
                "Install Chromium, or call with --no-browser."
            ) from error
        page = browser.new_page()
        session = page.context.new_cdp_session(page)
        session.send("Network.enable")
        session.on("Network.requestWillBeSent", asked)
        session.on("Network.dataReceived", note(unpacked, "dataLength"))
        session.on("Network.loadingFinished", note(wire, "encodedDataLength"))
        begun = time.perf_counter()
        page.goto(url)
        page.get_by_role("tab").first.wait_for()
        drawn = time.perf_counter() - begun
        page.wait_for_timeout(1000 * SETTLE)
        browser.close()
    weights = {
        kind: {"requests": requests[kind], "wire": round(wire[kind], 1), "unpacked": round(unpacked[kind], 1)}
        for kind in sorted(requests, key=lambda kind: -wire[kind])
    }
    return weights | {"drawn": {"seconds": round(drawn, 2)}}


def main() -> None:
    parser = options(__doc__, rounds=3)
    parser.add_argument("--home", default=tempfile.mkdtemp(prefix="retro_demo-startup-"))
    parser.add_argument("--no-browser", action="store_true", help="do not weigh the page")
    chosen = parser.parse_args()
    report = Report("startup")
    rounds = [one_round(chosen.home) for _ in range(1 if chosen.quick else chosen.rounds)]
    report.table(
        "What a visitor waits for:",
        ("", *(f"round {number}" for number in range(1, len(rounds) + 1))),
        [(words, *(f"{result[name]:.2f} s" for result in rounds)) for name, words in ROWS.items()],
    )
    report.figures["seconds"] = rounds
    if not chosen.no_browser:
        with served_app(Path(chosen.home)) as (url, _):
            weights = page_weight(url)
        drawn = weights.pop("drawn")["seconds"]
        rows = [(kind.lower(), *weight.values()) for kind, weight in weights.items()]
        sums = [round(sum(weight[name] for weight in weights.values()), 1) for name in ("wire", "unpacked")]
        everything = sum(int(weight["requests"]) for weight in weights.values())
        report.table(
            f"The first load of the page, nothing cached, drawn after {drawn} s:",
            ("kind", "requests", "kB over the wire", "kB unpacked"),
            [*rows, ("all", everything, *sums)],
        )
        report.figures["page"] = weights | {"drawn_seconds": drawn}
    report.publish(chosen.json)


if __name__ == "__main__":
    main()
