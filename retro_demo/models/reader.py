"""A frozen pretrained decoder that was taught to read neighbors: RETRO's retrofit of a Llama-type model.

The base (models/llama.py) stays as it is, or as a run fine-tuned it (models/low_rank.py, frozen here); off, a
reader's logits are those of the base bit for bit. What is trained is small (some millions of weights):

- **Look-up**: queries and keys are states of the base's own middle layers, of the text and of the neighbors,
  through one projection that both begin with. Keys are shifted: a neighbor token is found by the state before
  it, so that who stands where the text stands finds what followed there. One softmax over the tokens of all
  neighbors and a null key, by which the look-up abstains. So no encoder is needed (RETRO section 2.4 has
  one).
- **Chunked cross-attention** (RETRO section 2.4): what was looked up is written into upper layers. Values
  begin as the embeddings of the tokens found.
- **Copy head**: the look-up's weights as a distribution over the vocabulary, mixed with that of the decoder:
  p = a_0 p_decoder + sum of a_j over the neighbor tokens j (See et al. 2017; Khandelwal et al. 2020).

Shapes: B batch, T tokens of the text, L looks at neighbors, C tokens that read one look (as many as a chunk
has), K neighbors, P tokens of a title, R = P + 2 C (title, N, F), J = K 2 C tokens that can be found, D width
of the base, S states of each token, M width of the look-up, V vocabulary.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retro_demo.models.llama import KVCache, Llama
from retro_demo.models.low_rank import OnBase
from retro_demo.models.reader_config import RUN, BesideBase, ReaderConfig

NOTHING = -1e9  # the score of a token that is not there
LEAST = 1e-30  # a probability that stands for none
TENTH = 0.1  # single numbers are kept as a tenth of what they mean, and so learn ten times as fast
KEPT_KEYS = 256_000_000  # bytes of states of neighbors that are kept for the next time


class ReaderBatch(NamedTuple):
    """What one step reads: tokens (B, T + 1), titles (B, P), neighbors (B, L, K, R), loss weights (B, T).

    `ahead`: what the frozen layers make of them, where that is known already.
    """

    tokens: Tensor
    titles: Tensor
    neighbors: Tensor
    weights: Tensor
    ahead: Ahead | None = None

    def to(self, device: torch.device) -> ReaderBatch:
        return self._changed(lambda part: part.to(device))

    def share(self, rank: int, size: int) -> ReaderBatch:
        """Every size-th sequence from `rank` on."""
        return self._changed(lambda part: part[rank::size])

    def _changed(self, change: Callable[[Tensor], Tensor]) -> ReaderBatch:
        tokens, titles, neighbors, weights = map(change, self[:4])
        ahead = None if self.ahead is None else Ahead(*map(change, self.ahead))
        return ReaderBatch(tokens, titles, neighbors, weights, ahead)


class Ahead(NamedTuple):
    """What the lower layers of the base make of a text and its neighbors.

    stream (B, N, D): the residual stream below the first layer that is written into, beginning of text and
    title first, padded behind; start (B,): where the text begins in it. queries (B, T, S, D); keys
    (B, L, K, 2 C, S, D), of the token before each.
    """

    stream: Tensor
    start: Tensor
    queries: Tensor
    keys: Tensor


@dataclass
class Findable:
    """One look: what can be found, ready to be attended to."""

    tokens: Tensor  # (B, J)
    there: Tensor  # (B, J) bool
    keys: Tensor  # (B, J, M)
    values: Tensor  # (B, J, D)
    history: Tensor  # (B, J, RUN): the tokens before each, the last one first
    titled: Tensor  # (B, J): which share of the title of its neighbor stands in the text


@dataclass
class ReadCache:
    """What the tokens so far leave behind for the next one; filled by `Reader.next_logits`."""

    memory: KVCache
    tokens: Tensor | None = None  # (B, length)
    begun: bool = False  # whether the beginning of text was read
    found: Findable | None = None
    before: Tensor | None = None  # (B, J): how the last token looked

    @property
    def length(self) -> int:
        """Tokens read so far."""
        return 0 if self.tokens is None else self.tokens.shape[1]


class LookUp(nn.Module):
    """Which tokens of the neighbors to read: one softmax over all of them and a null key."""

    def __init__(self, config: ReaderConfig) -> None:
        super().__init__()
        count, dim = len(config.match_layers), config.dim
        tie = torch.empty(config.match_dim, count * dim)
        nn.init.orthogonal_(tie)
        self.query = nn.Parameter(tie.clone())
        self.key = nn.Parameter(tie.clone())
        self.mean: Tensor
        self.deviation: Tensor
        self.register_buffer("mean", torch.zeros(count, dim))
        self.register_buffer("deviation", torch.ones(count, dim))
        self.log_scale = nn.Parameter(TENTH * torch.tensor(2.5))
        # by how many tokens are shared so far
        self.run = nn.Parameter(TENTH * torch.linspace(0.0, 2.0, RUN + 1))
        self.going_on = nn.Parameter(TENTH * torch.tensor(3.0))  # behind the place that was just looked at
        self.titled = nn.Parameter(TENTH * torch.tensor(1.0))  # where a neighbor's title stands in the text
        self.null = nn.Parameter(torch.zeros(1, config.match_dim))
        self.null_bias = nn.Parameter(TENTH * torch.tensor(8.0))

    @torch.no_grad()
    def fit(self, states: Tensor) -> None:
        """Set mean and deviation of each dimension from states (N, S, D)."""
        self.mean.copy_(states.mean(0))
        self.deviation.copy_(states.std(0) + 1e-3)

    def project(self, states: Tensor, weight: Tensor) -> Tensor:
        """states (..., S, D) -> directions (..., M)."""
        standard = ((states.float() - self.mean) / self.deviation).flatten(-2)
        return F.normalize(F.linear(standard, weight), dim=-1)

    def forward(
        self, queries: Tensor, history: Tensor, found: Findable, before: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """queries (B, C, S, D), history (B, C, RUN) of the text -> log weights (B, C, 1 + J), null first.

        Who copies goes on: a place gets a bonus by how much the token before looked at the place before it,
        where that is the token that was written. So a number is read from one place, not digit by digit.
        `before` (B, J) is how the token before the first looked, where it read the same neighbors; the second
        value is how the last one did, the null key left out.
        """
        scale, run, going_on, titled, null_bias = (
            one / TENTH for one in (self.log_scale, self.run, self.going_on, self.titled, self.null_bias)
        )
        looked = self.project(queries, self.query)
        same = history[:, :, None] == found.history[:, None]  # (B, C, J, RUN)
        shared = same.cumprod(dim=-1).sum(dim=-1)
        # run[shared] would be the same, but several threads then add up its gradient in any order
        score = looked @ found.keys.transpose(1, 2) * scale.exp() + F.embedding(shared, run[:, None])[..., 0]
        score = (score + titled * found.titled[:, None]).masked_fill(~found.there[:, None], NOTHING)
        looks = torch.zeros_like(score[:, 0]) if before is None else before.to(score)
        rows = []
        for place in range(score.shape[1]):
            behind = F.pad(looks[:, :-1], (1, 0)) * same[:, place, :, 0]
            rows.append(score[:, place] + going_on * behind)
            looks = rows[-1].softmax(-1)
        null = F.linear(looked, self.null) + null_bias
        return torch.cat([null, torch.stack(rows, 1)], -1).log_softmax(-1), looks


class Reader(OnBase):
    """`Reader(config)` has the weights that are trained; `attach` gives it the base that it reads with."""

    def __init__(self, config: ReaderConfig) -> None:
        super().__init__(config)
        self.config = config
        dim = config.dim
        self.look = LookUp(config)
        if config.cross_attention:
            self.value = nn.Parameter(torch.eye(dim))
            self.state = nn.Parameter(torch.zeros(dim, dim))
            self.out = nn.ParameterList(nn.Parameter(torch.eye(dim)) for _ in config.write_layers)
            self.gate = nn.Parameter(torch.full((len(config.write_layers),), TENTH * config.gate))
        self.outputs = config.outputs
        self._kept: OrderedDict[bytes, Tensor] = OrderedDict()
        self._last: tuple[bytes, tuple[Tensor, Tensor]] | None = None

    def attach(self, base: Llama) -> Reader:
        self._kept, self._last = OrderedDict(), None
        return super().attach(base)

    def look_up_use(self) -> dict[str, Any]:
        """What the one look-up serves: the gate of each layer that is written into, and the copy head."""
        gates = self.gate.tolist() if self.outputs != "copy" else []
        layers = map(str, self.config.write_layers)
        return {
            "gates": {layer: round(gate / TENTH, 4) for layer, gate in zip(layers, gates, strict=False)},
            "copy_head": self.outputs != "attention",
        }

    @torch.no_grad()
    def fit(self, sample: Tensor) -> None:
        """Make the look-up ready to be trained: standardize its states over sample (N, T) of text."""
        states, _ = self.lower(sample)
        self.look.fit(states[:, 1:].flatten(0, 1))

    def writing_by(self, outputs: str) -> Reader:
        """The same network with another output ("attention", "copy" or "both"), sharing all weights."""
        twin = copy.copy(self)
        twin.outputs = outputs
        return twin

    # what the frozen layers make of text and neighbors

    @torch.no_grad()
    def lower(self, ids: Tensor, memory: KVCache | None = None) -> tuple[Tensor, Tensor]:
        """ids (B, N) -> states (B, N, S, D) of unit size, float32, and the stream (B, N, D) above them."""
        base, stream = self.base, self.base.embed(ids)
        states = []
        for number in range(self.config.first_written):
            stream = base.block(stream, number, memory)
            if number + 1 in self.config.match_layers:
                states.append(F.rms_norm(stream.float(), (stream.shape[-1],)))
        return torch.stack(states, dim=2), stream

    @torch.no_grad()
    def lower_text(self, tokens: Tensor, titles: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """tokens (B, T), titles (B, P) -> stream (B, N, D), start (B,), queries (B, T, S, D).

        The states of padding before the first token are those of the beginning of text.
        """
        batch, length = tokens.shape
        ids, start = begun(tokens, titles, self.config)
        if (batch == 1 or tokens.stride(0) == 0) and titles is None:  # one text, read in several ways
            states, stream = self._lower_one(ids[:1])
            states, stream = states.expand(batch, -1, -1, -1), stream.expand(batch, -1, -1)
        else:
            states, stream = self.lower(ids)
        return stream, start, text_of(states, start, length)

    def _lower_one(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """`lower` of one text (1, N); an explanation reads the same one several times."""
        name, last = f"{ids.device}".encode() + ids.cpu().numpy().tobytes(), self._last
        if self.training or last is None or last[0] != name:
            last = name, self.lower(ids)
            self._last = None if self.training else last
        return last[1]

    @torch.no_grad()
    def keys_of(self, neighbors: Tensor, *, keep: bool = True) -> Tensor:
        """neighbors (..., R) -> the states (..., 2 C, S, D) before each token of N and F.

        A neighbor is read by itself, beginning of text and title first. With `keep` what was read before is
        not read again.
        """
        rows = neighbors.reshape(-1, neighbors.shape[-1])
        if not keep:
            read = self._read_rows(rows)
            return read.reshape(*neighbors.shape[:-1], *read.shape[1:])
        names = [row.numpy().tobytes() for row in rows.cpu()]
        new = list({name: i for i, name in enumerate(names) if name not in self._kept}.values())
        for begin in range(0, len(new), 16):
            some = new[begin : begin + 16]
            for i, states in zip(some, self._read_rows(rows[some]), strict=True):
                self._kept[names[i]] = states.half()
        read = torch.stack([self._kept[name] for name in names]).float()
        for name in names:
            self._kept.move_to_end(name)
        most = KEPT_KEYS // (read[0].numel() * 2)
        while len(self._kept) > most:
            self._kept.popitem(last=False)
        return read.reshape(*neighbors.shape[:-1], *read.shape[1:])

    def _read_rows(self, rows: Tensor) -> Tensor:
        """rows (N, R) -> the states (N, 2 C, S, D) before each token that stands in N or F, else 0."""
        absent = rows == self.config.pad_id
        rank = (~absent).cumsum(1) - 1  # of a token among those that are there
        longest = int((~absent).sum(1).max())
        packed = rows.gather(1, absent.int().argsort(dim=1, stable=True))[:, :longest]
        begin = rows.new_full((len(rows), 1), self.config.begin_id)
        states, _ = self.lower(torch.cat([begin, packed], 1))
        title = rows.shape[1] - 2 * self.config.chunk_len
        where = rank[:, title:].clamp(min=0)
        found = states[torch.arange(len(rows), device=rows.device)[:, None], where]
        return found * ~absent[:, title:, None, None]

    @torch.no_grad()
    def read_ahead(
        self, tokens: Tensor, titles: Tensor | None, neighbors: Tensor, *, keep: bool = True
    ) -> Ahead:
        """What the frozen layers make of a batch: tokens (B, T), titles (B, P), neighbors (B, L, K, R)."""
        stream, start, queries = self.lower_text(tokens, titles)
        return Ahead(stream, start, queries, self.keys_of(neighbors, keep=keep))

    # looking up and writing

    def found_in(self, neighbors: Tensor, keys: Tensor, text: Tensor) -> Findable:
        """neighbors (B, K, R) of one look, keys (B, K, 2 C, S, D), text (B, N): title and text up to it."""
        content = neighbors[..., neighbors.shape[-1] - 2 * self.config.chunk_len :]
        title = neighbors[..., : neighbors.shape[-1] - content.shape[-1]]
        headed = title != self.config.pad_id
        stands = ((title[..., None] == text[:, None, None]).any(-1) & headed).sum(-1)
        titled = stands / headed.sum(-1).clamp(min=1)  # (B, K)
        shifted = F.pad(content, (RUN, 0), value=-2)
        history = shifted.unfold(-1, RUN, 1)[..., : content.shape[-1], :].flip(-1)
        history = history.masked_fill(history == self.config.pad_id, -2)
        there = content != self.config.pad_id
        values = torch.zeros(0)
        if self.config.cross_attention:
            base = self.base
            embedded = base.embed(content).float() * base.norm.float()
            embedded = F.rms_norm(embedded, (embedded.shape[-1],))
            values = F.linear(embedded, self.value) + F.linear(keys[..., -1, :].float(), self.state)
            values = values.flatten(1, 2)
        return Findable(
            content.flatten(1, 2),
            there.flatten(1, 2),
            self.look.project(keys, self.look.key).flatten(1, 2),
            values,
            history.flatten(1, 2),
            titled.repeat_interleave(content.shape[-1], 1),
        )

    def _written(self, stream: Tensor, place: int, read: Tensor) -> Tensor:
        """The stream (B, n, D) with what was read (B, n, D), at the place-th layer that is written into."""
        size = stream.float().pow(2).mean(-1, keepdim=True).sqrt()
        return stream + (self.gate[place] / TENTH * size * F.linear(read, self.out[place])).to(stream.dtype)

    def upper(self, stream: Tensor, read: Tensor | None, memory: KVCache | None = None) -> Tensor:
        """The stream (B, n, D) through the upper layers, with what was read (B, n, D) written into it."""
        for number in range(self.config.first_written, self.config.depth):
            if read is not None and number in self.config.write_layers:
                stream = self._written(stream, self.config.write_layers.index(number), read)
            stream = self.base.block(stream, number, memory)
        return stream

    def _histories(self, tokens: Tensor) -> Tensor:
        """tokens (B, T) -> the RUN tokens up to each, the last one first (B, T, RUN)."""
        return F.pad(tokens, (RUN - 1, 0), value=-1).unfold(1, RUN, 1).flip(-1)

    def looks(
        self,
        tokens: Tensor,
        ahead: Ahead,
        neighbors: Tensor,
        titles: Tensor | None = None,
        every: int | None = None,
    ) -> tuple[Tensor, Findable, Tensor]:
        """Log weights (B L, C, 1 + J) of each look, what it found, and the places (L, C) of its readers.

        Readers past the end of the text stand at its last token. `every`: tokens between two looks, the first
        of which comes at the end of the first chunk; None: a chunk, as in all else here.
        """
        count, length = neighbors.shape[1], tokens.shape[1]
        stride = every or self.config.chunk_len
        places = torch.arange(count * stride, device=tokens.device).reshape(count, stride)
        places = places + self.config.chunk_len - 1
        held = places.clamp(max=length - 1)
        text = tokens if titles is None else torch.cat([titles, tokens], 1)
        ends = places[:, :1] + text.shape[1] - length  # the last token before each look
        known = torch.where(torch.arange(text.shape[1], device=text.device) <= ends, text[:, None], -1)
        found = self.found_in(neighbors.flatten(0, 1), ahead.keys.flatten(0, 1), known.flatten(0, 1))
        queries = ahead.queries[:, held].flatten(0, 1)
        history = self._histories(tokens)[:, held].flatten(0, 1)
        return self.look(queries, history, found)[0], found, places

    def _read_there(self, log_weights: Tensor, found: Findable, ahead: Ahead, here: Tensor) -> Tensor:
        """What the tokens `here` (n,) read by log weights (B L, C, 1 + J), at their places in the stream.

        They are the first n readers: those that follow stand past the end of the text.
        """
        looked = log_weights[..., 1:].exp() @ found.values
        batch = len(ahead.stream)
        rows = torch.arange(batch, device=here.device)[:, None]
        return torch.zeros_like(ahead.stream, dtype=looked.dtype).index_put(
            (rows, ahead.start[:, None] + here), looked.reshape(batch, -1, looked.shape[-1])[:, : len(here)]
        )

    def forward(
        self,
        tokens: Tensor,
        neighbors: Tensor | None = None,
        titles: Tensor | None = None,
    ) -> Tensor:
        """tokens (B, T), neighbors (B, L, K, R) or None, titles (B, P) or None -> logits (B, T, V).

        The neighbors [:, u] are read by the last token of chunk u and the C - 1 after it, as in RETRO. A
        title stands before the text, at the right of its P places; so may padding before the first token, by
        which a look can be had at the end of a prompt of any length. `pad_id` stands for no token. A neighbor
        of nothing but padding is absent. With a copy head logits are log probabilities.
        """
        batch, length = tokens.shape
        if neighbors is not None:
            neighbors = neighbors[:, : length // self.config.chunk_len]
            neighbors = neighbors[:, :, None] if neighbors.ndim == 3 else neighbors
        if neighbors is None or not neighbors.numel():
            stream, start, _ = self.lower_text(tokens, titles)
            return self.base.logits(text_of(self.upper(stream, None), start, length))
        ahead = self.read_ahead(tokens, titles, neighbors)
        log_weights, found, places = self.looks(tokens, ahead, neighbors, titles)
        real = (places < length).flatten()
        here = places.flatten()[real]
        read = None if self.outputs == "copy" else self._read_there(log_weights, found, ahead, here)
        logits = self.base.logits(text_of(self.upper(ahead.stream, read), ahead.start, length))
        if self.outputs == "attention":
            return logits
        null, copied = log_weights[..., :1], log_weights[..., 1:].exp()
        of_looks = torch.zeros(*copied.shape[:2], logits.shape[-1], device=logits.device)
        index = found.tokens[:, None].expand(copied.shape)
        of_looks = of_looks.scatter_add(2, index, copied).reshape(batch, -1, logits.shape[-1])[:, real]
        kept = null.reshape(batch, -1, 1)[:, real] + logits[:, here].float().log_softmax(-1)
        mixed = torch.logaddexp(kept, of_looks.clamp(min=LEAST).log())
        return logits.float().index_copy(1, here, mixed)

    def attention(self, tokens: Tensor, neighbors: Tensor, titles: Tensor | None = None) -> Tensor:
        """The weights (1, L, 1, C, K, 2 C) of one text tokens (1, T), as those of a layer with one head."""
        neighbors = neighbors[:, : tokens.shape[1] // self.config.chunk_len]
        ahead = self.read_ahead(tokens, titles, neighbors)
        log_weights, _, places = self.looks(tokens, ahead, neighbors, titles)
        weights = log_weights[..., 1:].exp() * (places < tokens.shape[1])[..., None]
        shape = (*weights.shape[:2], neighbors.shape[2], 2 * self.config.chunk_len)
        return weights.reshape(shape)[None, :, None]

    def before_prompt(self, length: int) -> list[int]:
        """Padding before a prompt of so many tokens, so that its end is the end of a chunk.

        So neighbors are looked up with its last words, as in InstructRetro (Wang et al. 2023).
        """
        return [self.config.pad_id] * (-length % self.config.chunk_len)

    def new_cache(self, room: int, batch: int = 1) -> ReadCache:
        """What texts of `room` tokens at most are written with."""
        return ReadCache(self.base.new_cache(batch, room + 1))

    @torch.inference_mode()
    def next_logits(self, tokens: Tensor, cache: ReadCache, neighbors: Tensor | None = None) -> Tensor:
        """Read tokens (B, n) after those in the cache -> the logits (B, V) after the last of them.

        All n belong to one attending chunk, as for `RETRO.read`; at its first token `neighbors` (B, K, R) are
        what was found, and None means nothing. Padding before the first token is the same in each text.
        """
        start, count = cache.length, tokens.shape[1]
        border = (start + 1) % self.config.chunk_len == 0
        if neighbors is not None and not border:
            raise ValueError(f"neighbors were given at token {start}, which is not the last of a chunk")
        whole = tokens if cache.tokens is None else torch.cat([cache.tokens, tokens], 1)
        if border:
            cache.before, cache.found = None, None
            if neighbors is not None:
                cache.found = self.found_in(neighbors, self.keys_of(neighbors), whole[:, : start + 1])
        cache.tokens = whole
        ids = tokens
        if not cache.begun:
            absent = int((tokens == self.config.pad_id).int().cumprod(1).sum(1).min())
            ids = torch.cat([tokens.new_full((len(tokens), 1), self.config.begin_id), tokens[:, absent:]], 1)
            cache.begun = True
        states, stream = self.lower(ids, cache.memory)
        log_weights, read = None, None
        if cache.found is not None:
            history = self._histories(cache.tokens[:, -(count + RUN) :])[:, -count:]
            if states.shape[1] < count:  # padding came first
                states = F.pad(states, (0, 0, 0, 0, count - states.shape[1], 0))
            log_weights, cache.before = self.look(states[:, -count:], history, cache.found, cache.before)
            if self.outputs != "copy":
                read = log_weights[..., 1:].exp() @ cache.found.values
                read = F.pad(read, (0, 0, max(0, ids.shape[1] - count), 0))[:, -ids.shape[1] :]
        logits = self.base.logits(self.upper(stream, read, cache.memory)[:, -1:])[:, 0]
        if self.outputs == "attention" or log_weights is None or cache.found is None:
            return logits
        copied = torch.zeros_like(logits, dtype=torch.float32)
        copied = copied.scatter_add(1, cache.found.tokens, log_weights[:, -1, 1:].exp())
        return torch.logaddexp(
            log_weights[:, -1, :1] + logits.float().log_softmax(-1), copied.clamp(min=LEAST).log()
        )

    # training

    def token_losses(
        self,
        tokens: Tensor,
        neighbors: Tensor | None = None,
        titles: Tensor | None = None,
    ) -> Tensor:
        """tokens (B, T + 1) -> loss of each token after the first (B, T), in nats; padding costs 0."""
        return token_nats(self(tokens[:, :-1], neighbors, titles), tokens[:, 1:], self.config.pad_id)

    def loss(self, batch: ReaderBatch) -> tuple[Tensor, dict[str, float]]:
        """Mean loss of the tokens that read, by their weights, in nats.

        Where cross-attention writes, the copy head is trained beside it even where it is not used: its loss
        tells the look-up directly where the next token stood.
        """
        text, targets = batch.tokens[:, :-1], batch.tokens[:, 1:]
        ahead = batch.ahead or self.read_ahead(text, batch.titles, batch.neighbors, keep=False)
        total = batch.weights.sum().clamp(min=1e-6)
        length = text.shape[1]
        log_weights, found, places = self.looks(text, ahead, batch.neighbors, batch.titles)
        real = (places < length).flatten()
        here = places.flatten()[real]
        writes = self.config.cross_attention
        read = self._read_there(log_weights, found, ahead, here) if writes else None
        stream = text_of(self.upper(ahead.stream, read), ahead.start, length)[:, here]
        target, weights = targets[:, here], batch.weights[:, here]
        nats = token_nats(self.base.logits(stream), target, self.config.pad_id)
        parts = []
        if self.config.cross_attention:
            parts.append((nats * weights).sum() / total)
        # the mixture of the copy head, at the targets alone
        tokens = found.tokens.reshape(len(text), -1, 1, found.tokens.shape[-1])
        wanted = targets[:, places.clamp(max=length - 1)]  # (B, L, C)
        hit = (tokens == wanted[..., None]) & found.there.reshape(tokens.shape)
        by_look = log_weights.reshape(*wanted.shape, -1)
        copied = by_look[..., 1:].masked_fill(~hit, NOTHING).logsumexp(-1)
        null = by_look[..., 0]
        mixed = torch.logaddexp(null.flatten(1)[:, real] - nats.detach(), copied.flatten(1)[:, real])
        parts.append((-mixed * weights).sum() / total)
        return torch.stack(parts).mean(), {}


def begun(tokens: Tensor, titles: Tensor | None, config: BesideBase) -> tuple[Tensor, Tensor]:
    """tokens (B, T), titles (B, P) -> ids (B, N) as a base reads them, and where the text begins (B,).

    The beginning of text and the title stand first. Padding before the first token is left out.
    """
    batch, length = tokens.shape
    text = tokens if titles is None else torch.cat([titles, tokens], 1)
    absent = (text == config.pad_id).int().cumprod(1).sum(1)  # before the first token
    whole = torch.cat([tokens.new_full((batch, 1), config.begin_id), text], 1)
    start = 1 + text.shape[1] - length - absent
    places = torch.arange(int((start + length).max()), device=tokens.device)
    moved = torch.where(places == 0, 0, (places + absent[:, None]).clamp(max=whole.shape[1] - 1))
    return whole.gather(1, moved), start


def text_of(stream: Tensor, start: Tensor, length: int) -> Tensor:
    """What stands at the tokens of the text (B, length, ...) in a stream (B, N, ...)."""
    rows = torch.arange(len(stream), device=stream.device)[:, None]
    return stream[rows, (start[:, None] + torch.arange(length, device=stream.device)).clamp(min=0)]


def token_nats(logits: Tensor, targets: Tensor, pad_id: int) -> Tensor:
    """logits (B, T, V), targets (B, T) -> (B, T) in nats, 0 where the target is padding."""
    flat = F.cross_entropy(
        logits.float().flatten(0, 1), targets.flatten(), ignore_index=pad_id, reduction="none"
    )
    return flat.reshape(targets.shape)
