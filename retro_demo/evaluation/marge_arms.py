"""The arms that a MARGE is measured in: the same held-out passages, with other evidence or relevance.

    on            its own evidence, found by its own encoder; a batch of targets shares theirs
    own           each target sees only what was found for it
    random        passages of other groups, drawn at random, in place of what was found
    off           no evidence at all
    beta_0        relevance weighs nothing
    uniform       all evidence is as relevant as the mean; the softmax cannot tell it from beta_0
    shuffled      each passage of evidence has the relevance of another one of the batch
    same_document, other_documents   evidence with and without the target's own document

Source of the question: the reviews of the paper asked for these. Evidence of a held-out passage may
be held out, too: its translations are.

Shapes: P passages, Q held-out passages, G targets of a batch, M evidence, K evidence of one target,
S passage length, D width, V tokens.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from retro_demo.events import MEASURING, Progress
from retro_demo.evidence.evidence import in_evidence_set, nearest, other_groups
from retro_demo.evidence.passages import Passages
from retro_demo.models.marge import MARGE
from retro_demo.models.marge_config import EvidenceConfig
from retro_demo.models.marge_layers import WriteCache

LIVE_ARMS = ("on", "random", "off")
ARMS = (
    "on",
    "own",
    "random",
    "off",
    "beta_0",
    "uniform",
    "shuffled",
    "same_document",
    "other_documents",
)
TARGETS = 8  # of a batch, here as in no training: so that arms are alike for every run
NOT_SEARCHED = -2
SCORES_AT_ONCE = 2_000_000  # written out by one look at the evidence: more leaves the caches of a CPU


class EvidenceArms:
    """Held-out passages in a fixed order, and what each arm shows them."""

    def __init__(
        self,
        passages: Passages,
        vectors: np.ndarray,
        config: EvidenceConfig,
        seed: int,
        *,
        k: int = 0,
        left_out: np.ndarray | None = None,
        abstains: bool = False,
    ) -> None:
        """vectors (P, D): embeddings of all passages, by the model that is measured.

        k: evidence of each target, 0 = as much as in training on average; `left_out` (P,), bool:
        passages that are not to be measured on; `abstains`: whether the model may turn to no evidence.
        """
        self.abstains = abstains
        self.passages, self.vectors, self.config, self.seed = passages, vectors, config, seed
        self.k = k or max(1, round(config.evidence_per_target))
        held_out = passages.held_out & ((passages.place == 0) | (not config.first_passages))
        if left_out is not None:
            held_out = held_out & ~left_out
        self.targets = np.random.default_rng([seed, 5]).permutation(np.flatnonzero(held_out))  # (Q,)
        self.candidates = in_evidence_set(passages, config)  # (P,)
        self._found: dict[bool, np.ndarray] = {}  # same document allowed or not -> ids (Q, K)

    def batches(self, count: int | None = None) -> list[np.ndarray]:
        """Places in `targets` of each batch, G at a time, of the first `count` targets (None: all)."""
        count = len(self.targets) if count is None else count
        return [np.arange(i, min(i + TARGETS, count)) for i in range(0, count, TARGETS)]

    def twin(self, arm: str) -> str:
        """The arm that reads the very same and so need not be measured beside it; "" = none.

        `uniform` adds a constant to the scores of a target, which no softmax sees: unless there is one
        more key beside those of the evidence, to which the model can turn.
        """
        if arm == "uniform":
            return "" if self.abstains else "beta_0"
        own_rule = "same_document" if self.config.same_document else "other_documents"
        return "on" if arm == own_rule else ""

    def evidence(self, arm: str, which: np.ndarray) -> np.ndarray:
        """Passage ids (G, K) that the arm finds for the targets at the places `which`, -1 = none."""
        found = self._searched(self._allows_own_document(arm), which)
        if arm != "random":
            return found
        # one draw for each target, the same for every model, of all that could be evidence in other groups
        drawn = np.stack([self._drawn(one) for one in self.targets[which]])
        return np.where(found >= 0, drawn, -1)

    def search(self, arms: Iterable[str], count: int) -> None:
        """Find the evidence of the first `count` targets at once, once for each rule that the arms follow."""
        for rule in {self._allows_own_document(arm) for arm in arms if arm != "off"}:
            self._searched(rule, np.arange(count))

    def _allows_own_document(self, arm: str) -> bool:
        return {"same_document": True, "other_documents": False}.get(arm, self.config.same_document)

    def _searched(self, same_document: bool, which: np.ndarray) -> np.ndarray:
        table = self._found.setdefault(same_document, np.full((len(self.targets), self.k), NOT_SEARCHED))
        missing = which[table[which, 0] == NOT_SEARCHED]
        if len(missing):
            rule, asking = replace(self.config, same_document=same_document), self.targets[missing]
            table[missing], _ = nearest(self.vectors, self.passages, rule, asking, self.candidates, self.k)
        return table[which]

    def _drawn(self, target: int) -> np.ndarray:
        rng = np.random.default_rng([self.seed, 6, target])
        candidates = np.flatnonzero(self.candidates)
        ids = rng.permutation(candidates[other_groups(self.passages, self.config, target, candidates)])
        return np.concatenate([ids[: self.k], np.full(max(0, self.k - len(ids)), -1, dtype=np.int64)])

    @torch.inference_mode()
    def losses(self, model: MARGE, arms: Iterable[str], which: np.ndarray) -> dict[str, np.ndarray]:
        """Losses (G, S - 1) of the targets at the places `which` under each arm, in nats; padding costs 0.

        The targets are read as one batch. Evidence that several arms show is encoded once.
        """
        targets = self._tokens(model, self.targets[which])
        losses: dict[str, Tensor] = {}
        shown: dict[bytes, WriteCache] = {}
        for arm in arms:
            if arm == "off":
                losses[arm] = model.token_losses(targets, None)
                continue
            found = self.evidence(arm, which)
            shared = self._shared(found, which)
            if not len(shared):
                losses[arm] = model.token_losses(targets, None)
                continue
            if (key := shared.tobytes()) not in shown:
                encoded = model.encode_evidence(self._tokens(model, shared))
                relevance = model.relevance(model.embed(targets), encoded.embeddings)
                shown[key] = model.begin(encoded, relevance)
            visible = (found[:, :, None] == shared).any(axis=1) if arm == "own" else None
            losses[arm] = _read(model, targets, self._changed(shown[key], arm, which, visible))
        width = self.passages.tokens.shape[1] - 1
        return {
            arm: F.pad(values.float(), (0, width - values.shape[1])).cpu().numpy()
            for arm, values in losses.items()
        }

    def _tokens(self, model: MARGE, ids: np.ndarray) -> Tensor:
        """Their tokens, no wider than the longest."""
        width = max(2, int(self.passages.lengths[ids].max(initial=2)))
        return torch.from_numpy(self.passages.tokens[ids, :width]).to(next(model.parameters()).device)

    def _shared(self, found: np.ndarray, which: np.ndarray) -> np.ndarray:
        """The evidence (M,) of a batch: what is to be written is no evidence for another target either."""
        shared, content = np.unique(found[found >= 0]), self.passages.content
        return shared[~np.isin(content[shared], content[self.targets[which]])]

    def _changed(
        self, shown: WriteCache, arm: str, which: np.ndarray, visible: np.ndarray | None
    ) -> WriteCache:
        """The evidence of a batch as an arm has it; visible (G, M): what each target may see, None = all."""
        relevance, seen = shown.relevance, shown.seen
        if visible is not None:
            mine = torch.from_numpy(visible).to(seen.device)
            seen = seen & mine.repeat_interleave(seen.shape[2] // mine.shape[1], dim=1)[:, None]
        elif arm == "beta_0":
            relevance = torch.zeros_like(relevance)
        elif arm == "uniform":
            relevance = relevance.mean(dim=1, keepdim=True).expand_as(relevance)
        elif arm == "shuffled":  # around one circle, so that none keeps its own
            order = np.random.default_rng([self.seed, 7, int(which[0])]).permutation(relevance.shape[1])
            relevance = torch.empty_like(relevance)
            relevance[:, order] = shown.relevance[:, np.roll(order, 1)]
        return WriteCache(relevance, seen, shown.contexts)


def _read(model: MARGE, targets: Tensor, shown: WriteCache) -> Tensor:
    """Losses (G, T - 1) of targets (G, T), a few at a time: what they share was made before."""
    cells = model.config.num_heads * targets.shape[1] * shown.seen.shape[2]
    size, parts = max(1, SCORES_AT_ONCE // cells), []
    for start in range(0, len(targets), size):
        rows = slice(start, start + size)
        part = WriteCache(shown.relevance[rows], shown.seen[rows], shown.contexts)
        parts.append(model.extend(targets[rows], part)[:, :-1])
    return F.cross_entropy(
        torch.cat(parts).transpose(1, 2), targets[:, 1:], ignore_index=model.config.pad_id, reduction="none"
    )


def measure_live(
    model: MARGE, arms: EvidenceArms, bytes_of_tokens: np.ndarray, max_tokens: int
) -> Generator[Progress, None, dict[str, dict[str, float]]]:
    """Loss of the arms on, random and off on about so many held-out tokens; empty where none are held out.

    bytes_of_tokens (V,) of the text's tokens: bpb = nats / (ln 2 * bytes of the original text). Yields how
    far it is, at each tenth.
    """
    totals = {arm: 0.0 for arm in LIVE_ARMS}
    tokens = size = 0
    model.eval()
    before = np.cumsum(arms.passages.lengths[arms.targets] - 1)
    total = min(max_tokens, int(before[-1])) if len(before) else 0
    tenths = 0
    yield Progress(MEASURING, 0, total)
    arms.search(LIVE_ARMS, min(len(arms.targets), int(np.searchsorted(before, max_tokens)) + TARGETS))
    for which in arms.batches():
        if tokens >= max_tokens:
            break
        written = arms.passages.tokens[arms.targets[which]][:, 1:]
        for arm, losses in arms.losses(model, LIVE_ARMS, which).items():
            totals[arm] += float(losses.sum(dtype=np.float64))
        tokens += int((written != 0).sum())
        size += int(bytes_of_tokens[written].sum())
        if 10 * tokens // total > tenths:
            tenths = 10 * tokens // total
            yield Progress(MEASURING, min(tokens, total), total)
    if not tokens:
        return {}
    return {
        arm: {"nats": total / tokens, "bpb": total / np.log(2) / max(1, size), "tokens": tokens}
        for arm, total in totals.items()
    }
