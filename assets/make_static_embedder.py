"""Make assets/static_embedder from all-MiniLM-L6-v2: one vector for each word piece.

    python assets/make_static_embedder.py --minilm FOLDER --out assets/static_embedder --dim 256

FOLDER holds model.safetensors, tokenizer.json and LICENSE of the model. No other data is read, so
word frequencies are Zipf's law over the place in the vocabulary, which BERT sorted by frequency.
The same machine gives the same bytes; another may round single entries of the table otherwise.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a file, not installed

from retro_demo.retrieval.embedders import MiniLM, MiniLMEmbedder

FIRST_WORD = 1996  # "the": before it stand special entries and single signs in Unicode order
LAST_SIGNS = 29_612  # from here on: single signs again, as continuations ("##!")
ASCII_RANK = 20  # letters, digits and punctuation are frequent, other single signs are rare
OTHER_RANK = 10_000
SIF_CONSTANT = 1e-3  # a in a / (a + p(w)); Arora et al. 2017, section 3, advise 1e-3 to 1e-4
PREFIX = "##"

NOTICE = """static_embedder
===============

This folder is a derivative of sentence-transformers/all-MiniLM-L6-v2
(https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2), licensed under the
Apache License, Version 2.0; the full text is in LICENSE beside this file.

What was changed, by assets/make_static_embedder.py:

- table.safetensors replaces the transformer. Each row is what the model gives for
  "[CLS] word-piece [SEP]" (mean of the outputs), centered, projected on {dim} principal axes,
  weighted by an estimated word frequency (1e-3 / (1e-3 + p), p by Zipf's law over the place in
  the vocabulary), and stored as int8 with one scale a row.
- tokenizer.json is the model's WordPiece tokenizer without the entries that its own
  pre-tokenizer can never produce ({dropped} of {total}), hence numbered anew, and without
  truncation, padding, special tokens and the frame of [CLS] and [SEP]. [UNK] is entry 0 and
  weighs nothing.
"""


def main() -> None:
    """Write table.safetensors, tokenizer.json, NOTICE and LICENSE into the folder --out."""
    parser = argparse.ArgumentParser(description="Make the static embedder.")
    parser.add_argument("--minilm", type=Path, required=True, help="folder of all-MiniLM-L6-v2")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--dim", type=int, default=256, help="width of a row, at most 384")
    args = parser.parse_args()

    MiniLMEmbedder(args.minilm)  # says what is missing or wrong in the folder
    tokenizer = Tokenizer.from_file(str(args.minilm / "tokenizer.json"))
    pieces = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    kept = [number for number, piece in enumerate(pieces) if is_reachable(tokenizer, piece)]
    frequency = zipf_frequency(pieces)[kept]
    vectors = project(embed_pieces(args.minilm, tokenizer, kept), frequency, args.dim)
    vectors *= (SIF_CONSTANT / (SIF_CONSTANT + frequency))[:, None]
    unknown = np.zeros((1, args.dim))

    args.out.mkdir(parents=True, exist_ok=True)
    rows, scales = quantize(np.concatenate([unknown, vectors]))
    save_file({"rows": rows, "scales": scales}, args.out / "table.safetensors")
    names = ["[UNK]", *(pieces[number] for number in kept)]
    write_tokenizer(args.minilm / "tokenizer.json", names, args.out / "tokenizer.json")
    shutil.copyfile(args.minilm / "LICENSE", args.out / "LICENSE")
    notice = NOTICE.format(dim=args.dim, dropped=len(pieces) - len(names), total=len(pieces))
    (args.out / "NOTICE").write_text(notice, encoding="utf-8")


def is_reachable(tokenizer: Tokenizer, piece: str) -> bool:
    """Whether some text can give this piece: it survives normalizing and splitting as one word."""
    is_continuation = piece.startswith(PREFIX) and len(piece) > len(PREFIX)
    word = "a" + piece.removeprefix(PREFIX) if is_continuation else piece
    split = tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(word))
    return [part for part, _ in split] == [word]


def zipf_frequency(pieces: list[str]) -> np.ndarray:
    """Estimated share of each piece in running text (V,): 1 / rank, scaled to the sum 1."""
    ranks = np.arange(len(pieces), dtype=np.float64) - FIRST_WORD + 1
    for number, piece in enumerate(pieces):
        if not FIRST_WORD <= number < LAST_SIGNS:
            ranks[number] = ASCII_RANK if piece.removeprefix(PREFIX).isascii() else OTHER_RANK
    return 1 / ranks / np.sum(1 / np.arange(1, len(pieces) + 1))


@torch.inference_mode()
def embed_pieces(folder: Path, tokenizer: Tokenizer, kept: list[int]) -> np.ndarray:
    """MiniLM's vector of each word piece on its own: float64 (V, 384)."""
    network = MiniLM(load_file(folder / "model.safetensors"))
    frame = [tokenizer.token_to_id("[CLS]"), 0, tokenizer.token_to_id("[SEP]")]
    ids = torch.tensor(frame).repeat(len(kept), 1)
    ids[:, 1] = torch.tensor(kept)
    return torch.cat([network(batch) for batch in ids.split(512)]).double().numpy()


def project(vectors: np.ndarray, frequency: np.ndarray, dim: int) -> np.ndarray:
    """Rows on their first principal axes (V, dim), centered; frequent pieces count for more."""
    centered = vectors - np.average(vectors, axis=0, weights=frequency)
    covariance = (centered * frequency[:, None]).T @ centered
    axes = np.linalg.eigh(covariance)[1][:, ::-1][:, :dim]
    # An axis may point either way; its largest entry is made positive, so that runs agree.
    largest = axes[np.abs(axes).argmax(axis=0), np.arange(dim)]
    return centered @ (axes * np.sign(largest))


def quantize(vectors: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows as int8 (V, dim) and float16 scales (V,); the largest scale is 1."""
    scales = np.abs(vectors).max(axis=1) / 127
    rows = np.round(vectors / np.where(scales == 0, 1, scales)[:, None]).astype(np.int8)
    return torch.from_numpy(rows), torch.from_numpy((scales / scales.max()).astype(np.float16))


def write_tokenizer(source: Path, names: list[str], target: Path) -> None:
    """The tokenizer of source with these entries alone, numbered in this order."""
    spec = json.loads(source.read_text(encoding="utf-8"))
    spec["model"]["vocab"] = {piece: number for number, piece in enumerate(names)}
    spec |= {"truncation": None, "padding": None, "added_tokens": [], "post_processor": None}
    text = json.dumps(spec, ensure_ascii=False, separators=(",", ":"))
    target.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
