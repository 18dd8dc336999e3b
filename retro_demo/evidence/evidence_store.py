"""What a re-index found, kept in the run folder: evidence/000300.safetensors for the one before step 300.

All pairs, and for the page the embeddings of up to SHOWN passages in half precision: always the same
ones, first passages of documents before others. Each file is written beside itself and renamed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from retro_demo.distributed import ALONE, World
from retro_demo.errors import UserError
from retro_demo.evidence.evidence import (
    Pairs,
)
from retro_demo.models.marge import MARGE
from retro_demo.whole_files import beside

SHOWN = 2048


@dataclass(frozen=True)
class Reindexing:
    """One re-index: pairs, embeddings (R, D) of length 1 of the passages `rows` (R,), and its figures.

    `matrix` (languages, languages) is the recall from each language to each other, where there is any.
    """

    step: int
    pairs: Pairs
    rows: np.ndarray
    vectors: np.ndarray
    figures: dict[str, Any]
    matrix: np.ndarray | None = None


def shown_rows(place: np.ndarray) -> np.ndarray:
    """Ids of the passages whose embeddings are kept; place (P,): their numbers within their documents."""
    firsts, others = np.flatnonzero(place == 0), np.flatnonzero(place > 0)
    if len(firsts) > SHOWN:  # spread evenly through the documents
        return firsts[np.unique(np.linspace(0, len(firsts) - 1, SHOWN).astype(np.int64))]
    return np.sort(np.concatenate([firsts, others[: SHOWN - len(firsts)]]))


def save_reindexing(folder: Path, found: Reindexing) -> None:
    """Keep a re-index in the run `folder`."""
    (folder / "evidence").mkdir(exist_ok=True)
    path = _path(folder, found.step)
    tensors = {
        "target": found.pairs.target.astype(np.int32),
        "evidence": found.pairs.evidence.astype(np.int32),
        "relevance": found.pairs.relevance,
        "rows": found.rows,
        "vectors": found.vectors.astype(np.float16),
    }
    if found.matrix is not None:
        tensors["matrix"] = found.matrix
    with beside(path) as unfinished:
        save_file(
            {name: np.ascontiguousarray(array) for name, array in tensors.items()},
            unfinished,
            metadata={"step": str(found.step), "figures": json.dumps(found.figures)},
        )


def load_reindexing(folder: Path, step: int) -> Reindexing | None:
    """The re-index before `step`, its vectors in half precision; None where there is none."""
    path = _path(folder, step)
    if not path.exists():
        return None
    try:
        with safe_open(path, "numpy") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            meta = file.metadata()
        target, evidence = (tensors[name].astype(np.int64) for name in ("target", "evidence"))
        pairs = Pairs(target, evidence, tensors["relevance"])
        figures = json.loads(meta["figures"])
        rows, vectors = tensors["rows"], tensors["vectors"]
        return Reindexing(int(meta["step"]), pairs, rows, vectors, figures, tensors.get("matrix"))
    except (SafetensorError, KeyError, ValueError, TypeError, OSError) as error:
        raise UserError(
            f"{path.name} of the run {folder.name} is damaged ({error}). Train it anew."
        ) from error


def reindexed_steps(folder: Path) -> list[int]:
    """The steps before which the run re-indexed, in order."""
    return sorted(int(path.stem) for path in (folder / "evidence").glob("[0-9]*.safetensors"))


def _path(folder: Path, step: int) -> Path:
    return folder / "evidence" / f"{step:06d}.safetensors"


@torch.inference_mode()
def embed_passages(model: MARGE, tokens: np.ndarray, world: World = ALONE) -> np.ndarray:
    """tokens (P, S), padded -> embeddings of length 1, float32 (P, D), as the loss has them.

    In eval mode and with masks, so padding and dropout change nothing; short passages go together.
    Several processes take turns and give the same vectors, to the bit, as one.
    """
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    pad = model.config.pad_id
    lengths = (tokens != pad).sum(axis=1)
    order = np.argsort(lengths, kind="stable")
    vectors = np.zeros((len(tokens), model.config.dim), dtype=np.float32)
    at = turn = 0
    while at < len(order):
        count = max(1, EMBED_TOKENS // max(1, int(lengths[order[at : at + 256]].max(initial=1))))
        rows = order[at : at + min(count, 256)]
        if turn % world.size == world.rank:
            part = torch.from_numpy(tokens[rows, : max(1, lengths[rows].max())]).to(device)
            vectors[rows] = torch.nn.functional.normalize(model.embed(part), dim=-1).float().cpu().numpy()
        at, turn = at + len(rows), turn + 1
    world.add_up(vectors)
    model.train(was_training)
    return vectors


EMBED_TOKENS = 16_384  # in one forward of the encoder
