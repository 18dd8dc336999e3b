"""The shapes of what is trained beside a pretrained base: a reader of neighbors, or the base fine-tuned."""

from __future__ import annotations

from dataclasses import dataclass

from retro_demo.errors import UserError
from retro_demo.settings import Settings, setting

RUN = 8  # tokens in common with a neighbor are counted up to this many
OUTPUTS = ("attention", "copy", "both")


@dataclass(frozen=True)
class BesideBase(Settings):
    """What is known of the base and of its updates, and how a text is cut and begun; layers count from 1."""

    vocab_size: int = setting(49_152, "Vocabulary", "Tokens.", within=(4, 1_000_000), derived=True)
    dim: int = setting(576, "Width", "Width of the base.", within=(1, 65_536), derived=True)
    depth: int = setting(30, "Layers", "Layers of the base.", within=(1, 512), derived=True)
    num_heads: int = setting(9, "Heads", "Heads of the base.", within=(1, 512), derived=True)
    num_kv_heads: int = setting(3, "Key heads", "Of keys and values.", within=(1, 512), derived=True)
    head_dim: int = setting(64, "Head width", "Width of a head.", within=(1, 65_536), derived=True)
    ff_dim: int = setting(1536, "Inner width", "Of the feed-forward.", within=(1, 1_000_000), derived=True)
    pad_id: int = setting(0, "Padding", "Token that stands for nothing.", within=(0, 1_000_000), derived=True)
    begin_id: int = setting(0, "Beginning", "Token before a text.", within=(0, 1_000_000), derived=True)
    chunk_len: int = setting(
        32,
        "Chunk length",
        "Tokens of a chunk, and of the text between two looks at neighbors. A neighbor is a chunk and the "
        "next one.",
        within=(4, 512),
    )
    title_len: int = setting(
        12,
        "Title",
        "Tokens of its document's title that stand before a text, and before a neighbor.",
        within=(0, 64),
    )
    first_tuned: int = setting(
        18, "Layers as they are", "Layers below those that are fine-tuned.", within=(0, 511), derived=True
    )
    rank: int = setting(0, "Rank", "Of the updates; 0: there are none.", within=(0, 1024), derived=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank and self.first_tuned >= self.depth:
            raise UserError(
                f"first_tuned is {self.first_tuned}, but the base has {self.depth} layers, so none would be "
                "fine-tuned: choose a smaller one.",
                first_tuned="",
            )

    @property
    def unwritten(self) -> tuple[int, ...]:
        """Tokens that no text holds: none, since padding ends a text, too."""
        return ()

    @property
    def neighbor_len(self) -> int:
        """Tokens of a neighbor with its title (R)."""
        return self.title_len + 2 * self.chunk_len

    @property
    def matrices(self) -> dict[str, tuple[int, int]]:
        """Name -> (in, out) of each matrix of a block."""
        inner = self.num_heads * self.head_dim
        both = inner + 2 * self.num_kv_heads * self.head_dim
        return {
            "qkv": (self.dim, both),
            "out": (inner, self.dim),
            "gate_up": (self.dim, 2 * self.ff_dim),
            "down": (self.ff_dim, self.dim),
        }


@dataclass(frozen=True)
class LessonConfig(Settings):
    """What a reader is taught with; see training/lessons.py."""

    lessons: int = setting(
        120,
        "Lessons",
        "Different windows of text with their neighbors; more teach more, and take longer to prepare.",
        within=(1, 1_000_000),
        main=True,
    )
    edition: str = setting(
        "",
        "Other edition",
        "Another corpus of the same documents (same titles) with other values, from which some lessons take "
        "their neighbors: the words of one edition, the values of the other. Empty: none.",
    )


@dataclass(frozen=True)
class ReaderConfig(BesideBase):
    """The shape of a retrofit of a pretrained base: which layers it matches and writes into."""

    match_layers: tuple[int, ...] = setting(
        (12, 18),
        "Layers matched",
        "Layers of the base whose states are queries and keys.",
        within=(1, 512),
    )
    write_layers: tuple[int, ...] = setting(
        (18, 22, 26),
        "Layers written into",
        "After so many layers of the base cross-attention writes what it read.",
        within=(1, 512),
    )
    match_dim: int = setting(256, "Look-up width", "Width of queries and keys.", within=(8, 8192))
    gate: float = setting(
        0.3,
        "Gate",
        "How much cross-attention writes at first, of the size of the stream.",
        within=(0.0, 10.0),
    )
    outputs: str = setting(
        "attention",
        "Output",
        "attention: chunked cross-attention alone; copy: the copy head alone; both.",
        choices=OUTPUTS,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("match_layers", "write_layers"):
            layers = getattr(self, name)
            if not layers or list(layers) != sorted(set(layers)) or layers[-1] >= self.depth:
                raise UserError(
                    f"{name} is {layers}, but the base has {self.depth} layers: name some below that, "
                    "ascending.",
                    **{name: ""},
                )
        if self.match_layers[-1] > self.write_layers[0]:
            raise UserError(
                f"match_layers end at {self.match_layers[-1]}, above the first of write_layers "
                f"({self.write_layers[0]}): what is looked up must be known before it is written.",
                match_layers="",
                write_layers="",
            )

    @property
    def cross_attention(self) -> bool:
        """Whether it has weights that write into layers."""
        return self.outputs != "copy"

    @property
    def first_written(self) -> int:
        """Layers below the first place that is written into."""
        return self.write_layers[0]

    @property
    def first_changed(self) -> int:
        """Layers below the first one that is fine-tuned or written into."""
        return min(self.first_tuned, self.first_written) if self.rank else self.first_written

    @property
    def cca_layers(self) -> tuple[int, ...]:
        """Where it reads neighbors, as RETRO's networks name it."""
        return self.write_layers

    @property
    def has_null(self) -> bool:
        """Whether a look-up may turn to nothing: it may."""
        return True

    @property
    def attention_layers(self) -> list[int]:
        """The layers whose attention to neighbors is shown: one look-up serves all that are written into."""
        return [self.first_written]


@dataclass(frozen=True)
class TunedConfig(BesideBase):
    """The shape of low-rank updates of a pretrained base (models/tuned.py)."""

    first_tuned: int = setting(
        18,
        "Layers as they are",
        "So many layers of the base stay as they are; those above are fine-tuned.",
        within=(0, 511),
    )
    rank: int = setting(8, "Rank", "Rank of the update of each matrix (r of LoRA).", within=(1, 1024))

    @property
    def cca_layers(self) -> tuple[int, ...]:
        """Where it reads neighbors: nowhere."""
        return ()

    @property
    def has_null(self) -> bool:
        """Whether it may turn away from what was found: nothing is found for it."""
        return False

    @property
    def attention_layers(self) -> list[int]:
        """The layers whose attention to neighbors is shown: none."""
        return []
