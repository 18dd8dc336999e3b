"""What one target makes of its evidence: relevance, attention, and what each piece is worth to its loss.

Shapes: L layers with evidence, H heads, T tokens of the target, M evidence, S evidence length.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange

from retro_demo.errors import UserError
from retro_demo.evidence.evidence import nearest, other_groups
from retro_demo.explain.evidence_run import corpus_of
from retro_demo.explain.explain import rank_correlation
from retro_demo.generation.marge_writing import LoadedMarge
from retro_demo.models.attention import record_attention

MOST_EVIDENCE = 32
RANDOM_DRAWS = 4  # of evidence without content, for the mean


@dataclass(frozen=True)
class EvidenceReading:
    """A target and the evidence that was found for it; all losses are means over its tokens, in nats."""

    target: int
    """passage id"""
    ids: np.ndarray
    """int (M,): passage ids, most relevant first"""
    tokens: np.ndarray
    """int (T,): the target, its language first, without padding"""
    evidence: np.ndarray
    """int (M, S), padded with 0"""
    relevance: np.ndarray
    """float (M,): f"""
    weights: np.ndarray
    """float (L, H, T - 1, M, S): the attention of the positions that predict the tokens after the first"""
    loss: float
    without: np.ndarray
    """float (M,): the loss with that piece of evidence removed"""
    loss_none: float
    loss_random: float | None
    """with as many passages of other groups, mean of RANDOM_DRAWS; None where none of them may be evidence"""
    betas: list[float]

    @property
    def mass(self) -> np.ndarray:
        """(L, M): the share of attention that each piece of evidence received, over heads and tokens."""
        return self.weights.sum(axis=4).mean(axis=(1, 2))

    @property
    def effect(self) -> np.ndarray:
        """(M,): how much the loss rises where a piece is removed; above 0 it helped."""
        return self.without - self.loss

    def agreement(self, layer: int | None) -> float | None:
        """Spearman's rho of relevance and mass, in one layer or (None) in the mean of all."""
        return rank_correlation(self.relevance, self.mass_of(layer))

    def mass_of(self, layer: int | None) -> np.ndarray:
        """(M,): `mass` of one layer, or (None) the mean of all."""
        return self.mass.mean(axis=0) if layer is None else self.mass[layer]

    def heat(self, piece: int, layer: int | None, head: int | None) -> np.ndarray:
        """(T - 1, tokens of the piece, language aside): attention in a layer and head, None: the mean."""
        length = int((self.evidence[piece] != 0).sum())
        weights = self.weights[:, :, :, piece, 1:length]
        weights = weights.mean(axis=0) if layer is None else weights[layer]
        return weights.mean(axis=0) if head is None else weights[head]


@dataclass(frozen=True)
class EvidenceEdit:
    """What another text in place of a piece of evidence does; the losses are those of the target."""

    piece: int
    tokens: int
    """How many of it are read, its language's included; 0: the piece was removed."""
    cut: int
    """How many stood behind the end of a passage and are not read."""
    relevance: tuple[float, float | None]
    """f before and after, None where the piece was removed"""
    mass: tuple[float, float]
    """its share of attention before and after, mean of layers"""
    loss: tuple[float, float]


def read_evidence(run: LoadedMarge, target: int, count: int) -> EvidenceReading:
    """Find the evidence of a passage as it would be found now, and read it.

    A held-out passage looks among all passages, as in an evaluation; a training passage among training
    passages. Raises UserError where nothing may be its evidence.
    """
    passages, config = run.passages, run.config.evidence
    if not 0 <= target < len(passages):
        raise UserError(f"There is no passage {target}; this corpus has {len(passages)}. Choose one of them.")
    if not 1 <= count <= MOST_EVIDENCE:
        raise UserError(f"You ask for {count} pieces of evidence. Choose from 1 to {MOST_EVIDENCE}.")
    if not run.model.layers:
        raise UserError("This run has no layers that read evidence. Choose another run.")
    candidates = np.ones(len(passages), dtype=bool) if passages.held_out[target] else ~passages.held_out
    found, _ = nearest(run.vectors, passages, config, np.array([target]), candidates, count)
    ids = found[0][found[0] >= 0]
    if not len(ids):
        raise UserError(
            "Nothing may be evidence for this passage: its own document"
            + (" and language are" if config.evidence_languages == "other" else " is")
            + " left out, and there is no other. Choose another target."
        )
    tokens = passages.tokens[target]
    tokens = tokens[tokens != 0]
    evidence = passages.tokens[ids]
    evidence = evidence[:, : int((evidence != 0).sum(axis=1).max())]
    keep = np.vstack([np.ones(len(ids), dtype=bool), ~np.eye(len(ids), dtype=bool)])
    losses, relevance, weights = _losses(run, tokens, evidence, keep)
    return EvidenceReading(
        target=target,
        ids=ids,
        tokens=tokens,
        evidence=evidence,
        relevance=relevance,
        weights=weights,
        loss=float(losses[0]),
        without=losses[1:],
        loss_none=_loss(run, tokens, None),
        loss_random=_loss_random(run, target, tokens, np.flatnonzero(candidates), len(ids)),
        betas=run.model.betas(),
    )


def edit_evidence(run: LoadedMarge, reading: EvidenceReading, piece: int, text: str) -> EvidenceEdit:
    """Read the target again with another text in place of a piece, in its language; "" removes the piece."""
    if not 0 <= piece < len(reading.ids):
        raise UserError(f"There is no piece {piece + 1} of this evidence; choose one of {len(reading.ids)}.")
    size = run.passages.tokens.shape[1]
    words = _tokens(run, reading, piece, text)
    edited = [int(reading.evidence[piece, 0]), *words][:size]
    before = (float(reading.relevance[piece]), float(reading.mass_of(None)[piece]))
    if not words:
        alone = len(reading.ids) == 1
        loss = reading.loss_none if alone else float(reading.without[piece])
        return EvidenceEdit(piece, 0, 0, (before[0], None), (before[1], 0.0), (reading.loss, loss))
    width = max(len(edited), reading.evidence.shape[1])
    evidence = np.pad(reading.evidence, ((0, 0), (0, width - reading.evidence.shape[1])))
    evidence[piece] = np.pad(edited, (0, width - len(edited)))
    everything = np.ones((1, len(evidence)), dtype=bool)
    losses, relevance, weights = _losses(run, reading.tokens, evidence, everything)
    mass = float(weights[:, :, :, piece].sum(axis=3).mean())
    return EvidenceEdit(
        piece,
        len(edited),
        1 + len(words) - len(edited),
        (before[0], float(relevance[piece])),
        (before[1], mass),
        (reading.loss, float(losses[0])),
    )


def _tokens(run: LoadedMarge, reading: EvidenceReading, piece: int, text: str) -> list[int]:
    """The tokens of an edited piece; those that it had where nothing was changed, and its end of the text."""
    if not text.strip():
        return []
    old = reading.evidence[piece][reading.evidence[piece] != 0][1:].tolist()
    if text == corpus_of(run).text(int(reading.ids[piece])):
        return old
    tokenizer = run.tokenizer
    return tokenizer.encode(text) + ([tokenizer.eos_id] if old[-1:] == [tokenizer.eos_id] else [])


@torch.inference_mode()
def _losses(
    run: LoadedMarge, tokens: np.ndarray, evidence: np.ndarray, keep: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """tokens (T,), evidence (M, S), keep bool (B, M): what is seen in each reading.

    Gives the mean losses (B,), and of the first reading relevance (M,) and weights (L, H, T - 1, M, S).
    """
    device = run.model.embedding.weight.device
    target, pieces = (torch.from_numpy(ids).to(device) for ids in (tokens[None], evidence))
    losses, relevance, weights = [], None, None
    for row in torch.from_numpy(keep).to(device):  # one at a time: the attention of all at once is large
        with record_attention(run.model) as seen:
            out = run.model(target, pieces, visible=row[None])
        losses.append(_mean_loss(out.logits, target))
        if weights is None:
            relevance = out.relevance[0]
            taps = [seen[f"layers.{i}.read"] for i in range(len(run.model.layers))]
            stacked = torch.stack(taps)[:, 0, :, :-1]
            weights = rearrange(stacked, "l h t (m s) -> l h t m s", m=len(evidence))
    assert relevance is not None
    assert weights is not None
    return np.array(losses), relevance.cpu().double().numpy(), weights.cpu().double().numpy()


@torch.inference_mode()
def _loss(run: LoadedMarge, tokens: np.ndarray, evidence: np.ndarray | None) -> float:
    """tokens (T,), evidence (M, S) or None for none -> mean loss."""
    device = run.model.embedding.weight.device
    target = torch.from_numpy(tokens)[None].to(device)
    pieces = None if evidence is None else torch.from_numpy(evidence).to(device)
    return _mean_loss(run.model(target, pieces).logits, target)


def _loss_random(
    run: LoadedMarge, target: int, tokens: np.ndarray, candidates: np.ndarray, count: int
) -> float | None:
    """Mean loss with `count` of the candidates (ids) of other groups in place of the evidence: no content."""
    others = candidates[other_groups(run.passages, run.config.evidence, target, candidates)]
    if not len(others):
        return None
    rng = np.random.default_rng([RANDOM_DRAWS, target])
    draws = [rng.choice(others, min(count, len(others)), replace=False) for _ in range(RANDOM_DRAWS)]
    return float(np.mean([_loss(run, tokens, run.passages.tokens[ids]) for ids in draws]))


def _mean_loss(logits: torch.Tensor, target: torch.Tensor) -> float:
    """logits (1, T, V), target (1, T) -> nats a token."""
    return float(torch.nn.functional.cross_entropy(logits[0, :-1].cpu().double(), target[0, 1:].cpu()))
