"""Text to token ids and back: a byte-level BPE that loses nothing.

It does not know documents or chunks. Special tokens never come out of text: only their ids put them in.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from retro_demo.errors import UserError
from retro_demo.files import replacing

SPECIALS = ("<pad>", "<eos>")
MIN_VOCAB = len(SPECIALS) + 256
MOST_BYTES = 32  # of a token: without spaces between words a small text would become a single one
# Encoding keeps about 90 bytes a token until it is done, so it goes on in parts of this size.
BATCH_CHARS = 1 << 22
PIECE_CHARS = 1 << 18
# Between a word character and a blank the GPT-2 pattern always ends a word, whatever follows, so
# that text cut there gives the same tokens as the whole.
SAFE_CUT = re.compile(r"(?<=\w)[ \n]")


class Tokenizer:
    """Byte-level BPE with the GPT-2 pattern, no normalizer and no added prefix space.

    Ids: 0 is `<pad>`, 1 is `<eos>`, then the 256 bytes and the merges. Text that spells a special
    token is encoded as the ordinary text that it is. Lone surrogates, which are no text, become
    U+FFFD; all else comes back from `decode(encode(text))` unchanged.
    """

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        """Made by `train` and `load`; `backend` must have been built by `_backend`."""
        self._backend = backend
        vocab = backend.get_vocab()
        byte_of = {char: byte for byte, char in enumerate(byte_alphabet())}
        self._bytes = [b""] * len(vocab)
        for token, index in vocab.items():
            if token not in SPECIALS:
                self._bytes[index] = bytes(byte_of[char] for char in token)
        self.vocab_size = len(vocab)
        self.pad_id, self.eos_id = range(len(SPECIALS))
        self._names = dict(enumerate(SPECIALS))
        self.fingerprint = hashlib.sha256(backend.to_str().encode()).hexdigest()

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> Tokenizer:
        """Deterministic. Small texts give fewer than `vocab_size` tokens. Raises UserError."""
        if vocab_size < MIN_VOCAB:
            raise UserError(
                f"A vocabulary of {vocab_size} tokens is too small: it needs {MIN_VOCAB} or more, "
                "for the 256 bytes and the special tokens."
            )
        backend = _backend(models.BPE())
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=list(SPECIALS),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            max_token_length=MOST_BYTES,
            show_progress=False,
        )
        backend.train_from_iterator(map(without_surrogates, texts), trainer)
        return cls(backend)

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        """Read what `save` wrote. Raises UserError on a file that is missing, broken or foreign."""
        try:
            stored = json.loads(path.read_bytes())
        except OSError as error:
            raise UserError(f"The tokenizer {path} cannot be read ({error.strerror}).") from error
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path} is not a tokenizer: it is no JSON file.") from error
        vocab, merges = _vocab_and_merges(stored, path)
        backend = _backend(models.BPE(vocab=vocab, merges=merges))
        backend.add_special_tokens(list(SPECIALS))
        return cls(backend)

    def save(self, path: Path) -> None:
        """Write the JSON format of the `tokenizers` library, whole or not at all."""
        with replacing(path) as unfinished:
            unfinished.write_text(self._backend.to_str(), encoding="utf-8")

    def encode(self, text: str) -> list[int]:
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """One list of ids a text, on all cores."""
        ids: list[list[int]] = [[] for _ in texts]
        for batch in _batches(texts):
            encodings = self._backend.encode_batch_fast([piece for _, piece in batch])
            for (index, _), encoding in zip(batch, encodings, strict=True):
                ids[index] += encoding.ids
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Special tokens are skipped; bytes that are no UTF-8 become U+FFFD."""
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token stands for, none for a special token."""
        if not 0 <= token_id < self.vocab_size:
            raise ValueError(f"token id {token_id} is not in 0..{self.vocab_size - 1}")
        return self._bytes[token_id]

    def token_texts(self, ids: Iterable[int]) -> list[str]:
        """A visible label for each token: `·` for a blank, `⏎` and `⇥`, `<C3>` for a lone byte."""
        return [self._label(token_id) for token_id in ids]

    def _label(self, token_id: int) -> str:
        raw = self.token_bytes(token_id)
        if not raw:
            return self._names[token_id]
        # What is not whole UTF-8 is shown byte by byte.
        text = raw.decode("utf-8", errors="surrogateescape")
        return "".join(map(_visible, text))


class TextStream:
    """Text of tokens that arrive one at a time.

    The pieces of all `push` and the last `flush` together are exactly `decode` of all ids.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        """The text that is certain by now; an unfinished character is held back."""
        return self._decoder.decode(self._tokenizer.token_bytes(token_id))

    def flush(self) -> str:
        """What was held back, U+FFFD for an unfinished character; the stream starts again."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest


def pieces_of(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """The text that each token adds; characters of several tokens stand with the last of them."""
    stream = TextStream(tokenizer)
    pieces = [stream.push(token) for token in ids]
    if pieces:
        pieces[-1] += stream.flush()
    return pieces


def _backend(model: models.BPE) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)  # pyright: ignore[reportAttributeAccessIssue]
    backend.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    backend.encode_special_tokens = True  # so that "<eos>" in a text stays text
    return backend


def _vocab_and_merges(stored: object, path: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Checked by hand, as the library raises bare exceptions; refuses tokenizers of other makes."""
    foreign = UserError(f"{path} is not a tokenizer of this app: use the one kept with its run.")
    try:
        model = stored["model"]  # pyright: ignore[reportIndexIssue]
        vocab, splitter = model["vocab"], stored["pre_tokenizer"]  # pyright: ignore[reportIndexIssue]
        # Older versions of the library write "a b", newer ones ["a", "b"].
        pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
        merges = [(left, right) for left, right in pairs]
        ours = (
            (model["type"], stored["normalizer"]) == ("BPE", None)  # pyright: ignore[reportIndexIssue]
            and (splitter["type"], splitter["add_prefix_space"]) == ("ByteLevel", False)
            and sorted(vocab.values()) == list(range(len(vocab)))
            and [vocab[token] for token in SPECIALS] == list(range(len(SPECIALS)))
            and set(vocab).issuperset(byte_alphabet())
            and set("".join(set(vocab) - set(SPECIALS))) <= set(byte_alphabet())
            and all(part in vocab for left, right in merges for part in (left, right, left + right))
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise foreign from error
    if not ours:
        raise foreign
    return vocab, merges


def byte_alphabet() -> list[str]:
    """The 256 characters by which GPT-2 writes bytes, in the order of the bytes.

    Printable bytes of Latin-1 stand for themselves, the others for the code points from 256 on.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = accumulate((byte not in printable for byte in range(256)), initial=255)
    next(others)
    return [chr(byte if byte in printable else other) for byte, other in enumerate(others)]


def _batches(texts: Sequence[str]) -> Iterator[list[tuple[int, str]]]:
    """(index of the text, piece of it) in lists of about BATCH_CHARS characters."""
    batch: list[tuple[int, str]] = []
    num_chars = 0
    for index, text in enumerate(texts):
        for piece in _pieces(without_surrogates(text)):
            batch.append((index, piece))
            num_chars += len(piece)
            if num_chars >= BATCH_CHARS:
                yield batch
                batch, num_chars = [], 0
    yield batch


def _pieces(text: str) -> Iterator[str]:
    start = 0
    while cut := SAFE_CUT.search(text, start + PIECE_CHARS):
        yield text[start : cut.start()]
        start = cut.start()
    yield text[start:]


def without_surrogates(text: str) -> str:
    """`text` with U+FFFD for what is no character, and what a tokenizer takes for no text."""
    return re.sub("[\ud800-\udfff]", "\ufffd", text)


def _visible(char: str) -> str:
    if "\udc80" <= char <= "\udcff":
        return f"<{ord(char) - 0xDC00:02X}>"
    if not char.isprintable():
        return {"\n": "⏎", "\t": "⇥"}.get(char, f"<U+{ord(char):04X}>")
    return "·" if char == " " else char


# scripts that put no space between words count by the character
WORD = re.compile(r"[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff]|[^\W\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff]+")
