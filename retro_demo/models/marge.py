"""MARGE: documents written anew from other documents, whose relevance the model learns itself.

Token ids in, logits out: the network, the batch that it reads (whole, or one process's part of it), and the
distillation of attention. Nothing here knows text, files, indexes or training. One encoder reads targets
and evidence: after its first layers the state of its first token is the embedding of the document, after
all of them the states are what the decoder reads. The relevance of evidence z for a target x is the cosine
of their embeddings, in the loss as in the index. With distillation it also follows how much attention the
decoder gives the evidence, with soft labels how well the target is written from each alone.

By choice relevance is that of words, too, and what is learned of them (models/words.py).

Source: Lewis et al. 2020, "Pre-training via paraphrasing", section 2. Where it is silent: rotary
positions, counted in each document from 0; the first token's own embedding begins as zeros.

Shapes: B batch of targets, T tokens, M evidence, S evidence length, N documents, D width, H heads, V tokens
of text and languages. Evidence that the whole batch shares has 1 in place of B.
"""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from retro_demo.devices import shared_rows, to_device
from retro_demo.errors import UserError
from retro_demo.models.config import MargeConfig
from retro_demo.models.layers import (
    Linear,
    Memory,
    draw_copying_weights,
    draw_weights,
    key_mask,
    linear,
    make_norm,
)
from retro_demo.models.marge_layers import Evidence, EvidenceLayer, PlainLayer, WriteCache
from retro_demo.models.words import WordRelevance


class BatchPart(NamedTuple):
    """What one of `size` processes has of a batch: its share of the targets; predicted tokens of all."""

    rank: int
    size: int
    share: float
    predicted: int


class MargeBatch(NamedTuple):
    """What one step reads: targets (B, T) and the evidence (M, S) of all of them, padded with pad_id.

    `part` says what part of a batch it is, None: all of it. All parts hold all evidence. `compared`: among
    how much of the evidence, from the first on, soft labels choose; 0: this step has none.
    """

    targets: Tensor
    evidence: Tensor
    part: BatchPart | None = None
    compared: int = 0

    @property
    def tokens(self) -> Tensor:
        """What is learned to be written (B, T)."""
        return self.targets

    def to(self, device: torch.device) -> MargeBatch:
        return self._replace(
            targets=to_device(self.targets, device), evidence=to_device(self.evidence, device)
        )

    def share(self, rank: int, size: int, pad_id: int = 0) -> MargeBatch:
        """Every size-th target from `rank` on, with all evidence; the parts' losses add up to the batch's.

        A part that no target is left for gets one of which nothing is predicted, and no weight.
        """
        own, predicted = self.targets[rank::size], int((self.targets[:, 1:] != pad_id).sum())
        share = len(own) / len(self.targets)
        if not len(own):
            own = self.targets[:1].clone()
            own[:, 1:] = pad_id
        return self._replace(targets=own, part=BatchPart(rank, size, share, predicted))


def mean_scores(scores: Tensor, present: Tensor, rows: Tensor, eps: float) -> Tensor:
    """Scores (B, H, T, M * S) of a layer -> their mean for each document (B, M); 0 where it has none.

    present (B or 1, M, S) where its tokens stand; rows (B, T, 1) where the target's do; `eps` is
    added to their number.
    """
    batch, heads, steps, _ = scores.shape
    documents, length = present.shape[1:]
    by_document = rearrange(scores, "b h t (m s) -> b h t m s", m=documents, s=length)
    seen = (present[:, None] & rows[..., None]).expand(batch, steps, documents, -1)  # (B, T, M, S)
    total = (by_document * seen[:, None]).sum(dim=(1, 2, 4))
    return total / (heads * seen.sum(dim=(1, 3)) + eps)


def attention_mass(scores: Tensor, seen: Tensor, rows: Tensor, documents: int) -> Tensor:
    """Scores of content alone (B, H, T, M * S) -> the share of attention each document would get (B, M).

    seen (B, T or 1, M * S) as in `marge_layers.Read`; rows (B, T, 1) where the target's tokens stand.
    """
    lowest = -torch.finfo(scores.dtype).max
    weights = scores.masked_fill(~seen[:, None], lowest).softmax(dim=-1) * seen[:, None]
    received = rearrange(weights, "b h t (m s) -> b h t m s", m=documents).sum(dim=-1)
    counted = rows[:, None]
    return (received * counted).sum(dim=(1, 2)) / (scores.shape[1] * rows.sum(dim=1)).clamp(min=1)


def looked(source: str, scores: Tensor, present: Tensor, seen: Tensor, rows: Tensor, eps: float) -> Tensor:
    """What a layer looked at, as logits over documents (B, M): MargeConfig.distill_from says by what."""
    if source == "scores":
        return mean_scores(scores, present, rows, eps)
    return attention_mass(scores, seen, rows, present.shape[1]).clamp(min=1e-6).log()


def distillation(looks: Tensor, relevance: Tensor, visible: Tensor | None) -> Tensor:
    """KL from what the layers looked at, looks (layers, B, M), to the relevance (B, M); in nats a target.

    Shares of attention differ by more than cosines can: for them the relevance comes times beta.
    Source: Izacard and Grave 2020, "Distilling knowledge from reader to retriever", section 3.2.
    """
    hidden = torch.zeros_like(relevance)
    if visible is not None:
        hidden = hidden.masked_fill(~visible, -torch.finfo(relevance.dtype).max)
    teacher = (looks.mean(dim=0) + hidden).softmax(dim=-1).detach()
    student = (relevance + hidden).log_softmax(dim=-1)
    return F.kl_div(student, teacher, reduction="batchmean")


SOFT_CANDIDATES = 4  # of a target, each read alone: what a soft label costs
SOFT_TEMPERATURE = 0.1  # nats a token: so much better evidence weighs e times as much
EPS = 1e-5  # where a mean of scores is over what masks leave: they may leave nothing


class MargeOutput(NamedTuple):
    """logits (B, T, V); relevance (B, M) of the evidence; the loss of attention distillation, if any."""

    logits: Tensor
    relevance: Tensor
    distill_loss: Tensor | None


class MARGE(nn.Module):
    """The multilingual autoencoder that retrieves and generates: `MARGE(config)(targets, evidence)`."""

    def __init__(self, config: MargeConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.num_tokens, config.dim)
        if config.absolute_positions:
            self.encoder_positions = nn.Embedding(config.absolute_positions, config.dim)
            self.decoder_positions = nn.Embedding(config.absolute_positions, config.dim)
        self.first = nn.Parameter(torch.zeros(config.dim))
        self.encoder_layers = nn.ModuleList(
            PlainLayer(config, config.enc_ff_mult, config.enc_attn_dropout) for _ in range(config.enc_depth)
        )
        self.base_layers = nn.ModuleList(
            PlainLayer(config, config.ff_mult, config.dec_attn_dropout) for _ in range(config.base_depth)
        )
        self.layers = nn.ModuleList(EvidenceLayer(config) for _ in range(config.dec_depth))
        self.norm_evidence = make_norm(config, config.dim) if config.final_norm else nn.Identity()
        self.norm = make_norm(config, config.dim) if config.final_norm else nn.Identity()
        if not config.tied_output:
            self.to_logits = Linear(config.dim, config.num_tokens)
        self.words = WordRelevance(config) if config.by_words else None
        draw_weights(self, config.enc_depth + config.base_depth + config.dec_depth)
        if config.copying_start:
            for layer in self.evidence_layers():
                draw_copying_weights(layer.read)

    def evidence_layers(self) -> list[EvidenceLayer]:
        """The decoder layers that read evidence, in order."""
        return cast(list[EvidenceLayer], list(self.layers))

    def betas(self) -> list[float]:
        """How much relevance weighs, for each layer that reads evidence."""
        return [layer.read.beta.item() for layer in self.evidence_layers()]

    def relevance_weights(self) -> list[nn.Parameter]:
        """The weights that nothing but relevance by words uses."""
        return [] if self.words is None else self.words.learned_weights()

    def present(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """Where a token stands (N, T): what the mask says, and what is not padding."""
        if not self.config.blind_padding:
            return torch.ones_like(tokens).bool() if mask is None else mask.bool()
        there = tokens != self.config.pad_id
        return there if mask is None else there & mask.bool()

    def encode(self, tokens: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """tokens (N, S), mask (N, S) True where one stands -> states (N, S, D), embeddings (N, D).

        With relevance by words embeddings are as wide as all its parts, see models/words.py.
        """
        x, attends = self._encoder_start(tokens, mask)
        x = self._encode_through(x, attends, 0, self.config.retrieval_depth)
        embeddings = x[:, 0]
        x = self._encode_through(x, attends, self.config.retrieval_depth, self.config.enc_depth)
        if self.words is not None:
            first = None if self.config.relevance_table else embeddings
            embeddings = self.words(tokens, self._readable(tokens, mask), first)
        return self.norm_evidence(x[:, 1:]), embeddings

    def embed(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """tokens (N, S) -> embeddings (N, D), as long as they come; as wide as those of `encode`."""
        if self.words is None:
            return self.first_tokens(tokens, mask)
        needed = self.words.widths[2] and not self.config.relevance_table
        first = self.first_tokens(tokens, mask) if needed else None
        return self.words(tokens, self._readable(tokens, mask), first)

    def first_tokens(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """tokens (N, S) -> states of the first tokens (N, D): the paper's embeddings.

        This costs the first layers only, and the last of them for the first token alone.
        """
        x, attends = self._encoder_start(tokens, mask)
        x = self._encode_through(x, attends, 0, self.config.retrieval_depth - 1)
        last = cast(PlainLayer, self.encoder_layers[self.config.retrieval_depth - 1])
        places = torch.arange(x.shape[1], device=x.device)
        first = x[:, :1] + last.attend.of_first(last.norm_attend(x), places, attends)
        return (first + last.think(last.norm_think(first)))[:, 0]

    def _encoder_start(self, tokens: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """The first token and the embedded ones (N, 1 + S, D), and who may look at whom."""
        present = self._readable(tokens, mask)
        x = self._embedded(tokens)
        if self.config.absolute_positions:
            x = x + self.encoder_positions(self._places(0, tokens.shape[1]))
        x = torch.cat([self.first.expand(len(x), 1, -1), x], dim=1)
        return x, self._mask(F.pad(present, (1, 0), value=True))

    def _readable(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """Where the encoder sees a token (N, S): a document's language is no part of what it says."""
        return self.present(tokens, mask) & (tokens < self.config.vocab_size)

    def _encode_through(self, x: Tensor, attends: Tensor, first: int, last: int) -> Tensor:
        places = torch.arange(x.shape[1], device=x.device)
        for layer in cast(list[PlainLayer], list(self.encoder_layers))[first:last]:
            x = layer(x, places, attends)
        return x

    def _embedded(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        return x * self.config.dim**0.5 if self.config.scale_embeddings else x

    def _places(self, start: int, count: int) -> Tensor:
        """Positions start ... start + count - 1; raises UserError where learned ones do not reach."""
        most = self.config.absolute_positions
        if most and start + count > most:
            raise UserError(
                f"The text has {start + count} tokens, but this model has positions for {most}. Shorten it."
            )
        return torch.arange(start, start + count, device=self.embedding.weight.device)

    def _mask(self, present: Tensor, causal: Tensor | None = None) -> Tensor:
        """present (N, S) -> who looks at whom (N, 1, S, S).

        With `blind_padding` padding looks as any token does, else at nothing; nothing looks at it.
        """
        if self.config.blind_padding:
            seen = key_mask(present)
        else:
            seen = (present[:, None, :] & present[:, :, None])[:, None]
        return seen if causal is None else seen & causal

    def encode_evidence(self, evidence: Tensor, mask: Tensor | None = None) -> Evidence:
        """evidence (M, S), shared by the batch, or (B, M, S), each target's own -> Evidence."""
        if evidence.ndim == 2:
            evidence = evidence[None]
            mask = None if mask is None else mask[None]
        batch = len(evidence)
        flat = rearrange(evidence, "b m s -> (b m) s")
        flat_mask = None if mask is None else rearrange(mask, "b m s -> (b m) s")
        states, embeddings = self.encode(flat, flat_mask)
        return Evidence(
            rearrange(states, "(b m) s d -> b m s d", b=batch),
            rearrange(self._readable(flat, flat_mask), "(b m) s -> b m s", b=batch),
            rearrange(embeddings, "(b m) d -> b m d", b=batch),
        )

    def _encode_together(self, evidence: Tensor, part: BatchPart) -> Evidence:
        """As `encode_evidence` of evidence (M, S), of which each of several processes encodes some."""
        states, embeddings = shared_rows(self.encode, evidence, part.rank, part.size)
        return Evidence(states[None], self._readable(evidence, None)[None], embeddings[None])

    def relevance(self, target_embeds: Tensor, evidence_embeds: Tensor) -> Tensor:
        """target_embeds (B, D), evidence_embeds (B or 1, M, D), as `embed` gives them -> f (B, M)."""
        return self._match(F.normalize(target_embeds, dim=-1), evidence_embeds)

    def _match(self, target_embeds: Tensor, evidence_embeds: Tensor) -> Tensor:
        """The same of embeddings as they come: with dot their length counts, the target's too."""
        if self.config.relevance == "cosine":
            target_embeds = F.normalize(target_embeds, dim=-1)
            evidence_embeds = F.normalize(evidence_embeds, dim=-1)
        with torch.autocast(target_embeds.device.type, enabled=False):  # as exact as in the index
            return (evidence_embeds @ target_embeds[:, :, None]).squeeze(-1)

    def forward(
        self,
        targets: Tensor,
        evidence: Tensor | None,
        *,
        target_mask: Tensor | None = None,
        evidence_mask: Tensor | None = None,
        target_embeds: Tensor | None = None,
        relevance: Tensor | None = None,
        visible: Tensor | None = None,
        encoded: Evidence | None = None,
    ) -> MargeOutput:
        """targets (B, T), evidence (M, S) or each target's own (B, M, S), or None -> MargeOutput.

        logits[:, t] predict token t + 1 from the tokens up to t. Masks are True where a token stands
        (default: where it is not padding). `target_embeds` (B, D): default the targets' own, of length 1;
        `relevance` (B, M) takes the place of the computed one; `visible` (B, M) says which evidence
        each target may see (default: all of it); `encoded` is the evidence, where that is done.
        """
        present = self.present(targets, target_mask)
        if evidence is None:
            evidence = targets.new_full((0, 1), self.config.pad_id)
        encoded = encoded or self.encode_evidence(evidence, evidence_mask)
        if relevance is None:
            if target_embeds is None:
                target_embeds = F.normalize(self.embed(targets, target_mask), dim=-1)
            relevance = self._match(target_embeds, encoded.embeddings)
        seen = self._seen(encoded.present, len(targets), visible)
        rows = present[:, :, None]
        if not self.config.blind_padding:
            seen, rows = seen & rows, torch.ones_like(rows)
        steps = self._places(0, targets.shape[1])
        attends = self._mask(present, causal=steps[:, None] >= steps)
        x = self._decoder_start(targets, steps)
        for layer in cast(list[PlainLayer], list(self.base_layers)):
            x = layer(x, steps, attends)
        looks, masked = [], self.config.blind_padding or evidence_mask is not None
        for layer in self.evidence_layers():
            read = layer.read.ready(layer.read.keys_values(encoded.states), relevance, seen)
            x, scores = layer(x, steps, attends, read)
            if self.config.distill and relevance.shape[1] and scores is not None:
                eps = EPS / len(self.layers) * masked
                looks.append(looked(self.config.distill_from, scores, encoded.present, seen, rows, eps))
        sharp = sum(self.betas()) / len(self.layers) if self.config.distill_from == "mass" and looks else 1.0
        distill_loss = distillation(torch.stack(looks), relevance * sharp, visible) if looks else None
        return MargeOutput(self.logits(x), relevance, distill_loss)

    def _seen(self, present: Tensor, batch: int, visible: Tensor | None) -> Tensor:
        """present (B or 1, M, S), visible (B, M) -> what each target sees of the evidence (B, 1, M * S)."""
        present = present.expand(batch, -1, -1)
        if visible is not None:
            present = present & visible[:, :, None]
        return rearrange(present, "b m s -> b 1 (m s)")

    def _decoder_start(self, tokens: Tensor, places: Tensor) -> Tensor:
        x = self._embedded(tokens)
        return x + self.decoder_positions(places) if self.config.absolute_positions else x

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden (B, T, D) -> (B, T, V)."""
        hidden = self.norm(hidden)
        return linear(hidden, self.embedding.weight) if self.config.tied_output else self.to_logits(hidden)

    def begin(
        self, encoded: Evidence, relevance: Tensor, visible: Tensor | None = None, room: int = 0
    ) -> WriteCache:
        """Get ready to write from evidence of this relevance (B, M): its keys and values, made once.

        `room`: how many tokens there will be, where that is known.
        """
        contexts = [layer.read.keys_values(encoded.states) for layer in self.evidence_layers()]
        seen = self._seen(encoded.present, len(relevance), visible)
        return WriteCache(relevance, seen, contexts, defaultdict(lambda: Memory(room)))

    def extend(self, tokens: Tensor, cache: WriteCache) -> Tensor:
        """Read tokens (B, n) after those in the cache -> logits (B, n, V), equal to `forward`'s."""
        return self.logits(self.read(tokens, cache))

    def next_logits(self, tokens: Tensor, cache: WriteCache) -> Tensor:
        """The same, but the logits (B, V) after the last of the tokens only."""
        hidden = self.read(tokens, cache)[:, -1]
        if not self.config.tied_output:
            return self.logits(hidden)
        if cache.output is None:
            cache.output = self.embedding.weight.t().contiguous()
        return self.norm(hidden) @ cache.output

    def read(self, tokens: Tensor, cache: WriteCache) -> Tensor:
        """Read tokens (B, n) after those in the cache -> their last hidden states (B, n, D)."""
        count = tokens.shape[1]
        places, attends = self._places(cache.length, count), None
        if count > 1:
            everything = torch.arange(cache.length + count, device=tokens.device)
            attends = (everything <= places[:, None])[None, None]
        if not cache.reads:
            layers = zip(self.evidence_layers(), cache.contexts, strict=True)
            cache.reads = [
                layer.read.ready(context, cache.relevance, cache.seen) for layer, context in layers
            ]
        x = self._decoder_start(tokens, places)
        for number, layer in enumerate(cast(list[PlainLayer], list(self.base_layers))):
            x = layer(x, places, attends, cache.memories[f"base {number}"])
        for number, layer in enumerate(self.evidence_layers()):
            memory = cache.memories[f"evidence {number}"]
            x, _ = layer(x, places, attends, cache.reads[number], memory)
        cache.length += count
        return x

    def token_losses(self, targets: Tensor, evidence: Tensor | None, **how: Tensor | None) -> Tensor:
        """targets (B, T) -> loss of each token after the first (B, T - 1), in nats; padding costs 0.

        `how` is what `forward` takes by name.
        """
        return self._token_losses(targets, self(targets, evidence, **how).logits)

    def _token_losses(self, targets: Tensor, logits: Tensor) -> Tensor:
        losses = F.cross_entropy(
            rearrange(logits[:, :-1], "b t v -> (b t) v"),
            rearrange(targets[:, 1:], "b t -> (b t)"),
            ignore_index=self.config.pad_id,
            reduction="none",
        )
        return rearrange(losses, "(b t) -> b t", b=len(targets))

    def loss(self, batch: MargeBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean loss of the batch's tokens in nats, with that of distillation; figures to report beside it."""
        if batch.part is None:
            encoded = self.encode_evidence(batch.evidence)
        else:
            encoded = self._encode_together(batch.evidence, batch.part)
        out = self(batch.targets, batch.evidence, encoded=encoded)
        losses = self._token_losses(batch.targets, out.logits)
        if batch.part is None:
            loss, share = losses.sum() / (batch.targets[:, 1:] != self.config.pad_id).sum().clamp(min=1), 1.0
        else:
            loss, share = losses.sum() / max(1, batch.part.predicted), batch.part.share
        told: dict[str, Tensor] = {}
        if out.distill_loss is not None:
            loss = loss + share * self.config.distill * out.distill_loss
            told["distill"] = out.distill_loss.detach()
        if self.config.soft_labels and batch.compared > 1:
            soft = self.soft_label_loss(batch, encoded, out.relevance)
            loss = loss + share * self.config.soft_labels * soft
            told["soft_labels"] = soft.detach()
        return loss, told

    def soft_label_loss(self, batch: MargeBatch, encoded: Evidence, relevance: Tensor) -> Tensor:
        """KL from which evidence explains a target to its relevance (B, M); in nats a target.

        The SOFT_CANDIDATES most relevant passages of the evidence are read one by one, all as if they were as
        relevant as the best; how likely a token of the target is after each, on average, gives the shares
        that relevance times beta has to have. Only relevance gets a gradient.
        Source: Sachan et al. 2023, "Questions are all you need to train a dense passage retriever".
        """
        count = min(SOFT_CANDIDATES, batch.compared)
        best = relevance.detach()[:, : batch.compared].topk(count, dim=1)
        with torch.no_grad():
            each = best.indices.flatten()  # (B * K,)
            alone = Evidence(*(part[0].detach()[each][:, None] for part in encoded))
            targets = batch.targets.repeat_interleave(count, dim=0)
            equal = best.values[:, :1].repeat_interleave(count, dim=0)  # (B * K, 1)
            losses = self._token_losses(targets, self(targets, None, encoded=alone, relevance=equal).logits)
            written = (targets[:, 1:] != self.config.pad_id).sum(dim=1).clamp(min=1)
            likely = -rearrange(losses.sum(dim=1) / written, "(b k) -> 1 b k", k=count)
        sharp = sum(self.betas()) / len(self.layers)
        return distillation(likely / SOFT_TEMPERATURE, relevance.gather(1, best.indices) * sharp, None)
