"""Ways to make one pretrained base read the same neighbors: its reader, in the prompt, kNN-LM.

Measured on the same windows, with the same neighbors at the same looks:

    attention, copy, both   the reader, written by cross-attention, by its copy head, or by both
    in_context              the neighbors in front of the text, read anew at each look, as RAG and
                            In-Context RALM (Ram et al. 2023) do: nothing is trained
    knn                     kNN-LM (Khandelwal et al. 2020) over the tokens of the neighbors, too

A comparison with a weak rival proves nothing: how neighbors stand in a prompt, and which states kNN-LM
compares with which weight, is chosen on documents that are not held out.

Shapes: W windows, L chunks of a window, C chunk length, K neighbors, P tokens of a title, R = P + 2 C, n
scored places, J tokens that can be found, S states of a token, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from retro_demo.corpus.store import Corpus
from retro_demo.evaluation.arms import WAYS, Arms
from retro_demo.evaluation.losses import read_arm
from retro_demo.events import Progress
from retro_demo.models.llama import Llama
from retro_demo.models.reader import Reader
from retro_demo.models.reader_config import OUTPUTS
from retro_demo.retrieval.neighbors import Retriever
from retro_demo.tokenizer import Tokenizer

IN_CONTEXT, KNN = WAYS[-2:]
LEAST = 1e-30  # a probability that stands for none
AT_ONCE = 8  # texts that the base reads at a time
CHOSEN_ON = 16  # places in documents that are not held out


# In the prompt

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


def prompt_formats(k: int) -> list[PromptFormat]:
    """Those that are tried where k neighbors are found: each style with all of them, both ways, and one."""
    shown = [(k, True), (k, False), (1, True)] if k > 1 else [(1, True)]
    return [PromptFormat(style, count, last) for style in STYLES for count, last in shown]


def before_text(tokenizer: Tokenizer, form: PromptFormat, neighbors: Sequence[tuple[str, str]]) -> list[int]:
    """The ids of neighbors (title, text), nearest first, as they stand before a text; "" is left out."""
    shown = [one for one in neighbors if one[1]][: form.count]
    if not shown:
        return []
    if form.nearest_last:
        shown = shown[::-1]
    parts = [text.strip() if form.style == "plain" else f"{title}\n\n{text.strip()}" for title, text in shown]
    before = "".join(f"{part}\n\n" for part in parts)
    return tokenizer.encode(f"{INSTRUCTION}{before}Text:\n\n" if form.style == "instruction" else before)


@torch.inference_mode()
def plain_logits(
    base: Llama, begin: int, texts: Sequence[Sequence[int]], counts: Sequence[int]
) -> list[Tensor]:
    """The base's logits (n, V) at the last n tokens of each text, `counts` of them."""
    ids = torch.zeros(len(texts), max(map(len, texts)) + 1, dtype=torch.int64)
    ids[:, 0] = begin
    for row, text in zip(ids, texts, strict=True):
        row[1 : len(text) + 1] = torch.tensor(text)
    h = base.run_blocks(base.embed(ids.to(base.norm.device)), 0, base.config.depth)
    ends = [len(text) + 1 for text in texts]
    return [
        base.logits(h[None, i, end - n : end])[0] for i, (end, n) in enumerate(zip(ends, counts, strict=True))
    ]


# kNN-LM


@dataclass(frozen=True)
class KnnFormat:
    """kNN-LM (Khandelwal et al. 2020): the layer whose states are compared, the temperature, the weight."""

    layer: int = 0  # place among the layers that are tried
    scale: float = 20.0  # of the cosine
    weight: float = 0.5

    def __str__(self) -> str:
        return f"weight {self.weight:g}, cosine times {self.scale:g}, states {self.layer}"


KNN_SCALES, KNN_WEIGHTS = (10.0, 25.0, 60.0), (0.25, 0.5, 0.75, 0.9)


def knn_formats(model: Reader) -> list[KnnFormat]:
    """Those that are tried: states of the layers that the reader matches, and of the last one."""
    layers = range(len(model.config.match_layers) + 1)
    return [KnnFormat(one, scale, weight) for one in layers for scale in KNN_SCALES for weight in KNN_WEIGHTS]


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
        self._kept: dict[bytes, Tensor] = {}

    @torch.inference_mode()
    def read(self, ids: Sequence[int]) -> tuple[Tensor, Tensor]:
        """ids (N,) -> states (N + 1, S + 1, D), after the beginning of text and after each token; and the
        stream (N + 1, D) that the logits are made of."""
        whole = torch.tensor([[self.model.config.begin_id, *ids]], device=self.base.norm.device)
        stream = self.base.embed(whole)
        found = []
        for number in range(self.base.config.depth):
            stream = self.base.block(stream, number)
            if number + 1 in (*self.model.config.match_layers, self.base.config.depth):
                found.append(F.normalize(stream[0].float(), dim=-1))
        return torch.stack(found, dim=1), stream[0]

    def neighbors(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """rows (K, R) -> keys (J, S + 1, D) and tokens (J,) of what stands in the neighbors, titles aside."""
        config, device = self.model.config, self.base.norm.device
        title_len, count = config.title_len, len(config.match_layers) + 1
        keys = [torch.zeros(0, count, self.base.config.dim, device=device)]
        tokens = [torch.zeros(0, dtype=torch.int64)]
        for row in rows:
            ids = row[row != 0].tolist()
            there = int((row[title_len:] != 0).sum())
            if not there:
                continue
            name = row.tobytes()
            if name not in self._kept:
                self._kept[name] = self.read(ids)[0][len(ids) - there : -1]
            keys.append(self._kept[name])
            tokens.append(torch.tensor(ids[-there:]))
        return torch.cat(keys), torch.cat(tokens).to(device)


# On the windows of an evaluation


@dataclass(frozen=True)
class OneLook:
    """One look: the text before it with its title, what comes next, and the neighbors (K,) best first."""

    before: list[int]
    following: list[int]
    neighbors: np.ndarray


class ReadingWays:
    """The ways to read of one reader, on the windows of some arms."""

    def __init__(self, model: Reader, arms: Arms) -> None:
        self.model, self.arms, self.corpus = model, arms, arms.corpus
        self.form, self.knn = PromptFormat(count=arms.k), KnnFormat()
        self.chosen = False

    @property
    def names(self) -> list[str]:
        """Those that are measured beside "on", which is the way that the reader has itself."""
        writes = self.model.config.cross_attention
        outputs = [one for one in OUTPUTS if (writes or one == "copy") and one != self.model.outputs]
        return [*outputs, IN_CONTEXT, KNN]

    def choose(self, finder: Retriever) -> Iterator[Progress]:
        """Choose prompt and kNN-LM on places in documents that are not held out; once.

        finder: the run's own retriever; a document is never shown its own neighbors, as when it is measured.
        """
        if self.chosen:
            return
        looks = training_looks(self.arms, finder, CHOSEN_ON)
        prompts, mixes = prompt_formats(self.arms.k), knn_formats(self.model)
        total = len(prompts) + 1
        nats = []
        for done, form in enumerate(prompts):
            yield Progress("how to prompt", done, total)
            nats.append(sum(float(one.sum()) for one in self._in_context(looks, form)))
        yield Progress("how to prompt", len(prompts), total)
        by_states = self._by_states(looks, mixes)
        if looks:
            self.form = prompts[int(np.argmin(nats))]
            self.knn = mixes[int(np.argmin(sum(one.sum(axis=1) for one in by_states)))]
        self.chosen = True
        yield Progress("how to prompt", total, total)

    def read(self, name: str, which: np.ndarray) -> np.ndarray:
        """Losses (w, P) in nats of the windows `which` (w,), read in one of the ways."""
        if name in OUTPUTS:
            return read_arm(self.model.writing_by(name), self.arms, "on", which)
        looks, places = self.looks(which)
        if name == IN_CONTEXT:
            found = self._in_context(looks, self.form)
        else:
            found = [one[0] for one in self._by_states(looks, [self.knn])]
        chunk_len = self.corpus.config.chunk_len
        losses = np.zeros((len(which), self.arms.windows.rows.shape[1] - 1, chunk_len), np.float32)
        for (row, chunk), values in zip(places, found, strict=True):
            losses[row, chunk, : len(values)] = values
        return losses.reshape(len(which), -1)

    def looks(self, which: np.ndarray) -> tuple[list[OneLook], list[tuple[int, int]]]:
        """The looks of some windows behind which text comes, and (window, chunk) of each."""
        tokens, titles, ids = self.arms.tokens(which), self.arms.titles(which), self.arms.ids("on", which)
        chunk_len = self.corpus.config.chunk_len
        looks, places = [], []
        for row in range(len(which)):
            title = titles[row][titles[row] != 0].tolist()
            for chunk in range(ids.shape[1]):
                end = (chunk + 1) * chunk_len
                following = tokens[row, end : end + chunk_len]
                following = following[following != 0].tolist()
                if following:
                    looks.append(OneLook([*title, *tokens[row, :end].tolist()], following, ids[row, chunk]))
                    places.append((row, chunk))
        return looks, places

    def before(self, look: OneLook, form: PromptFormat) -> list[int]:
        """The ids of its neighbors as they stand in the prompt."""
        return before_text(self.corpus.tokenizer, form, titled_texts(self.corpus, look.neighbors))

    def _in_context(self, looks: Sequence[OneLook], form: PromptFormat) -> list[np.ndarray]:
        """Losses (n,) of the tokens behind each look."""
        texts = [[*self.before(one, form), *one.before, *one.following[:-1]] for one in looks]
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        found = [np.zeros(0)] * len(texts)
        base, begin = self.model.base, self.model.config.begin_id
        for start in range(0, len(order), AT_ONCE):
            some = order[start : start + AT_ONCE]
            logits = plain_logits(
                base, begin, [texts[i] for i in some], [len(looks[i].following) for i in some]
            )
            for i, one in zip(some, logits, strict=True):
                found[i] = _nats(one.float().log_softmax(-1), looks[i].following)
        return found

    def _by_states(self, looks: Sequence[OneLook], forms: Sequence[KnnFormat]) -> list[np.ndarray]:
        """Losses (forms, n) of the tokens behind each look by kNN-LM."""
        states, found = KnnStates(self.model), []
        for look in looks:
            count = len(look.following)
            queries, stream = states.read([*look.before, *look.following[:-1]])
            with torch.inference_mode():
                logits = self.model.base.logits(stream[None, -count:])[0]
            rows = self.corpus.neighbor_rows(look.neighbors, self.model.config.title_len)
            keys, tokens = states.neighbors(rows)
            each = []
            for form in forms:
                mixed = knn_mix(logits, queries[-count:, form.layer], keys[:, form.layer], tokens, form)
                each.append(_nats(mixed, look.following))
            found.append(np.stack(each))
        return found


def titled_texts(corpus: Corpus, ids: np.ndarray) -> list[tuple[str, str]]:
    """(title, text) of each of some chunks (K,) with its continuation; ("", "") of none (-1)."""
    chunks, documents = corpus.chunks, corpus.documents
    return [
        (documents[chunks.document[one]].title, corpus.tokenizer.decode(row[row != 0].tolist()))
        if one >= 0
        else ("", "")
        for one, row in zip(ids.tolist(), chunks.with_continuation(ids), strict=True)
    ]


def training_looks(arms: Arms, finder: Retriever, count: int) -> list[OneLook]:
    """Looks at the end of chunks drawn from documents that are not held out, with what is found there."""
    corpus = arms.corpus
    known = ~(corpus.held_out | corpus.database_only)
    chunks = np.flatnonzero(known[corpus.chunks.document])
    chunks = chunks[corpus.chunks.has_continuation(chunks)]
    chosen = np.random.default_rng([arms.seed, 8]).permutation(chunks)[:count]
    if not len(chosen):
        return []
    titles = corpus.title_rows(arms.title_len)[corpus.chunks.document[chosen]]
    ids = finder.search(corpus.chunks.tokens[chosen], arms.k, own=chosen).ids
    looks = []
    for chunk, title, near in zip(chosen.tolist(), titles, ids, strict=True):
        text, following = corpus.chunks.tokens[chunk], corpus.chunks.tokens[chunk + 1]
        before = [*title[title != 0].tolist(), *text[text != 0].tolist()]
        looks.append(OneLook(before, following[following != 0].tolist(), near))
    return [one for one in looks if one.following]


def _nats(log_probabilities: Tensor, following: Sequence[int]) -> np.ndarray:
    """log probabilities (n, V) -> the loss (n,) of what follows."""
    wanted = torch.tensor(following, device=log_probabilities.device)[:, None]
    return -log_probabilities.gather(1, wanted)[:, 0].cpu().numpy()
