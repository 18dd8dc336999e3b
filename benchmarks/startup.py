"""How long a visitor waits: from starting the app to an answering page, and to the first token.

    .venv/bin/python -m benchmarks.startup [--home FOLDER] [--rounds 3]

Starts app.py on a free port, waits for the page, and asks the shipped run for a few tokens through
the public endpoint. The first round fills the page cache and builds the sample corpus.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.request import urlopen

ROOT = Path(__file__).resolve().parent.parent


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def one_round(home: str) -> dict[str, float]:
    """Seconds to the page, to a first token asked at once, and to a first token when all is warm."""
    from gradio_client import Client

    from retro_demo.workspace import new_code

    port = free_port()
    url = f"http://127.0.0.1:{port}/"
    begun = time.perf_counter()
    server = subprocess.Popen(
        [sys.executable, str(ROOT / "app.py"), "--host", "127.0.0.1", "--port", str(port)],
        env=os.environ | {"RETRO_DEMO_HOME": home},
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
    )
    try:
        while True:
            try:
                urlopen(url, timeout=1).read()
                break
            except OSError:
                time.sleep(0.05)
        seconds = {"page": time.perf_counter() - begun}
        client = Client(url, verbose=False)
        for name in ("first_token_cold", "first_token_warm"):
            asked = time.perf_counter()
            job = client.submit(
                new_code(),
                "sample:factbook-retrofit",
                "Introduction",
                8,
                0.8,
                0,
                0.95,
                7,
                "on",
                api_name="/generate",
            )
            next(said for said in job if said["new_tokens"])  # before: that the sample is being built
            seconds[name] = time.perf_counter() - asked
            job.result()
        return seconds
    finally:
        server.terminate()
        server.wait(20)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--home", default=tempfile.mkdtemp(prefix="retro_demo-startup-"))
    options.add_argument("--rounds", type=int, default=3)
    chosen = options.parse_args()
    rounds = [one_round(chosen.home) for _ in range(chosen.rounds)]
    for name in rounds[0]:
        print(f"{name:<18}" + "".join(f"{result[name]:8.2f} s" for result in rounds))
    print(json.dumps(rounds))


if __name__ == "__main__":
    main()
