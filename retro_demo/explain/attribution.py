"""What retrieval did to each token of a finished text: loss with and without, and which neighbor caused it.

All of it comes from a few batched forwards over the text. Token ids in, numbers out: this module does not
know corpora, folders or the page.

Entry i of an array (T,) is about what was expected after token i, and so about token i + 1.

Shapes: T tokens, L = T // C chunks, C chunk length, K neighbors, R = 2 C neighbor length (N, then F).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb

import numpy as np
import torch
from torch import Tensor

from retro_demo.models.memory import numbers_held
from retro_demo.models.reader import Reader
from retro_demo.models.retro import RETRO

TOP = 10
EXACT = 6  # up to so many neighbors every coalition is read
COALITIONS = 2**EXACT  # beyond, as many coalitions as that are enough
ROWS = 8  # sequences in one forward
NUMBERS = 1 << 28  # that all of them hold together, where that leaves more than one

Coalition = tuple[int, ...]
Losses = Callable[[Sequence[Coalition]], dict[Coalition, np.ndarray]]


@dataclass(frozen=True)
class Numbers:
    """What a text was expected to be, with and without its neighbors.

    loss_on, loss_off, loss_n, loss_f (T,): nats; with all neighbors, with none, with N only, with F
    only; the last entry has no target and is NaN. shapley (T, K): by how many nats each neighbor
    lowered the loss. top_ids, top_probabilities (2, T, TOP): the likeliest next tokens, on and off.
    permutations: 0 where shapley is exact, else how many orders of the neighbors it averages.
    """

    loss_on: np.ndarray
    loss_off: np.ndarray
    loss_n: np.ndarray
    loss_f: np.ndarray
    shapley: np.ndarray
    top_ids: np.ndarray
    top_probabilities: np.ndarray
    permutations: int = 0

    @property
    def gain(self) -> np.ndarray:
        """What retrieval was worth to each token (T,), in nats: above 0 it helped."""
        return self.loss_off - self.loss_on


def measure(model: RETRO | Reader, tokens: np.ndarray, neighbors: np.ndarray) -> Numbers:
    """The numbers of a text: tokens (T,), neighbors (L, K, R); K = 0 or L = 0 where nothing was read."""
    on, off = (log_probabilities(model, tokens, read)[0] for read in (neighbors[None], None))
    titles = model.config.title_len
    half = titles + (neighbors.shape[2] - titles) // 2 if neighbors.ndim == 3 else 0
    parts = np.stack([neighbors, neighbors])
    parts[0, ..., half:] = parts[1, ..., titles:half] = model.config.pad_id
    loss_n, loss_f = read_losses(model, tokens, parts)
    loss_on, loss_off = (losses_of(one[None], tokens)[0] for one in (on, off))
    num_neighbors = neighbors.shape[1] if len(neighbors) else 0
    everyone = tuple(range(num_neighbors))

    def losses(wanted: Sequence[Coalition]) -> dict[Coalition, np.ndarray]:
        rest = [coalition for coalition in wanted if coalition not in ((), everyone)]
        return coalition_losses(model, tokens, neighbors, rest) | {everyone: loss_on, (): loss_off}

    shapley, permutations = attribute(num_neighbors, losses, len(tokens))
    padding = int((tokens == model.config.pad_id).cumprod().sum())  # before a prompt
    for one in (loss_on, loss_off, loss_n, loss_f):
        one[: max(0, padding - 1)] = 0
    tops = [one.exp().topk(min(TOP, one.shape[-1])) for one in (on, off)]
    return Numbers(
        loss_on,
        loss_off,
        loss_n,
        loss_f,
        shapley,
        np.stack([top.indices.cpu().numpy() for top in tops]).astype(np.int32),
        np.stack([top.values.cpu().numpy() for top in tops]).astype(np.float32),
        permutations,
    )


@torch.inference_mode()
def log_probabilities(model: RETRO | Reader, tokens: np.ndarray, neighbors: np.ndarray | None) -> Tensor:
    """tokens (T,), neighbors (B, L, K, R) -> (B, T, V) on the model's device; None reads nothing, B = 1."""
    device = next(model.parameters()).device
    read = None if neighbors is None else torch.from_numpy(neighbors.astype(np.int64)).to(device)
    batch = 1 if read is None else len(read)
    text = torch.from_numpy(tokens.astype(np.int64)).to(device).expand(batch, -1)
    if read is not None and not read.numel():
        read = None
    return model(text, read).float().log_softmax(dim=-1)


def losses_of(log_probabilities: Tensor, tokens: np.ndarray) -> np.ndarray:
    """(B, T, V), tokens (T,) -> the loss of each next token (B, T) in nats; the last is NaN."""
    following = torch.from_numpy(tokens[1:].astype(np.int64)).to(log_probabilities.device)
    picked = log_probabilities[:, :-1].gather(-1, following.expand(len(log_probabilities), -1)[..., None])
    losses = -picked[..., 0].cpu().double().numpy()
    return np.pad(losses, ((0, 0), (0, 1)), constant_values=np.nan)


def read_losses(model: RETRO | Reader, tokens: np.ndarray, reads: np.ndarray) -> np.ndarray:
    """The losses (B, T) of a text tokens (T,) with each of the neighbors reads (B, L, K, R), as `losses_of`.

    So many are read in one forward as NUMBERS allows, ROWS at most.
    """
    rows = max(1, min(ROWS, NUMBERS // numbers_held(model.config, len(tokens), reads.shape[2])))
    parts = np.split(reads, range(rows, len(reads), rows))
    return np.concatenate([losses_of(log_probabilities(model, tokens, part), tokens) for part in parts])


def coalition_losses(
    model: RETRO | Reader, tokens: np.ndarray, neighbors: np.ndarray, coalitions: Iterable[Coalition]
) -> dict[Coalition, np.ndarray]:
    """The losses (T,) where only these neighbors, by rank, are read at every chunk.

    The others are absent from encoder and cross-attention alike, which is what padding means there.
    """
    by_size: dict[int, list[Coalition]] = {}
    for coalition in coalitions:
        by_size.setdefault(len(coalition), []).append(coalition)
    losses: dict[Coalition, np.ndarray] = {}
    for alike in by_size.values():
        reads = np.stack([neighbors[:, list(coalition)] for coalition in alike])
        losses |= zip(alike, read_losses(model, tokens, reads), strict=True)
    return losses


def attribute(num_neighbors: int, losses: Losses, length: int) -> tuple[np.ndarray, int]:
    """Shapley values (T, K) of a game in which coalitions of neighbors lower the loss (T,).

    They add up to the loss of nobody minus the loss of all. Exact up to EXACT neighbors; beyond,
    the mean over orders in pairs of opposites, as many as COALITIONS allow, which adds up as well.
    Returns the number of orders too, 0 for exact. Source: Shapley 1953; Castro et al. 2009.
    """
    if num_neighbors <= EXACT:
        players = range(num_neighbors)
        measured = losses([c for size in range(num_neighbors + 1) for c in combinations(players, size)])
        values = np.zeros((length, num_neighbors))
        for coalition, loss in measured.items():
            for player in set(players) - set(coalition):
                weight = 1 / (num_neighbors * comb(num_neighbors - 1, len(coalition)))
                values[:, player] += weight * (loss - measured[tuple(sorted((*coalition, player)))])
        return values, 0
    orders = sample_orders(num_neighbors, max(1, COALITIONS // (2 * (num_neighbors - 1))))
    joined = [[tuple(sorted(order[:size])) for size in range(num_neighbors + 1)] for order in orders]
    measured = losses(list({coalition for path in joined for coalition in path}))
    values = np.zeros((length, num_neighbors))
    for order, path in zip(orders, joined, strict=True):
        for player, before, after in zip(order, path, path[1:], strict=False):
            values[:, player] += (measured[before] - measured[after]) / len(orders)
    return values, len(orders)


def sample_orders(num_neighbors: int, pairs: int, seed: int = 0) -> list[list[int]]:
    """Orders of the neighbors, each followed by its opposite: early in one is late in the other."""
    rng = np.random.default_rng(seed)
    drawn = [rng.permutation(num_neighbors).tolist() for _ in range(pairs)]
    return [order for one in drawn for order in (one, one[::-1])]


def rank_correlation(one: np.ndarray, other: np.ndarray) -> float | None:
    """Spearman's rho of two rows of numbers; None where either is constant or there are fewer than 3."""
    if len(one) < 3:
        return None
    ranks = np.stack([_ranks(one), _ranks(other)])
    if (np.ptp(ranks, axis=1) == 0).any():
        return None
    return float(np.corrcoef(ranks)[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 0 on; equal values share their mean rank."""
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts + 1) / 2)[which]
