"""What one target of a MARGE run reads in its evidence: relevance, attention, and the gain of each piece.

Also the words for people: texts, titles, and the targets to choose from.

Shapes: L layers with evidence, H heads, T tokens of the target, M evidence, S evidence length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange

from retro_demo.corpus.store import Corpus
from retro_demo.documents.sources import Document
from retro_demo.errors import UserError
from retro_demo.evidence.passages import Passages, cut_passages, nearest, other_groups
from retro_demo.evidence.reindex import Reindexing, load_reindexing, reindexed_steps
from retro_demo.explain.attribution import rank_correlation
from retro_demo.generation.marge import LoadedMarge
from retro_demo.models.layers import record_attention
from retro_demo.models.memory import MOST_EVIDENCE
from retro_demo.runs.checkpoint import MargeRun, read_marge_config
from retro_demo.runs.loading import load_own_corpus

MOST_CHOICES = 2000  # in one list to choose from


@dataclass(frozen=True)
class MargeCorpus:
    """What a run reads: its corpus cut into its passages."""

    config: MargeRun
    corpus: Corpus
    passages: Passages

    def text(self, passage: int) -> str:
        """The text of a passage, without its language and the end of the text."""
        tokens = self.passages.tokens[passage, 1:]
        eos = self.corpus.tokenizer.eos_id
        return self.corpus.tokenizer.decode(tokens[(tokens != 0) & (tokens != eos)].tolist())

    def pieces(self, tokens: np.ndarray) -> list[str]:
        """Each token as a visible label; a language stands in brackets."""
        tokenizer, names = self.corpus.tokenizer, self.passages.languages
        first = tokenizer.vocab_size
        return [
            f"[{names[token - first] or 'no language'}]"
            if token >= first
            else tokenizer.token_texts([token])[0]
            for token in tokens.tolist()
        ]

    @cached_property
    def groups_to_learn_from(self) -> int:
        """How many groups of training documents stand in two languages or more."""
        told = ~self.passages.held_out
        pairs = np.unique(np.stack([self.passages.group, self.passages.language])[:, told], axis=1)
        _, languages = np.unique(pairs[0], return_counts=True)
        return int((languages > 1).sum())

    def in_language(self, passage: int, language: str) -> int | None:
        """The passage of the same group in a language: of the same number in its document, or the last.

        None where the group has none, or the passage itself is in that language.
        """
        passages = self.passages
        if language not in passages.languages:
            return None
        number = passages.languages.index(language)
        if passages.language[passage] == number:
            return None
        same = np.flatnonzero((passages.group == passages.group[passage]) & (passages.language == number))
        if not len(same):
            return None
        same = same[passages.document[same] == passages.document[same[0]]]
        return int(same[min(int(passages.position[passage]), len(same) - 1)])

    def about(self, passage: int) -> dict[str, str]:
        """Id, title, language and group of a passage's document; `name` tells its passages apart."""
        document = self.corpus.documents[int(self.passages.document[passage])]
        index = int(self.passages.position[passage])
        name = document.id + (f" · passage {index + 1}" if index else "")
        title = document.title or document.id
        return {
            "id": document.id,
            "title": title,
            "language": document.lang,
            "group": document.group,
            "name": name,
        }


def load_marge_corpus(folder: Path) -> MargeCorpus:
    """Raises UserError for a run of another model, or where its corpus is gone or has changed."""
    config = read_marge_config(folder)
    corpus = load_own_corpus(folder, config)
    return MargeCorpus(
        config, corpus, cut_passages(corpus, config.evidence.passage_len, config.network.languages)
    )


def corpus_of(run: LoadedMarge) -> MargeCorpus:
    """What a loaded run reads."""
    return MargeCorpus(run.config, run.corpus, run.passages)


@dataclass(frozen=True)
class Choices:
    """A list to choose from: (what it is called, value), evenly chosen of `total` where these are many."""

    offered: list[tuple[str, Any]]
    total: int

    @property
    def cut(self) -> str:
        """What is missing, in a sentence; "" where nothing is."""
        if len(self.offered) == self.total:
            return ""
        return f"{len(self.offered):,} of {self.total:,} are listed, evenly chosen."


def targets_of(
    source: MargeCorpus, *, held_out: bool, languages: Sequence[str] = (), most: int = MOST_CHOICES
) -> Choices:
    """First passages that are held out, or not, in some languages (none: in all); values are passage ids."""
    passages = source.passages
    kind = passages.held_out if held_out else ~passages.held_out & ~passages.database_only
    if languages:
        known = [passages.languages.index(name) for name in languages if name in passages.languages]
        kind = kind & np.isin(passages.language, known)
    ids = np.flatnonzero(kind & (passages.position == 0))
    about = [(int(i), source.about(int(i))) for i in _spread(ids, most)]
    return Choices([(f"{one['name']} · {one['title']}"[:90], i) for i, one in about], len(ids))


def documents_of(source: MargeCorpus, language: str | None = None, most: int = MOST_CHOICES) -> Choices:
    """Documents to write from, in a language (None: in all); values are their ids."""
    found = [one for one in source.corpus.documents if language is None or one.lang == language]
    shown = [found[i] for i in _spread(np.arange(len(found)), most)]
    return Choices([(f"{one.id} · {one.title}"[:90], one.id) for one in shown], len(found))


def example_evidence(source: MargeCorpus) -> tuple[str, list[str]]:
    """A language to write in and ids of evidence to begin with: a held-out text, from another language.

    The longest text that is held out (else of any) and stands in a group of several languages, an English
    one where there is any; its evidence is the text of the group with most words in common.
    """
    corpus = source.corpus
    groups: dict[str, list[Document]] = {}
    for one in corpus.documents:
        groups.setdefault(one.group, []).append(one)
    whole = {name: texts for name, texts in groups.items() if len({one.lang for one in texts}) > 1}
    held_out = [one for one, held in zip(corpus.documents, corpus.held_out, strict=True) if held]
    fit = [one for one in held_out if one.group in whole] or [
        one for texts in whole.values() for one in texts
    ]
    if not fit:  # nothing is told in two languages: any text is evidence
        return corpus.documents[0].lang, [corpus.documents[0].id]
    written = max(fit, key=lambda one: (one.lang == "en", len(one.text)))
    words = set(written.text.split())
    others = [one for one in whole[written.group] if one.lang != written.lang]
    return written.lang, [max(others, key=lambda one: len(words & set(one.text.split()))).id]


def _spread(ids: np.ndarray, most: int) -> np.ndarray:
    """At most so many of the ids (N,), evenly chosen."""
    return ids[np.unique(np.linspace(0, len(ids) - 1, min(len(ids), most)).astype(int))]


def reindexing(folder: Path, step: int) -> Reindexing:
    """The re-index before `step`; raises UserError where it is gone."""
    found = load_reindexing(folder, step)
    if found is None:
        raise UserError(f"The re-index before step {step} of {folder.name} is gone. Choose another one.")
    return found


def reindexing_at(folder: Path, index: int) -> Reindexing:
    """The re-index at an index (0: the first), else the nearest one; UserError where the run kept none."""
    steps = reindexed_steps(folder)
    if not steps:
        raise UserError(f"{folder.name} has kept no re-index. Train it further.")
    return reindexing(folder, steps[min(max(int(index), 0), len(steps) - 1)])


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

    def attention_scores(self, piece: int, layer: int | None, head: int | None) -> np.ndarray:
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
