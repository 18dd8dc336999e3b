"""Which precision is fastest on this machine, of those that do a base no harm: measured once, then kept.

Bits per byte stay within 0.5% of float32 in bfloat16 and with 8 bits a row (docs/pretrained.md); 4 bits are
left to those who ask for them.
"""

from __future__ import annotations

import json
import platform
import time
from pathlib import Path

import torch

from retro_demo.errors import UserError
from retro_demo.files import beside
from retro_demo.models.llama import Llama, LlamaConfig
from retro_demo.models.weight_only import check_precision, has_bfloat16_units

LOSSLESS = ("float32", "bfloat16", "int8")
FILE = "precision.json"  # in the data folder
TRIAL = LlamaConfig(
    vocab_size=8192,
    dim=576,
    depth=3,
    num_heads=9,
    num_kv_heads=3,
    head_dim=64,
    ff_dim=1536,
    max_len=64,
)
ROUNDS, TOKENS = 5, 6
PATIENCE = 2.0  # seconds; a busy machine gets fewer rounds


def fastest_precision(home: Path) -> str:
    """The lossless precision in which a token is written fastest here; under three seconds, once a machine.

    Kept in the data folder `home` by processor, version of torch and threads. A folder that cannot be written
    only means that it is measured again.
    """
    machine = f"{_processor()} | torch {torch.__version__} | {torch.get_num_threads()} threads"
    kept = _kept(home / FILE)
    if kept.get(machine) in LOSSLESS:
        return kept[machine]
    seconds = token_seconds()
    best = min(seconds, key=lambda name: seconds[name])
    try:
        with beside(home / FILE) as unfinished:
            unfinished.write_text(json.dumps(kept | {machine: best}, indent=1), encoding="utf-8")
    except OSError:
        pass
    return best


def training_precision() -> str:
    """Of the base's weights in training: bfloat16 where the processor multiplies in it."""
    return "bfloat16" if has_bfloat16_units() else "float32"


def token_seconds() -> dict[str, float]:
    """Precision -> seconds for a token alone, by a small network of SmolLM2's widths; the best of 5 rounds.

    The precisions take turns, so that what else the machine does falls on all of them alike.
    """
    model = Llama(TRIAL)
    twins = {name: model.in_precision(name) for name in LOSSLESS if _is_there(name)}
    best = dict.fromkeys(twins, float("inf"))
    token = torch.zeros(1, 1, dtype=torch.int64)
    ends = time.perf_counter() + PATIENCE
    with torch.inference_mode():
        for number in range(ROUNDS):
            if number and time.perf_counter() > ends:
                break
            for name, twin in twins.items():
                cache = twin.new_cache(room=TRIAL.max_len)
                twin(token, cache)
                begun = time.perf_counter()
                for _ in range(TOKENS):
                    twin(token, cache)
                best[name] = min(best[name], (time.perf_counter() - begun) / TOKENS)
    return best


def _is_there(precision: str) -> bool:
    try:
        check_precision(precision)
    except UserError:
        return False
    return True


def _kept(path: Path) -> dict[str, str]:
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return kept if isinstance(kept, dict) else {}


def _processor() -> str:
    about = Path("/proc/cpuinfo")
    names = (
        [line for line in about.read_text().splitlines() if "model name" in line] if about.exists() else []
    )
    return names[0].split(":")[1].strip() if names else platform.processor() or platform.machine()
