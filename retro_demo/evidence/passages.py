"""MARGE's passages, and which of them are evidence for which.

Documents of a corpus are cut into passages, which MARGE reads and writes. For each target the most relevant
passages are chosen by the embeddings of a MARGE encoder; this module decides the shards, which passages may
not be evidence, and the pairs of a shard. The model makes the embeddings, training/marge_batches.py the
batches.

Shapes: P passages, S tokens of a passage, D embedding width, E pairs, Q queries, K evidence passages.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import cast

import numpy as np

from retro_demo.corpus.store import Corpus
from retro_demo.errors import UserError
from retro_demo.evidence.hubs import nearness, search_by_margin
from retro_demo.evidence.vectors import Vectors
from retro_demo.models.config import EvidenceConfig
from retro_demo.retrieval.dense import VectorIndex, search_allowed
from retro_demo.retrieval.neighbors import Neighbors, rank


@dataclass(frozen=True)
class Passages:
    """All passages in the order of their documents; they never cross documents."""

    tokens: np.ndarray
    """int64 (P, S): the token of the language (vocabulary + its index), then text, padded with 0."""
    document: np.ndarray
    """int (P,): index into the documents of the corpus."""
    position: np.ndarray
    """int (P,): number of the passage within its document."""
    language: np.ndarray
    """int (P,): index into `languages`."""
    group: np.ndarray
    """int (P,): the same number for the same group of documents (say, translations of one text)."""
    content: np.ndarray
    """int (P,): the same number for the same text, in whatever language or document it stands."""
    held_out: np.ndarray
    """bool (P,)"""
    database_only: np.ndarray
    """bool (P,): may be evidence, never a target."""
    languages: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.document)

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each passage, its language's included, padding aside: int (P,)."""
        return (self.tokens != 0).sum(axis=1)


PER_PASSAGE = ("tokens", "document", "position", "language", "group", "content", "held_out", "database_only")


def some_passages(passages: Passages, ids: np.ndarray) -> Passages:
    """Those with these ids (Q,), in this order."""
    return replace(passages, **{name: getattr(passages, name)[ids] for name in PER_PASSAGE})


def languages_of(corpus: Corpus) -> tuple[str, ...]:
    """The languages of a corpus' documents, sorted; "" stands for documents that name none."""
    return tuple(sorted({document.lang for document in corpus.documents}))


def cut_passages(corpus: Corpus, passage_len: int, languages: tuple[str, ...] | None = None) -> Passages:
    """Each document's tokens, cut every passage_len - 1; the language's token goes before each passage.

    All text is kept; a passage that would hold nothing but the end of the text is not made.
    languages: those of a run, whose tokens they name; None: those of the corpus, sorted. Raises
    UserError where the corpus has one that the run does not know.
    """
    of_document = [document.lang for document in corpus.documents]
    known = languages_of(corpus) if languages is None else languages
    if unknown := sorted(set(of_document) - set(known)):
        raise UserError(
            f"The run knows no language {_named(unknown)}: it knows {_named(known)}. Give documents in "
            "its languages, or train a run on these."
        )
    number = {language: i for i, language in enumerate(known)}
    size = passage_len - 1
    text, document = _text_of_documents(corpus)
    lengths = np.bincount(document, minlength=len(corpus.documents))
    starts = np.cumsum(lengths) - lengths
    where = np.arange(len(text)) - starts[document]  # within the document
    # the end of the text alone makes no passage
    alone = (where > 0) & (where % size == 0) & (where == lengths[document] - 1)
    text, document, where = text[~alone], document[~alone], where[~alone]

    first = np.flatnonzero(where % size == 0)
    passage = np.cumsum(where % size == 0) - 1
    owner = document[first]
    language = np.array([number[name] for name in of_document])[owner]
    tokens = np.zeros((len(first), passage_len), dtype=np.int64)
    tokens[:, 0] = corpus.tokenizer.vocab_size + language
    tokens[passage, 1 + where % size] = text

    groups = {group: i for i, group in enumerate(dict.fromkeys(d.group for d in corpus.documents))}
    return Passages(
        tokens=tokens,
        document=owner,
        position=where[first] // size,
        language=language,
        group=np.array([groups[document.group] for document in corpus.documents])[owner],
        content=_numbers_of_texts(tokens[:, 1:]),
        held_out=corpus.held_out[owner],
        database_only=corpus.database_only[owner],
        languages=known,
    )


def _text_of_documents(corpus: Corpus) -> tuple[np.ndarray, np.ndarray]:
    """All tokens of all documents in a row, padding aside, and the document of each."""
    chunks = corpus.chunks
    flat = chunks.tokens.reshape(-1)
    document = np.repeat(chunks.document.astype(np.int64), chunks.tokens.shape[1])
    return flat[flat != 0], document[flat != 0]


def _numbers_of_texts(tokens: np.ndarray) -> np.ndarray:
    """Equal rows have equal numbers, int (P,).

    The token that ends a text parts none: a passage has it only where it is not full of text.
    """
    numbers: dict[bytes, int] = {}
    return np.array([numbers.setdefault(row.tobytes(), len(numbers)) for row in tokens], dtype=np.int64)


def _named(languages: tuple[str, ...] | list[str]) -> str:
    return ", ".join(language or "(none given)" for language in languages)


# Memory needs a limit on what one target can hold: many times the average, so that it hardly ever binds.
MOST_OVER_AVERAGE, MOST_BEYOND = 8, 16
MOST_MARGIN_OVER_AVERAGE = 3  # margins are alike from target to target
CHANCE_SAMPLE = 500


@dataclass(frozen=True)
class Pairs:
    """Pairs of a target and a passage of its evidence, sorted by target, then best first."""

    target: np.ndarray
    """int64 (E,): passage ids"""
    evidence: np.ndarray
    """int64 (E,): passage ids"""
    relevance: np.ndarray
    """float32 (E,): cosine, in steps of 1e-6, so that float noise decides no tie. Best first is by what the
    pairs were chosen by: this, or the margin."""

    def __len__(self) -> int:
        return len(self.target)


def shard(passages: Passages, config: EvidenceConfig, seed: int) -> np.ndarray:
    """The number of each passage's shard, int (P,).

    What `shard_by` names stays together. Drawn at random, groups (or documents) fill a shard until
    the next does not fit; one that is larger than a shard has one of its own.
    """
    if len(passages) <= config.shard_size:
        return np.zeros(len(passages), dtype=np.int64)
    of = passages.group if config.shard_by == "group" else passages.document
    units, unit, sizes = np.unique(of, return_inverse=True, return_counts=True)
    shards = np.zeros(len(units), dtype=np.int64)
    number, filled = 0, 0
    for i in np.random.default_rng([seed, 1]).permutation(len(units)):
        if filled and filled + sizes[i] > config.shard_size:
            number, filled = number + 1, 0
        shards[i] = number
        filled += sizes[i]
    return shards[unit]


def find_pairs(
    embeddings: Vectors,
    passages: Passages,
    config: EvidenceConfig,
    *,
    targets: np.ndarray,
    candidates: np.ndarray,
    seed: int,
) -> Pairs:
    """The most relevant pairs of each shard: `evidence_per_target` times its targets, over all of them.

    embeddings (P, D), of any length, or by words; targets and candidates bool (P,), which may overlap. A
    target gets as many as are among the best of its shard, at most 8 times the average and 16 (by margins
    3 times); the others rest. Never a pair: a passage with itself or its text, with its document unless
    `same_document`, with its language where `evidence_languages` is "other". Equal relevance is ordered
    by the ids, so the same input gives the same pairs. With `hub_neighbors` the margin of a pair takes
    the place of its relevance (evidence/hubs.py) in all but the figure that is kept. The search is exact
    up to the 100,000 candidates in a shard that dense.choose_factory takes a flat index for, and
    approximate beyond; by words it goes by their sketch.
    """
    over = MOST_MARGIN_OVER_AVERAGE if config.hub_neighbors else MOST_OVER_AVERAGE
    most = MOST_BEYOND + math.ceil(over * config.evidence_per_target)
    shards = shard(passages, config, seed)
    kept: list[np.ndarray] = [np.zeros((4, 0))]
    search = _Search(embeddings, passages, config, targets | candidates)
    for number in np.unique(shards):
        own = np.flatnonzero(targets & (shards == number))
        others = np.flatnonzero(candidates & (shards == number))
        found, relevance = search(own, others, min(most, max(1, len(others))))
        valid = found.ids >= 0
        parts = (np.repeat(own, valid.sum(axis=1)), found.ids[valid], found.scores[valid], relevance[valid])
        pairs = np.stack(parts)
        best = np.lexsort((pairs[1], pairs[0], -pairs[2]))
        kept.append(pairs[:, best[: round(config.evidence_per_target * len(own))]])
    pairs = np.concatenate(kept, axis=1)  # float64 holds ids and float32 exactly
    pairs = pairs[:, np.lexsort((pairs[1], -pairs[2], pairs[0]))]
    return Pairs(pairs[0].astype(np.int64), pairs[1].astype(np.int64), pairs[3].astype(np.float32))


def random_pairs(
    pairs: Pairs,
    passages: Passages,
    config: EvidenceConfig,
    *,
    candidates: np.ndarray,
    shard_seed: int,
    seed: int,
) -> Pairs:
    """The control without content: each target keeps its number of pairs, with evidence drawn at random.

    Drawn from the candidates (P,) of its own shard, as `find_pairs` cuts it with `shard_seed`, by the
    same rules and never from its own group; from all shards where its own holds none of another group.
    A target for which there are fewer has fewer. Relevance is 0: nothing is claimed.
    """
    rng = np.random.default_rng([seed, 3])
    shards = shard(passages, config, shard_seed)
    everywhere = np.flatnonzero(candidates)
    among = {number: everywhere[shards[everywhere] == number] for number in np.unique(shards[pairs.target])}
    drawn = []
    for target, count in zip(*np.unique(pairs.target, return_counts=True), strict=True):
        for ids in (among[shards[target]], everywhere):
            allowed = ids[other_groups(passages, config, target, ids)]
            if len(allowed):
                break
        drawn.append(np.sort(rng.choice(allowed, min(count, len(allowed)), replace=False)))
    sizes = [len(one) for one in drawn]
    evidence = np.concatenate([*drawn, np.zeros(0, dtype=np.int64)])
    return Pairs(np.repeat(np.unique(pairs.target), sizes), evidence, np.zeros(len(evidence), np.float32))


def chance_of_group(
    pairs: Pairs, passages: Passages, config: EvidenceConfig, *, candidates: np.ndarray, shard_seed: int
) -> float:
    """The share of pairs within a group, were each target's drawn at random from what it may have.

    A mean over the targets of the pairs, CHANCE_SAMPLE of them at most, spread evenly.
    """
    shards = shard(passages, config, shard_seed)
    targets = np.unique(pairs.target)
    targets = targets[np.unique(np.linspace(0, len(targets) - 1, CHANCE_SAMPLE).astype(int))]
    shares = []
    for target in targets:
        ids = np.flatnonzero(candidates & (shards == shards[target]))
        ids = ids[~forbidden(passages, config, target[None], ids[None])[0]]
        shares.append(np.mean(passages.group[ids] == passages.group[target]))
    return float(np.mean(shares))


def nearest(
    embeddings: Vectors,
    passages: Passages,
    config: EvidenceConfig,
    targets: np.ndarray,
    candidates: np.ndarray,
    k: int,
) -> tuple[np.ndarray, np.ndarray]:
    """The k most relevant candidates of each target, by the rules of `find_pairs`, without shards.

    targets int (Q,): passage ids; candidates bool (P,) -> ids int64 (Q, K), -1 = none, and cosines
    float32 (Q, K), -inf = none; best first.
    """
    targets = np.asarray(targets)
    who = candidates.copy()
    who[targets] = True
    search = _Search(embeddings, passages, config, who)
    found, relevance = search(targets, np.flatnonzero(candidates), k)
    order = np.argsort(-relevance, axis=1, kind="stable")
    return np.take_along_axis(found.ids, order, axis=1), np.take_along_axis(relevance, order, axis=1)


def pair_figures(
    pairs: Pairs, passages: Passages, targets: np.ndarray, previous: Pairs | None
) -> dict[str, float]:
    """Figures of a re-index; targets bool (P,), previous: the pairs of the re-index before.

    Without pairs there are no shares and no mean; churn (the share of pairs that were not kept at
    the re-index before) is absent at the first.
    """
    busy = len(np.unique(pairs.target))
    figures: dict[str, float] = {
        "pairs": len(pairs),
        "targets_with_evidence": busy,
        "targets_resting": int(targets.sum()) - busy,
    }
    if not len(pairs):
        return figures
    language, group = (of[pairs.target] == of[pairs.evidence] for of in (passages.language, passages.group))
    figures["across_languages"] = float(1 - language.mean())
    figures["same_group"] = float(group.mean())
    figures["mean_relevance"] = float(pairs.relevance.mean(dtype=np.float64))
    if previous is not None:
        now, before = (one.target * len(passages) + one.evidence for one in (pairs, previous))
        figures["churn"] = float(np.mean(~np.isin(now, before)))
    return figures


class _Search:
    """Finds the candidates that stand out most for a target and may be its evidence."""

    def __init__(
        self, embeddings: Vectors, passages: Passages, config: EvidenceConfig, who: np.ndarray
    ) -> None:
        """who (P,), bool: the passages that say what is near anyway, where hubs count."""
        self.plain = isinstance(embeddings, np.ndarray)
        self.vectors = _normalized(embeddings) if isinstance(embeddings, np.ndarray) else embeddings
        self.passages, self.config, self.near = passages, config, None
        if config.hub_neighbors:
            kept = {} if isinstance(embeddings, np.ndarray) else embeddings.kept
            key = (config.hub_neighbors, who.tobytes())
            if key not in kept:
                kept.clear()
                languages = (passages.language, len(passages.languages))
                kept[key] = nearness(self.vectors, *languages, who, config.hub_neighbors)
            self.near = kept[key]

    def __call__(self, targets: np.ndarray, candidates: np.ndarray, k: int) -> tuple[Neighbors, np.ndarray]:
        """The best k candidates (ids) of each target (ids), and their relevance (Q, K), -inf = none."""
        passages, config = self.passages, self.config
        if not self.plain or self.near is not None:
            return search_by_margin(
                self.vectors,
                targets,
                candidates,
                k,
                lambda own, ids: forbidden(passages, config, own, ids),
                near=self.near,
                language=passages.language,
            )
        out = rank(np.full((len(targets), 1), -1), np.zeros((len(targets), 1)), k)
        vectors = cast(np.ndarray, self.vectors)
        for rows, among in _searches(passages, config, targets, candidates):
            if not len(rows) or not len(among):
                continue

            def excluded(part: np.ndarray, ids: np.ndarray, own: np.ndarray = targets[rows]) -> np.ndarray:
                return forbidden(passages, config, own[part], ids)

            index = VectorIndex.build(vectors[among], among)
            found = search_allowed(index, vectors[targets[rows]], k, excluded)
            out.ids[rows], out.scores[rows] = found.ids, found.scores
        return out, out.scores


def _searches(
    passages: Passages, config: EvidenceConfig, targets: np.ndarray, candidates: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows of the targets that share candidates, and these: a search for each language, or one for all.

    Leaving the own language out of the index, not of what is found, spares fetching nearly all:
    most encoders put the own language first.
    """
    if config.evidence_languages == "any":
        yield np.arange(len(targets)), candidates
        return
    for language in np.unique(passages.language[targets]):
        yield (
            np.flatnonzero(passages.language[targets] == language),
            candidates[passages.language[candidates] != language],
        )


def forbidden(passages: Passages, config: EvidenceConfig, own: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Which of ids (Q, K), or (1, K) for all, may not be evidence for the passages own (Q,): bool (Q, K).

    A passage itself and its text; its document unless `same_document`; its language where
    `evidence_languages` is "other".
    """
    own = own[:, None]
    never = passages.content[ids] == passages.content[own]  # itself among them
    if not config.same_document:
        never = never | (passages.document[ids] == passages.document[own])
    if config.evidence_languages == "other":
        never = never | (passages.language[ids] == passages.language[own])
    return never


def in_evidence_set(passages: Passages, config: EvidenceConfig) -> np.ndarray:
    """Which passages may be evidence for anything, bool (P,)."""
    return passages.database_only if config.evidence_set == "database" else np.ones(len(passages), dtype=bool)


def other_groups(passages: Passages, config: EvidenceConfig, target: int, ids: np.ndarray) -> np.ndarray:
    """Which of ids (K,) may be evidence for a passage and are not of its group: evidence without content."""
    never = forbidden(passages, config, np.array([target]), ids[None])[0]
    return ~never & (passages.group[ids] != passages.group[target])


def _normalized(embeddings: np.ndarray) -> np.ndarray:
    """Rows of length 1 (or 0), float32 (P, D)."""
    vectors = np.asarray(embeddings, dtype=np.float32)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.maximum(lengths, np.finfo(np.float32).tiny)
