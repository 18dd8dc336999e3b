"""The shape of a MARGE network and how it finds its evidence, as frozen dataclasses of knobs.

The defaults follow the paper (Lewis et al. 2020), at a size that a CPU trains. What stands behind
"further options" is off by default; together these make the network of marge-pytorch 0.2.9
(`interop/interop_marge.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

from retro_demo.errors import UserError
from retro_demo.knobs import check_ranges, knob, seen


@dataclass(frozen=True)
class MargeConfig:
    """The shape of a MARGE network."""

    vocab_size: int = knob(4096, "Vocabulary", "Tokens of text.", low=4, high=1_000_000, derived=True)
    pad_id: int = knob(0, "Padding", "Token that stands for nothing.", low=0, high=1_000_000, derived=True)
    languages: tuple[str, ...] = ()
    """Each has a token of its own behind those of the text; a document begins with its language's."""
    dim: int = knob(128, "Width", "Width of encoder and decoder.", low=1, high=8192)
    num_heads: int = knob(4, "Heads", "Attention heads; they divide the width.", low=1, high=128)
    enc_depth: int = knob(3, "Encoder layers", "Layers of the encoder (12 in the paper).", low=1, high=128)
    retrieval_depth: int = knob(
        2,
        "Layers of relevance",
        "First encoder layers, whose first token is the embedding of a document (4 in the paper).",
        low=1,
        high=128,
    )
    base_depth: int = knob(
        1,
        "Base layers",
        "Decoder layers below the first that reads evidence (4 in the paper).",
        low=0,
        high=128,
    )
    dec_depth: int = knob(
        2, "Layers with evidence", "Decoder layers that read evidence (12 in the paper).", low=0, high=128
    )
    enc_ff_mult: int = knob(
        4, "Encoder feed-forward factor", "Width of its feed-forward layers over the width.", low=1, high=64
    )
    ff_mult: int = knob(
        4, "Base feed-forward factor", "The same, in the decoder's base layers.", low=1, high=64
    )
    dec_ff_mult: int = knob(
        4,
        "Feed-forward factor behind evidence",
        "The same, in the decoder layers that read evidence (about 16 in the paper).",
        low=1,
        high=64,
    )
    dropout: float = knob(0.0, "Dropout", "Share of the activations dropped in training.", low=0.0, high=0.9)
    distill: float = knob(
        0.0,
        "Attention distillation",
        "Weight of a second loss: relevance follows what the cross-attention looks at (0: none, as in "
        "the paper).",
        low=0.0,
        high=1000.0,
    )
    distill_from: str = knob(
        "scores",
        "Distillation from",
        "scores: the mean score of a document's tokens, as in the reference; mass: the share of attention "
        "that a document gets by its content.",
        choices=("scores", "mass"),
    )
    beta_start: float = knob(
        1.0,
        "First beta",
        "How much relevance weighs in attention before training; it is learned from there.",
        low=0.0,
        high=100.0,
    )
    shifted_keys: bool = knob(
        False,
        "Shifted keys",
        "A token of evidence is found by the token before it, so that one layer can copy what followed the "
        "same word (not in the paper).",
    )
    abstain: bool = knob(
        False,
        "May abstain",
        "Cross-attention gets a learned key that writes nothing, to turn to where no evidence is of use "
        "(not in the paper).",
    )
    copying_start: bool = knob(
        False,
        "Start as a copier",
        "Cross-attention begins by finding like tokens and writing them as they are.",
    )

    # further options
    relevance: str = knob(
        "cosine",
        "Relevance",
        "cosine: of both embeddings, in [-1, 1], as in the paper and in the index; dot: the evidence's "
        "embedding keeps its length, as in the reference.",
        choices=("cosine", "dot"),
    )
    norm: str = knob("rms", "Norm", "rms: RMSNorm; layer: LayerNorm.", choices=("rms", "layer"))
    norm_eps: float = knob(
        0.0, "Epsilon", "Added to the variance in norms; 0: torch's own.", low=0.0, high=1e-2
    )
    final_norm: bool = knob(True, "Final norms", "A norm at the end of encoder and decoder.")
    biases: bool = knob(False, "Biases", "Biases in output projections and feed-forward layers.")
    gated: bool = knob(
        False, "Gated feed-forward", "GEGLU in the feed-forward layers, at two thirds of their width."
    )
    extra_ff: bool = knob(
        False, "Second feed-forward", "A feed-forward layer between self- and cross-attention, too."
    )
    tied_output: bool = knob(True, "Tied output", "The embeddings also are the output layer.")
    scale_embeddings: bool = knob(True, "Scaled embeddings", "Embeddings times the root of their width.")
    absolute_positions: int = knob(
        0, "Absolute positions", "Learned positions, so many; 0: rotary ones.", low=0, high=65_536
    )
    full_width_scale: bool = knob(
        False,
        "Scale by the whole width",
        "Attention scores over the root of the whole width rather than of a head's.",
    )
    blind_padding: bool = knob(
        True,
        "Padding is not read",
        "What is padding attends as any token does. Off: it averages over everything, and padding is "
        "only what a mask says.",
    )
    enc_attn_dropout: float = knob(
        0.0,
        "Encoder attention dropout",
        "Share of attention weights dropped in training.",
        low=0.0,
        high=0.9,
    )
    dec_attn_dropout: float = knob(
        0.0, "Decoder attention dropout", "The same, in the decoder.", low=0.0, high=0.9
    )

    def __post_init__(self) -> None:
        check_ranges(self)
        if not isinstance(self.languages, tuple) or not all(isinstance(one, str) for one in self.languages):
            raise UserError(f"languages is {seen(self.languages)}, but it must be a list of names.")
        if self.dim % self.num_heads:
            raise UserError(
                f"num_heads is {self.num_heads}, but it must divide dim ({self.dim}).", num_heads="", dim=""
            )
        if self.retrieval_depth > self.enc_depth:
            raise UserError(
                f"retrieval_depth is {self.retrieval_depth}, but the encoder has {self.enc_depth} layers. "
                "Choose at most as many.",
                retrieval_depth="",
            )
        if self.absolute_positions == 0 and self.dim // self.num_heads % 2:
            raise UserError(
                f"A head of {self.dim // self.num_heads} dimensions cannot carry rotary positions: choose "
                "heads of an even width."
            )

    @property
    def num_tokens(self) -> int:
        """Rows of the embedding table: tokens of text, then one for each language."""
        return self.vocab_size + len(self.languages)


@dataclass(frozen=True)
class EvidenceConfig:
    """What a MARGE run takes for documents, and how it finds evidence for them."""

    passage_len: int = knob(
        128,
        "Passage length",
        "Tokens of a passage, its language token included: longer documents are cut. MARGE reads and "
        "writes passages.",
        low=8,
        high=4096,
        main=True,
    )
    refresh_every: int = knob(
        100,
        "Re-index every",
        "Steps after which all passages are embedded anew with the encoder as it is then (10,000 in the "
        "paper).",
        low=1,
        high=1_000_000,
        main=True,
    )
    evidence_per_target: float = knob(
        8.0,
        "Evidence for each target",
        "On average: so many pairs times the targets are kept, the most relevant of the whole shard, so "
        "some targets get more, others rest without any.",
        low=0.1,
        high=100.0,
        main=True,
    )
    evidence_languages: str = knob(
        "any",
        "Evidence languages",
        "any; other: only passages in another language than the target's can be its evidence.",
        choices=("any", "other"),
    )
    evidence_source: str = knob(
        "retrieved",
        "Evidence from",
        "retrieved: what the encoder finds; random: passages at random throughout, the control that has as "
        "many pairs and no content.",
        choices=("retrieved", "random"),
    )
    evidence_set: str = knob(
        "all",
        "Evidence among",
        "all: every text that is not held out, so targets are evidence for one another; database: only texts "
        'whose use is "database", so that targets and evidence are two sets.',
        choices=("all", "database"),
    )
    language_weight: float = knob(
        100.0,
        "Weight across languages",
        "What a pair of two languages counts in making batches, where one of the same language counts 1.",
        low=0.0,
        high=1e6,
    )
    same_document: bool = knob(
        False,
        "Same-document evidence",
        "Other passages of the target's own document may be its evidence, as in the paper.",
    )
    first_passages: bool = knob(
        False,
        "First passages only",
        "Only the first passage of a document is a target, as for news in the paper.",
    )
    shard_size: int = knob(
        4096,
        "Shard",
        "Passages in a shard: evidence is looked for within it. A smaller corpus is one shard.",
        low=16,
        high=10_000_000,
    )
    shard_by: str = knob(
        "group",
        "Shards keep together",
        "group: documents of one group (say, translations of one another); document: only the passages "
        "of a document.",
        choices=("group", "document"),
    )
    batch_tokens: int = knob(
        4096,
        "Batch",
        "Tokens in a batch at most, targets and evidence together.",
        low=64,
        high=10_000_000,
    )

    def __post_init__(self) -> None:
        check_ranges(self)
