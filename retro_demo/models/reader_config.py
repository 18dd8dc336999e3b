"""The shape of a reader: which layers of its base it matches and writes into, and how it looks up."""

from __future__ import annotations

from dataclasses import dataclass

from retro_demo.errors import UserError
from retro_demo.settings import Settings, setting

RUN = 8  # tokens in common with a neighbor are counted up to this many
OUTPUTS = ("attention", "copy", "both")


@dataclass(frozen=True)
class ReaderConfig(Settings):
    """The shape of a retrofit of a pretrained base. Layers count from 1; 0 blocks lie below the first."""

    vocab_size: int = setting(49_152, "Vocabulary", "Tokens.", within=(4, 1_000_000), derived=True)
    dim: int = setting(576, "Width", "Width of the base.", within=(1, 65_536), derived=True)
    depth: int = setting(30, "Layers", "Layers of the base.", within=(1, 512), derived=True)
    num_heads: int = setting(9, "Heads", "Heads of the base.", within=(1, 512), derived=True)
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
        12, "Title", "Tokens of its document's title that stand before a neighbor.", within=(0, 64)
    )
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

    @property
    def unwritten(self) -> tuple[int, ...]:
        """Tokens that no text holds: none, since padding ends a text, too."""
        return ()

    @property
    def neighbor_len(self) -> int:
        """Tokens of a neighbor with its title (R)."""
        return self.title_len + 2 * self.chunk_len


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
