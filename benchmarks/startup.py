"""How long a visitor waits, and how much is sent: the page, the first token, the weight of the first load.

    .venv/bin/python -m benchmarks.startup [--home FOLDER] [--rounds 3] [--beside CHECKOUT]

Starts app.py on a free port, waits for the page, and asks the shipped run for a few tokens through
the public endpoint. The first round fills the page cache and builds the sample corpus, unless --home has it.
Then a browser with an empty cache opens the page once: requests, bytes over the wire, bytes unpacked; and
some times more, to see when it is drawn. --beside: another checkout of the project, such as that of an older
version, whose page is opened in turns with this one's.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from benchmarks.measuring import Report, options, ratio, span
from benchmarks.serving import ROOT, served_app
from retro_demo.server.workspace import new_code

DRAWN = """() => {
  window.drawn = {};
  const parts = PARTS;
  const look = () => {
    for (const [name, one] of Object.entries(parts)) {
      const there = document.querySelector(one);
      if (!(name in drawn) && there?.offsetParent && there.textContent.length > (name === 'text' ? 100 : 0))
        drawn[name] = performance.now() / 1000;
    }
    if (Object.keys(drawn).length < Object.keys(parts).length) return requestAnimationFrame(look);
    drawn.paint = performance.getEntriesByName('first-contentful-paint')[0].startTime / 1000;
  };
  look();
}"""
PARTS = {"tabs": "[role=tab]", "button": "#generate", "text": "#linked"}
DRAWN_ROWS = {
    "paint": "anything",
    "tabs": "the tabs",
    "button": "the button Generate",
    "text": "a text with its neighbors",
}
MOST = 90.0  # seconds until the page is drawn
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


@contextmanager
def opened_browser() -> Iterator[Any]:
    from playwright.sync_api import Error, sync_playwright

    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
        try:
            browser = playwright.chromium.launch(executable_path=installed_browser(), args=flags)
        except Error as error:
            raise SystemExit(
                f"There is no browser to weigh the page with ({str(error).splitlines()[0]}). "
                "Install Chromium, or call with --no-browser."
            ) from error
        yield browser
        browser.close()


def page_weight(browser: Any, url: str) -> dict[str, dict[str, float]]:
    """By kind of file: requests, kB over the wire, kB unpacked, of a first load."""
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

    page = browser.new_context().new_page()
    session = page.context.new_cdp_session(page)
    session.send("Network.enable")
    session.on("Network.requestWillBeSent", asked)
    session.on("Network.dataReceived", note(unpacked, "dataLength"))
    session.on("Network.loadingFinished", note(wire, "encodedDataLength"))
    page.goto(url)
    page.get_by_role("tab").first.wait_for()
    page.wait_for_timeout(1000 * SETTLE)
    page.context.close()
    return {
        kind: {"requests": requests[kind], "wire": round(wire[kind], 1), "unpacked": round(unpacked[kind], 1)}
        for kind in sorted(requests, key=lambda kind: -wire[kind])
    }


def when_drawn(browser: Any, url: str) -> dict[str, float]:
    """Seconds from asking for the page, with an empty cache, until each of its parts is drawn."""
    page = browser.new_context(viewport={"width": 1280, "height": 800}).new_page()
    page.add_init_script(f"({DRAWN.replace('PARTS', json.dumps(PARTS))})()")
    page.goto(url)
    page.wait_for_function("() => window.drawn?.paint", timeout=1000 * MOST)
    drawn = page.evaluate("drawn")
    page.wait_for_timeout(1000 * SETTLE)  # the next load meets a server at rest
    page.context.close()
    return drawn


def ready_app(stack: ExitStack, home: Path, checkout: Path) -> str:
    """The address of a checkout's app once it has written a text, so that all it builds is built."""
    from gradio_client import Client

    home.mkdir(exist_ok=True)
    url, _ = stack.enter_context(served_app(home, program=checkout / "app.py"))
    first_token(Client(url, verbose=False)).result()
    return url


def weigh(report: Report, home: Path, rounds: int, beside: Path | None) -> None:
    """What the first load of the page weighs, and when its parts are drawn."""
    checkouts = {"here": ROOT} | ({"beside": beside} if beside else {})
    with ExitStack() as stack:
        homes = {name: home if name == "here" else Path(f"{home}-beside") for name in checkouts}
        urls = {name: ready_app(stack, homes[name], checkout) for name, checkout in checkouts.items()}
        browser = stack.enter_context(opened_browser())
        loads = {name: page_weight(browser, url) for name, url in urls.items()}
        drawn: dict[str, list[dict[str, float]]] = {name: [] for name in urls}
        for turn in range(rounds + 1):  # the first does not count
            for name, url in urls.items():
                seen = when_drawn(browser, url)
                if turn:
                    drawn[name].append(seen)
    for name, weights in loads.items():
        sums = [round(sum(weight[part] for weight in weights.values()), 1) for part in ("wire", "unpacked")]
        everything = sum(int(weight["requests"]) for weight in weights.values())
        report.table(
            f"The first load of the page, nothing cached ({name}):",
            ("kind", "requests", "kB over the wire", "kB unpacked"),
            [
                *((kind.lower(), *weight.values()) for kind, weight in weights.items()),
                ("all", everything, *sums),
            ],
        )
    seconds = {
        name: {part: [one[part] for one in seen] for part in DRAWN_ROWS} for name, seen in drawn.items()
    }
    rows = [
        (
            words,
            *(span(times[part], 2) for times in seconds.values()),
            *((str(ratio(seconds["here"][part], seconds["beside"][part])),) if beside else ()),
        )
        for part, words in DRAWN_ROWS.items()
    ]
    head = ("drawn after, s", *seconds, *(("times as long",) if beside else ()))
    report.table(f"When the page is drawn, {rounds} loads in turns:", head, rows)
    report.figures |= {"page": loads, "drawn": seconds}


def main() -> None:
    parser = options(__doc__, rounds=3)
    parser.add_argument("--home", default=tempfile.mkdtemp(prefix="retro_demo-startup-"))
    parser.add_argument("--no-browser", action="store_true", help="do not weigh the page")
    parser.add_argument("--beside", type=Path, metavar="CHECKOUT", help="compare with the page of this one")
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
        weigh(report, Path(chosen.home), 2 if chosen.quick else 2 * chosen.rounds, chosen.beside)
    report.publish(chosen.json)


if __name__ == "__main__":
    main()
