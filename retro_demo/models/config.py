"""The shapes of the networks of RETRO and MARGE, as frozen dataclasses of settings.

The defaults follow the papers (Borgeaud et al. 2022; Lewis et al. 2020), MARGE at a size that a CPU trains.
What a default-reader may skip stands behind "further options": each is off by default, and together they
make the networks of RETRO-pytorch 0.3.9 (`interop/retro_pytorch.py`) and of marge-pytorch 0.2.9
(`interop/marge_pytorch.py`). Settings of anything but a network stand in `settings.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from retro_demo.errors import UserError
from retro_demo.settings import Settings, check_ranges, seen, setting


class NetworkConfig(Protocol):
    """What the shape of any network tells; it is a frozen dataclass of settings."""

    @property
    def vocab_size(self) -> int: ...


def _dropout(label: str, help: str) -> Any:
    return setting(0.0, label, help, within=(0.0, 0.9))


RESIDUALS = ("pre", "deepnet", "deepnet-reference")


@dataclass(frozen=True)
class RetroConfig:
    """The shape of a RETRO network. Without `cca_layers` it is a plain decoder: the matched `lm`."""

    vocab_size: int = setting(4096, "Vocabulary", "Tokens.", within=(4, 1_000_000), derived=True)
    chunk_len: int = setting(64, "Chunk length", "Tokens in a chunk (m).", within=(1, 4096), derived=True)
    pad_id: int = setting(0, "Padding", "Token that stands for nothing.", within=(0, 1_000_000), derived=True)
    dim: int = setting(128, "Width", "Width of the decoder (d).", within=(1, 8192))
    depth: int = setting(4, "Layers", "Decoder layers.", within=(1, 128))
    num_heads: int = setting(
        4,
        "Heads",
        "Attention heads; they divide both widths, unless a head's width is given.",
        within=(1, 128),
    )
    cca_layers: tuple[int, ...] = setting(
        (2, 4),
        "Layers with retrieval",
        "Decoder layers with chunked cross-attention, counted from 1 (P in the paper).",
        within=(1, 128),
    )
    enc_dim: int = setting(128, "Encoder width", "Width of the neighbor encoder (d').", within=(1, 8192))
    enc_depth: int = setting(1, "Encoder layers", "Layers of the neighbor encoder.", within=(1, 32))
    enc_cross_layers: tuple[int, ...] = setting(
        (1,),
        "Encoder layers that see the chunk",
        "Encoder layers that attend to the chunk, counted from 1 (P_enc in the paper).",
        within=(1, 32),
    )
    ff_mult: int = setting(
        4, "Feed-forward factor", "Width of the feed-forward layers over the width.", within=(1, 16)
    )
    dropout: float = _dropout(
        "Dropout", "Share of the activations that each layer writes dropped in training."
    )

    # further options
    dim_head: int = setting(
        0, "Head width", "Width of a head; 0 divides the width by the heads.", within=(0, 1024)
    )
    rotary_dims: int = setting(
        0, "Rotary dimensions", "Dimensions of a head that turn with its position; 0: all.", within=(0, 1024)
    )
    norm: str = setting(
        "rms",
        "Norm",
        "rms: RMSNorm, as in the paper; gated_rms: RMSNorm times a learned gate; layer: LayerNorm.",
        choices=("rms", "gated_rms", "layer"),
    )
    norm_eps: float = setting(
        0.0,
        "Epsilon",
        "Added to the variance in norms; 0: torch's own (the number type's for rms, 1e-5 for layer).",
        within=(0.0, 1e-2),
    )
    residual: str = setting(
        "pre",
        "Residuals",
        "pre: norms before each layer; deepnet: after it, with DeepNet's scales and first weights, for many "
        "layers; deepnet-reference: so too, but a cross-attention without neighbors is left out with its "
        "norm, as in RETRO-pytorch.",
        choices=RESIDUALS,
    )
    enc_residual_scale: float = setting(
        0.0,
        "Encoder residual scale",
        "With deepnet: factor of the encoder's residual stream; 0: DeepNet's formula.",
        within=(0.0, 1000.0),
    )
    dec_residual_scale: float = setting(
        0.0,
        "Decoder residual scale",
        "With deepnet: factor of the decoder's residual stream; 0: DeepNet's formula.",
        within=(0.0, 1000.0),
    )
    null_kv: bool = setting(
        False,
        "Null key",
        "Chunked cross-attention gets a learned key to turn to where no neighbor is of use. "
        "Nothing retrieved is then no longer the same as neighbors of nothing but padding.",
    )
    abstain: bool = setting(
        False,
        "May abstain",
        "Chunked cross-attention gets a learned key that writes nothing, to turn to where the neighbors are "
        "of no use (not in the paper). Neighbors of nothing but padding still are no neighbors.",
    )
    cca_positions: str = setting(
        "paper",
        "Positions in cross-attention",
        "paper: queries at m - 1 to 2m - 2, so that N is aligned with its chunk; reference: the doubly "
        "shifted ones of RETRO-pytorch (2m - 2, then 0), with which a query does not know its place.",
        choices=("paper", "reference"),
    )
    shifted_keys: bool = setting(
        False,
        "Shifted keys",
        "A neighbor's token is found by the token before it, so that one layer can copy what followed the "
        "same words (not in the paper; makes reading emerge in minutes).",
    )
    copying_start: bool = setting(
        False,
        "Start as a copier",
        "Chunked cross-attention begins with keys like its queries and outputs like its values (not in the "
        "paper); encoder and decoder then have one width.",
    )
    absolute_positions: int = setting(
        0,
        "Absolute positions",
        "Learned positions, added to the text beside the rotary ones: as many as the longest text; 0: none.",
        within=(0, 1_000_000),
    )
    embed_at: str = setting(
        "decoder",
        "Embedding width",
        "Whose width token embeddings have: the decoder's or the encoder's; the other gets a projection.",
        choices=("decoder", "encoder"),
    )
    scale_embeddings: bool = setting(
        True, "Scale embeddings", "Multiply embeddings by the root of their width, to a size of about 1."
    )
    tied_output: bool = setting(
        True, "Tied output", "The output layer is the token embedding; else it has weights of its own."
    )
    biases: bool = setting(False, "Biases", "Biases in output projections, feed-forward and output layers.")
    final_norm: bool = setting(
        True, "Final norms", "Norms at the end of encoder and decoder (never with deepnet)."
    )
    norm_states: bool = setting(
        True, "Norm of the chunk", "A norm on the chunk's states before the encoder attends to them."
    )
    enc_projection: bool = setting(
        False, "Project the encoder", "Project encoded neighbors to the decoder's width before they are read."
    )
    mask_padding: bool = setting(
        True, "Mask padding", "Padding in the text is not attended to (in neighbors it never is)."
    )
    enc_attn_dropout: float = _dropout(
        "Encoder attention dropout", "Share of the encoder's attention dropped."
    )
    enc_ff_dropout: float = _dropout(
        "Encoder hidden dropout", "Share of the encoder's hidden feed-forward activations dropped."
    )
    dec_attn_dropout: float = _dropout(
        "Decoder attention dropout", "Share of the decoder's attention dropped."
    )
    dec_ff_dropout: float = _dropout(
        "Decoder hidden dropout", "Share of the decoder's hidden feed-forward activations dropped."
    )

    def __post_init__(self) -> None:
        check_ranges(self)
        for name, width in (("dim", self.dim), ("enc_dim", self.enc_dim)):
            if not self.dim_head and width % (2 * self.num_heads):
                raise UserError(
                    f"{name} is {width}, which {self.num_heads} heads do not divide into even parts. "
                    f"Choose a multiple of {2 * self.num_heads}.",
                    **{name: ""},
                )
            turning = self.rotary_dims or self.head_width(width)
            if turning % 2 or turning > self.head_width(width):
                raise UserError(
                    f"{turning} dimensions of a head cannot turn where it has {self.head_width(width)} "
                    f"({name} {width}). Choose an even number of rotary_dims, at most a head's width.",
                    **{name: "", "rotary_dims": ""},
                )
        for name, layers, depth in (
            ("cca_layers", self.cca_layers, self.depth),
            ("enc_cross_layers", self.enc_cross_layers, self.enc_depth),
        ):
            if layers and max(layers) > depth:
                raise UserError(
                    f"{name} names layer {max(layers)}, but there are only {depth}.", **{name: ""}
                )
        if self.copying_start and self.cca_layers and self.encoded_dim != self.dim:
            raise UserError(
                f"A start as a copier needs neighbors of the decoder's width ({self.dim}), but they have "
                f"{self.encoded_dim}. Make enc_dim {self.dim}, or set copying_start to false.",
                enc_dim="",
                copying_start="",
            )
        if self.tied_output and self.embed_dim != self.dim:
            raise UserError(
                f"Embeddings of the encoder's width ({self.enc_dim}) cannot be the output layer of a decoder "
                f"of width {self.dim}. Make the widths equal, or set tied_output to false.",
                tied_output="",
            )

    @property
    def has_null(self) -> bool:
        """Whether cross-attention may turn to nothing."""
        return self.null_kv or self.abstain

    @property
    def attention_layers(self) -> list[int]:
        """The layers whose attention to neighbors is shown."""
        return sorted(self.cca_layers)

    @property
    def unwritten(self) -> tuple[int, ...]:
        """Tokens that no text holds."""
        return (self.pad_id,)

    @property
    def title_len(self) -> int:
        """Tokens of a title before a neighbor: none."""
        return 0

    @property
    def neighbor_len(self) -> int:
        """Tokens of a neighbor with its continuation (r = 2m)."""
        return 2 * self.chunk_len

    def head_width(self, width: int) -> int:
        """Width of a head in layers of this width."""
        return self.dim_head or width // self.num_heads

    @property
    def embed_dim(self) -> int:
        """Width of the token embeddings."""
        return self.dim if self.embed_at == "decoder" else self.enc_dim

    @property
    def encoded_dim(self) -> int:
        """Width of encoded neighbors, as chunked cross-attention reads them."""
        return self.dim if self.enc_projection else self.enc_dim

    @property
    def enc_scale(self) -> float | None:
        """Factor of the encoder's residual stream; None: pre-norm.

        Source: Wang et al. 2022 (DeepNet), figure 2, encoder-decoder: N is the encoder's depth,
        M the decoder's.
        """
        if self.residual == "pre":
            return None
        return self.enc_residual_scale or 0.81 * (self.enc_depth**4 * self.depth) ** 0.0625

    @property
    def dec_scale(self) -> float | None:
        """Factor of the decoder's residual stream, as `enc_scale`."""
        if self.residual == "pre":
            return None
        return self.dec_residual_scale or (3 * self.depth) ** 0.25


@dataclass(frozen=True)
class MargeConfig:
    """The shape of a MARGE network."""

    vocab_size: int = setting(4096, "Vocabulary", "Tokens of text.", within=(4, 1_000_000), derived=True)
    pad_id: int = setting(0, "Padding", "Token that stands for nothing.", within=(0, 1_000_000), derived=True)
    languages: tuple[str, ...] = ()
    """Each has a token of its own behind those of the text; a document begins with its language's."""
    dim: int = setting(128, "Width", "Width of encoder and decoder.", within=(1, 8192))
    num_heads: int = setting(4, "Heads", "Attention heads; they divide the width.", within=(1, 128))
    enc_depth: int = setting(3, "Encoder layers", "Layers of the encoder (12 in the paper).", within=(1, 128))
    retrieval_depth: int = setting(
        2,
        "Layers of relevance",
        "First encoder layers, whose first token is the embedding of a document (4 in the paper).",
        within=(1, 128),
    )
    base_depth: int = setting(
        1,
        "Base layers",
        "Decoder layers below the first that reads evidence (4 in the paper).",
        within=(0, 128),
    )
    dec_depth: int = setting(
        2, "Layers with evidence", "Decoder layers that read evidence (12 in the paper).", within=(0, 128)
    )
    enc_ff_mult: int = setting(
        4, "Encoder feed-forward factor", "Width of its feed-forward layers over the width.", within=(1, 64)
    )
    ff_mult: int = setting(
        4, "Base feed-forward factor", "The same, in the decoder's base layers.", within=(1, 64)
    )
    dec_ff_mult: int = setting(
        4,
        "Feed-forward factor behind evidence",
        "The same, in the decoder layers that read evidence (about 16 in the paper).",
        within=(1, 64),
    )
    dropout: float = _dropout("Dropout", "Share of the activations dropped in training.")
    distill: float = setting(
        0.0,
        "Attention distillation",
        "Weight of a second loss: relevance follows what the cross-attention looks at (0: none, as in "
        "the paper).",
        within=(0.0, 1000.0),
    )
    distill_from: str = setting(
        "scores",
        "Distillation from",
        "scores: the mean score of a document's tokens, as in the reference; mass: the share of attention "
        "that a document gets by its content.",
        choices=("scores", "mass"),
    )
    soft_labels: float = setting(
        0.0,
        "Soft labels",
        "Weight of a loss by which relevance follows how likely a target is after each of four passages, "
        "read alone (0: none, as in the paper).",
        within=(0.0, 1000.0),
    )
    beta_start: float = setting(
        1.0,
        "First beta",
        "How much relevance weighs in attention before training; it is learned from there.",
        within=(0.0, 100.0),
    )
    shifted_keys: bool = setting(
        False,
        "Shifted keys",
        "A token of evidence is found by the token before it, so that one layer can copy what followed the "
        "same word (not in the paper).",
    )
    abstain: bool = setting(
        False,
        "May abstain",
        "Cross-attention gets a learned key that writes nothing, to turn to where no evidence is of use "
        "(not in the paper).",
    )
    copying_start: bool = setting(
        False,
        "Start as a copier",
        "Cross-attention begins by finding like tokens and writing them as they are.",
    )

    # further options
    relevance: str = setting(
        "cosine",
        "Relevance",
        "cosine: of both embeddings, in [-1, 1], as in the paper and in the index; dot: the evidence's "
        "embedding keeps its length, as in the reference.",
        choices=("cosine", "dot"),
    )
    relevance_words: float = setting(
        0.0,
        "Relevance by words",
        "Share of the relevance that is how alike the tokens of two texts are, rare ones more; what a token "
        "weighs is learned (0: none, as in the paper).",
        within=(0.0, 1.0),
    )
    relevance_ngrams: float = setting(
        0.0,
        "Relevance by spelling",
        "Share that is how alike the words are by 3 to 5 of their letters in a row, which is never learned.",
        within=(0.0, 1.0),
    )
    relevance_table: int = setting(
        0,
        "Learned table",
        "Width of a learned vector for each token; their sum takes the encoder's place in the rest of the "
        "relevance. 0: the state of the first token, as in the paper.",
        within=(0, 4096),
    )
    center: bool = setting(
        False,
        "Centered by language",
        "From each embedding the mean of its language is taken away, as it was at the last re-index.",
    )
    norm: str = setting("rms", "Norm", "rms: RMSNorm; layer: LayerNorm.", choices=("rms", "layer"))
    norm_eps: float = setting(
        0.0, "Epsilon", "Added to the variance in norms; 0: torch's own.", within=(0.0, 1e-2)
    )
    final_norm: bool = setting(True, "Final norms", "A norm at the end of encoder and decoder.")
    biases: bool = setting(False, "Biases", "Biases in output projections and feed-forward layers.")
    gated: bool = setting(
        False, "Gated feed-forward", "GEGLU in the feed-forward layers, at two thirds of their width."
    )
    extra_ff: bool = setting(
        False, "Second feed-forward", "A feed-forward layer between self- and cross-attention, too."
    )
    tied_output: bool = setting(True, "Tied output", "The embeddings also are the output layer.")
    scale_embeddings: bool = setting(True, "Scaled embeddings", "Embeddings times the root of their width.")
    absolute_positions: int = setting(
        0, "Absolute positions", "Learned positions, so many; 0: rotary ones.", within=(0, 65_536)
    )
    full_width_scale: bool = setting(
        False,
        "Scale by the whole width",
        "Attention scores over the root of the whole width rather than of a head's.",
    )
    blind_padding: bool = setting(
        True,
        "Padding is not read",
        "What is padding attends as any token does. Off: it averages over everything, and padding is "
        "only what a mask says.",
    )
    enc_attn_dropout: float = _dropout(
        "Encoder attention dropout", "Share of attention weights dropped in training."
    )
    dec_attn_dropout: float = _dropout("Decoder attention dropout", "The same, in the decoder.")

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
        if self.relevance_words + self.relevance_ngrams > 1 + 1e-9:
            raise UserError(
                f"relevance_words is {self.relevance_words} and relevance_ngrams {self.relevance_ngrams}, "
                "but together they can be at most 1. Make one of them smaller.",
                relevance_words="",
                relevance_ngrams="",
            )
        if self.relevance == "dot" and self.by_words:
            raise UserError(
                "Relevance by words, a learned table and centering are for the cosine, but relevance is dot. "
                "Choose cosine.",
                relevance="",
            )
        if self.absolute_positions == 0 and self.dim // self.num_heads % 2:
            raise UserError(
                f"A head of {self.dim // self.num_heads} dimensions cannot carry rotary positions: choose "
                "heads of an even width."
            )

    @property
    def by_words(self) -> bool:
        """Whether relevance is anything but the paper's: the encoder's first tokens, as they are."""
        return bool(self.relevance_words or self.relevance_ngrams or self.relevance_table or self.center)

    @property
    def num_tokens(self) -> int:
        """Rows of the embedding table: tokens of text, then one for each language."""
        return self.vocab_size + len(self.languages)


@dataclass(frozen=True)
class EvidenceConfig(Settings):
    """What a MARGE run takes for documents, and how it finds evidence for them."""

    passage_len: int = setting(
        128,
        "Passage length",
        "Tokens of a passage, its language token included: longer documents are cut. MARGE reads and "
        "writes passages.",
        within=(8, 4096),
        main=True,
    )
    refresh_every: int = setting(
        100,
        "Re-index every",
        "Steps after which all passages are embedded anew with the encoder as it is then (10,000 in the "
        "paper).",
        within=(1, 1_000_000),
        main=True,
    )
    evidence_per_target: float = setting(
        8.0,
        "Evidence for each target",
        "On average: so many pairs times the targets are kept, the most relevant of the whole shard, so "
        "some targets get more, others rest without any.",
        within=(0.1, 100.0),
        main=True,
    )
    evidence_languages: str = setting(
        "any",
        "Evidence languages",
        "any; other: only passages in another language than the target's can be its evidence.",
        choices=("any", "other"),
    )
    evidence_source: str = setting(
        "retrieved",
        "Evidence from",
        "retrieved: what the encoder finds; random: passages at random throughout, the control that has as "
        "many pairs and no content.",
        choices=("retrieved", "random"),
    )
    evidence_set: str = setting(
        "all",
        "Evidence among",
        "all: every text that is not held out, so targets are evidence for one another; database: only texts "
        'whose use is "database", so that targets and evidence are two sets.',
        choices=("all", "database"),
    )
    hub_neighbors: int = setting(
        0,
        "Against hubs",
        "Pairs are chosen by how far their relevance stands out from that of so many nearest passages of "
        "each language (CSLS); 0: by relevance itself, as in the paper.",
        within=(0, 1000),
    )
    subgraphs: int = setting(
        1,
        "Subgraphs in a batch",
        "So many small subgraphs share a batch, so that a target has evidence of others to tell its own "
        "from.",
        within=(1, 64),
    )
    shared_dropout: float = setting(
        0.0,
        "Without shared words",
        "Share of the batches whose texts lose digits and the words that stand in many languages, so that "
        "nothing can be written by copying alone.",
        within=(0.0, 1.0),
    )
    shared_side: str = setting(
        "both",
        "Shared words are lost in",
        "both: targets and evidence; evidence: there alone.",
        choices=("both", "evidence"),
    )
    relevance_lr: float = setting(
        0.0,
        "Learning rate of relevance",
        "Weights that nothing but relevance by words uses learn by Adagrad at this rate; 0: as all others.",
        within=(0.0, 10.0),
    )
    relevance_from: float = setting(
        0.15,
        "Relevance learns from",
        "Share of the steps after which these weights begin to learn: the decoder must read first.",
        within=(0.0, 1.0),
    )
    language_weight: float = setting(
        100.0,
        "Weight across languages",
        "What a pair of two languages counts in making batches, where one of the same language counts 1.",
        within=(0.0, 1e6),
    )
    same_document: bool = setting(
        False,
        "Same-document evidence",
        "Other passages of the target's own document may be its evidence, as in the paper.",
    )
    first_passages: bool = setting(
        False,
        "First passages only",
        "Only the first passage of a document is a target, as for news in the paper.",
    )
    shard_size: int = setting(
        4096,
        "Shard",
        "Passages in a shard: evidence is looked for within it. A smaller corpus is one shard.",
        within=(16, 10_000_000),
    )
    shard_by: str = setting(
        "group",
        "Shards keep together",
        "group: documents of one group (say, translations of one another); document: only the passages "
        "of a document.",
        choices=("group", "document"),
    )
    batch_tokens: int = setting(
        4096, "Batch", "Tokens in a batch at most, targets and evidence together.", within=(64, 10_000_000)
    )
