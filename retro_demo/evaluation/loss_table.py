"""The loss of every measured token under every arm: one table, from which all figures are computed.

It is kept as one npz file, so the curves and buckets cost no second reading, and an evaluation that was
stopped goes on where it stood. Measuring an arm needs torch; adding up (evaluation/report.py) does not.

Shapes: W windows, L chunks of a window, C chunk length, P = (L - 1) C measured positions of a window.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from retro_demo.evaluation.arms import Arms, Windows
from retro_demo.models.retro import RETRO
from retro_demo.whole_files import replacing

LOSS = "loss:"  # before an arm's name in the file


class LossTable:
    """Losses in nats (W, P) by arm, NaN = not measured yet, over the windows of an evaluation.

    tokens (W, L C) are the windows' text; position p is token C + p of its window, so that the first
    measured position, C - 1, predicts p = 0. `size` (W, P) are the bytes of the original text.
    """

    def __init__(self, windows: Windows, tokens: np.ndarray, bytes_of_tokens: np.ndarray) -> None:
        self.windows, self.tokens = windows, tokens
        self.chunk_len = tokens.shape[1] // windows.rows.shape[1]
        targets = tokens[:, self.chunk_len :]
        self.there = targets != 0
        self.size = bytes_of_tokens[targets]
        self.losses: dict[str, np.ndarray] = {}

    @property
    def tokens_of_windows(self) -> np.ndarray:
        """Measured tokens of each window (W,)."""
        return self.there.sum(axis=1)

    def windows_for(self, tokens: int) -> int:
        """How many windows from the front hold at least so many measured tokens."""
        return int(min(len(self.windows), np.searchsorted(np.cumsum(self.tokens_of_windows), tokens) + 1))

    def missing(self, arm: str, count: int) -> np.ndarray:
        """Which of the first `count` windows this arm was not measured on."""
        if arm not in self.losses:
            return np.arange(count)
        return np.flatnonzero(np.isnan(self.losses[arm][:count, 0]))

    def add(self, arm: str, which: np.ndarray, losses: np.ndarray) -> None:
        """Keep losses (w, P) of an arm on the windows `which` (w,)."""
        table = self.losses.setdefault(arm, np.full(self.there.shape, np.nan, dtype=np.float32))
        table[which] = np.where(self.there[which], losses, 0)

    def measured(self, arms: list[str]) -> np.ndarray:
        """Which windows (W,) all of these arms were measured on."""
        return np.all([~np.isnan(self.losses[arm][:, 0]) for arm in arms], axis=0)

    def chunk_sums(self, values: np.ndarray) -> np.ndarray:
        """values (w, P) of the first windows, added up over the tokens of each chunk: (w, L - 1)."""
        kept = np.where(self.there[: len(values)], values, 0).astype(np.float64)
        return kept.reshape(len(values), -1, self.chunk_len).sum(axis=2)

    def save(self, path: Path, weights: Mapping[str, str]) -> None:
        """Write the table, with what tells of which weights it is."""
        arrays = {LOSS + arm: losses for arm, losses in self.losses.items()}
        about = np.array(json.dumps(dict(weights), sort_keys=True))
        with replacing(path) as unfinished, unfinished.open("wb") as file:
            np.savez(file, rows=self.windows.rows, about=about, **arrays)  # pyright: ignore[reportArgumentType]

    def load(self, path: Path, weights: Mapping[str, str]) -> bool:
        """Take over what `save` kept; False where there is nothing, or it is of other windows or weights."""
        if not path.exists():
            return False
        with np.load(path, allow_pickle=False) as file:
            same = str(file["about"]) == json.dumps(dict(weights), sort_keys=True)
            if not same or not np.array_equal(file["rows"], self.windows.rows):
                return False
            self.losses = {name.removeprefix(LOSS): file[name] for name in file if name.startswith(LOSS)}
        return True


@torch.inference_mode()
def read_arm(model: RETRO, arms: Arms, name: str, which: np.ndarray) -> np.ndarray:
    """Losses (w, P) of the windows `which` with the neighbors of arm `name`, in nats.

    A baseline is read with the arm "off".
    """
    device = next(model.parameters()).device
    neighbors = None
    if name != "off":
        neighbors = torch.from_numpy(arms.neighbors(name, which)).to(device)
    tokens = torch.from_numpy(arms.tokens(which)).to(device)
    losses = model.token_losses(tokens, neighbors)
    return losses[:, arms.corpus.config.chunk_len - 1 :].float().cpu().numpy()


@torch.inference_mode()
def read_prepended(
    model: RETRO, arms: Arms, which: np.ndarray, *, neighbors: bool, block: int = 32
) -> np.ndarray:
    """Losses (w, P) of a plain decoder that has the neighbors in front of its text, best one nearest to it.

    A context holds L chunks: as many neighbors of two chunks as leave room for two chunks of text, the
    chunk that is measured (found with the one before it), and the text before that chunk. So each chunk
    is read by itself. Without `neighbors` the same short text is read alone: the control.
    """
    corpus, rows = arms.corpus, arms.windows.rows[which]
    chunk_len, length = corpus.config.chunk_len, rows.shape[1]
    shown = arms.ids("on", which)[..., : prepended_neighbors(arms.k, length)]  # (w, L - 1, k)
    before = length - 2 * shown.shape[-1] - 1  # chunks of text before the measured one
    contexts, places = [], []
    for row in range(len(rows)):
        for chunk in range(1, length):
            if rows[row, chunk] < 0:
                continue
            text = rows[row, max(0, chunk - before) : chunk + 1]
            text = np.concatenate([np.full(before + 1 - len(text), -1), text])
            own = np.where((text >= 0)[:, None], corpus.chunks.tokens[text], 0).reshape(-1)
            found = corpus.chunks.with_continuation(shown[row, chunk - 1, ::-1]).reshape(-1)
            contexts.append(np.concatenate([found, own]) if neighbors else own)
            places.append((row, chunk - 1))
    device = next(model.parameters()).device
    losses = np.zeros((len(rows), length - 1, chunk_len), dtype=np.float32)
    for start in range(0, len(contexts), block):
        tokens = torch.from_numpy(np.stack(contexts[start : start + block]).astype(np.int64)).to(device)
        read = model.token_losses(tokens)[:, -chunk_len:].float().cpu().numpy()
        for (row, chunk), values in zip(places[start : start + block], read, strict=True):
            losses[row, chunk] = values
    return losses.reshape(len(rows), -1)


def prepended_neighbors(k: int, chunks_per_window: int) -> int:
    """How many neighbors of two chunks fit in front of two chunks of text; 0 where none does."""
    return max(0, min(k, (chunks_per_window - 2) // 2))
