"""Two ways without training to let a reader's base read the neighbors that the reader reads.

- **in context**: the neighbors stand before the text, as in retrieval-augmented generation (In-Context RALM,
  Ram et al. 2023). Each chunk is read anew behind its own neighbors.
- **kNN-LM** (Khandelwal et al. 2020): the next token is also looked up among the base's states in the
  neighbors.

Shapes: n scored places, J tokens that can be found, K neighbors, C chunk length, P tokens of a title,
R = P + 2 C, S layers matched, D width, V vocabulary, w windows of L chunks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from retro_demo.corpus.store import Corpus
from retro_demo.evaluation.arms import Arms
from retro_demo.models.llama import Llama
from retro_demo.models.reader import LEAST, Reader
from retro_demo.tokenizer import Tokenizer

STYLES = ("plain", "titles", "instruction")
INSTRUCTION = "Below are passages from a reference work, then a text that agrees with them.\n\nPassages:\n\n"


@dataclass(frozen=True)
class PromptFormat:
    """How neighbors stand in a prompt: style, how many of them, and which way round."""

    style: str = "plain"
    count: int = 2
    nearest_last: bool = True

    def __str__(self) -> str:
        order = "nearest last" if self.nearest_last else "nearest first"
        return f"{self.style}, {self.count} neighbor{'s' * (self.count > 1)}" + f", {order}" * (
            self.count > 1
        )


FORMATS = [
    PromptFormat(style, count, last) for style in STYLES for count, last in ((2, True), (2, False), (1, True))
]


def in_context(
    tokenizer: Tokenizer, form: PromptFormat, neighbors: Sequence[tuple[str, str]], prompt: Sequence[int]
) -> list[int]:
    """The prompt's ids with neighbors (title, text), nearest first, before it. A neighbor "" is left out."""
    shown = [one for one in neighbors if one[1]][: form.count]
    if form.nearest_last:
        shown = shown[::-1]
    parts = [text.strip() if form.style == "plain" else f"{title}\n\n{text.strip()}" for title, text in shown]
    before = "".join(f"{part}\n\n" for part in parts)
    if form.style == "instruction":
        before = f"{INSTRUCTION}{before}Text:\n\n"
    return [*tokenizer.encode(before), *(i for i in prompt if i)] if parts else [i for i in prompt if i]


@torch.inference_mode()
def plain_logits(
    base: Llama, begin: int, texts: Sequence[Sequence[int]], counts: Sequence[int]
) -> list[Tensor]:
    """The base's logits (n, V) at the last n tokens of each text, `counts` of them."""
    longest = max(map(len, texts))
    ids = torch.zeros(len(texts), longest + 1, dtype=torch.int64)
    ids[:, 0] = begin
    for row, text in zip(ids, texts, strict=True):
        row[1 : len(text) + 1] = torch.tensor(text)
    h = base.run_blocks(base.embed(ids.to(base.norm.device)), 0, base.config.depth)
    ends = [len(text) + 1 for text in texts]
    return [
        base.logits(h[None, i, end - n : end])[0] for i, (end, n) in enumerate(zip(ends, counts, strict=True))
    ]


@dataclass(frozen=True)
class KnnFormat:
    """kNN-LM (Khandelwal et al. 2020): the layer whose states are compared, the temperature, the weight."""

    layer: int = 0  # place among the layers that are tried
    scale: float = 20.0  # of the cosine
    weight: float = 0.5

    def __str__(self) -> str:
        return f"weight {self.weight:g}, cosine times {self.scale:g}, states {self.layer}"


KNN_FORMATS = [
    KnnFormat(layer, scale, weight)
    for layer in range(3)
    for scale in (10.0, 25.0, 60.0)
    for weight in (0.25, 0.5, 0.75, 0.9)
]


def knn_mix(logits: Tensor, queries: Tensor, keys: Tensor, tokens: Tensor, form: KnnFormat) -> Tensor:
    """logits (n, V), unit queries (n, D), unit keys (J, D) of tokens (J,) -> log probabilities (n, V)."""
    own = logits.float().log_softmax(-1)
    if not len(tokens):
        return own
    near = (queries @ keys.T * form.scale).softmax(-1)
    found = torch.zeros_like(own).index_add_(1, tokens, near)
    return ((1 - form.weight) * own.exp() + form.weight * found).clamp(min=LEAST).log()


class KnnStates:
    """Unit states of the base at some layers and at its last: of texts, and of neighbors, each read once."""

    def __init__(self, model: Reader) -> None:
        self.model, self.base = model, model.base
        self.layers = (*model.config.match_layers, model.base.config.depth)
        self._kept: dict[bytes, Tensor] = {}

    @torch.inference_mode()
    def read(self, ids: Sequence[int], count: int) -> tuple[Tensor, Tensor]:
        """ids (N,) -> states (count, S + 1, D), logits (count, V) after each of the last `count` tokens."""
        states, stream = self._states(ids)
        return states[-count:], self.base.logits(stream[-count:])

    @torch.inference_mode()
    def neighbors(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """rows (K, R) -> keys (J, S + 1, D) and tokens (J,) of what stands in the neighbors, titles aside."""
        title_len, device = self.model.config.title_len, self.base.norm.device
        count, dim = len(self.layers), self.base.config.dim
        keys, tokens = [torch.zeros(0, count, dim, device=device)], [torch.zeros(0, dtype=torch.int64)]
        for row in rows:
            ids = row[row != 0].tolist()
            there = int((row[title_len:] != 0).sum())
            if not there:
                continue
            name = row.tobytes()
            if name not in self._kept:
                self._kept[name] = self._states(ids)[0][len(ids) - there : -1]
            keys.append(self._kept[name])
            tokens.append(torch.tensor(ids[-there:]))
        return torch.cat(keys), torch.cat(tokens).to(device)

    def _states(self, ids: Sequence[int]) -> tuple[Tensor, Tensor]:
        """ids (N,) -> states (N + 1, S + 1, D), the stream (N + 1, D) after the beginning and each token."""
        begun = torch.tensor([[self.model.config.begin_id, *ids]], device=self.base.norm.device)
        stream, found = self.base.embed(begun), []
        for number in range(self.base.config.depth):
            stream = self.base.block(stream, number)
            if number + 1 in self.layers:
                found.append(F.normalize(stream[0].float(), dim=-1))
        return torch.stack(found, dim=1), stream[0]


# Held-out windows


@torch.inference_mode()
def read_training_free(model: Reader, arms: Arms, name: str, which: np.ndarray) -> np.ndarray:
    """Losses (w, (L - 1) C) of the arm "in_context" or "knn" in the windows `which`, in nats.

    Title, text and neighbors are those that the reader reads. The neighbors stand before the text as they
    are, the nearest last, as in Ram et al. 2023 (benchmarks/reading.py tries nine formats). Padding costs 0.
    """
    corpus, chunk_len = arms.corpus, arms.corpus.config.chunk_len
    tokens, titles, ids = arms.tokens(which), arms.titles(which), arms.ids("on", which)
    shown, states = arms.neighbors("on", which), KnnStates(model)
    prompt, knn = PromptFormat(count=arms.k), KnnFormat()
    losses = np.zeros((len(which), tokens.shape[1] // chunk_len - 1, chunk_len), np.float32)
    for row, chunk in np.ndindex(*losses.shape[:2]):
        end = (chunk + 2) * chunk_len
        text = [*titles[row][titles[row] != 0].tolist(), *tokens[row, :end][tokens[row, :end] != 0].tolist()]
        count = int((tokens[row, end - chunk_len : end] != 0).sum())
        if not count:
            continue
        if name == "in_context":
            text = in_context(corpus.tokenizer, prompt, titled_texts(corpus, ids[row, chunk]), text)
            logits = plain_logits(model.base, model.config.begin_id, [text[:-1]], [count])[0]
        else:
            queries, logits = states.read(text[:-1], count)
            keys, there = states.neighbors(shown[row, chunk])
            logits = knn_mix(logits, queries[:, knn.layer], keys[:, knn.layer], there, knn)
        targets = torch.tensor(text[-count:], device=logits.device)
        losses[row, chunk, :count] = F.cross_entropy(logits.float(), targets, reduction="none").cpu().numpy()
    return losses.reshape(len(which), -1)


def titled_texts(corpus: Corpus, ids: np.ndarray) -> list[tuple[str, str]]:
    """(title, text) of each of some chunks (K,) with its continuation; ("", "") of none (-1)."""
    chunks, documents = corpus.chunks, corpus.documents
    return [
        (documents[chunks.document[one]].title, corpus.tokenizer.decode(row[row != 0].tolist()))
        if one >= 0
        else ("", "")
        for one, row in zip(ids.tolist(), chunks.with_continuation(ids), strict=True)
    ]


def tokens_read(name: str, model: Reader, neighbors: int, chunks: int) -> float:
    """Tokens that pass the base for each token of a text of so many chunks, with neighbors in every one."""
    chunk_len, row = model.config.chunk_len, model.config.neighbor_len
    if name == "off" or not neighbors:
        return 1.0
    if name == "in_context":  # what stands before a text is read anew with the text, at each look
        return (model.config.title_len + (2 * neighbors + chunks / 2 + 1) * chunk_len) / chunk_len
    return 1.0 + neighbors * row / chunk_len
