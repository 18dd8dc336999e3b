"""`python -m killed_training RUN EVENT STEP`: train, and be killed (-9) at that event of that step."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from retro_demo.training.trainer import run_training

if __name__ == "__main__":
    run, last, step = sys.argv[1:]
    for event in run_training(Path(run), lambda: False):
        if (told := event.to_json())["event"] == last and told["step"] == int(step):
            os.kill(os.getpid(), signal.SIGKILL)
