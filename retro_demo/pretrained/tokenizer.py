"""The tokenizer of a pretrained base, with what the app's own one does.

Two kinds are read: byte-level BPE (GPT-2, SmolLM2, Llama 3, Qwen) and BPE over characters with single bytes
for the rest (Llama 2, TinyLlama, Mistral), which writes blanks as "▁".
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tokenizers

from retro_demo.errors import UserError
from retro_demo.tokenizer import SPECIALS, Tokenizer, byte_alphabet, without_surrogates

BLANK = "▁"
BYTE = re.compile(r"<0x([0-9A-F]{2})>")
# between documents: a chat's own end of turn is something else
ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<|im_end|>", "<eos>")
PADS = (
    "<|finetune_right_pad_id|>",
    "<|vision_pad|>",
    "<pad>",
    "[PAD]",
    "<unk>",
    "<|im_end|>",
    "<|endoftext|>",
)


class PretrainedTokenizer(Tokenizer):
    """As `Tokenizer`, by the base's own vocabulary.

    Special tokens never come out of text, and stand for no bytes; neither do ids that the base has room for
    and its vocabulary does not use. No blank is put before a text, also where the base's makers did: so the
    bytes of the tokens are the text's, wherever it begins. `prefix_ids` are what the base expects before a
    text (a `<s>`); nothing here puts them there. `exchanged`: the token that stands at the place of token 0
    and token 0 at its, where 0 was text (GPT-2, Llama 3 and Qwen: "!"): corpora are filled up with 0.
    """

    def __init__(self, stored: dict[str, Any], vocab_size: int, source: Path) -> None:
        """`stored`: tokenizer.json as read; `vocab_size`: of the base; `source`: the file that errors name.

        Raises UserError on a kind that is not read.
        """
        try:
            byte_level, stored = _is_byte_level(stored, source), _without_blank_first(stored)
            stored, self.exchanged = _without_text_at_zero(stored)
        except (AttributeError, TypeError, KeyError) as error:
            raise UserError(f"{source} is not a tokenizer of the tokenizers library ({error}).") from error
        backend = _backend(stored, source)
        self.prefix_ids = _prefix(backend)
        backend.encode_special_tokens = True  # so that "<|endoftext|>" in a text stays text
        self._backend = backend
        self._in_pieces = _cuts_as_gpt2(stored)
        added = {entry["id"]: entry for entry in stored.get("added_tokens") or []}
        self._names = {i: entry["content"] for i, entry in added.items() if entry.get("special")}
        vocab = backend.get_vocab(with_added_tokens=True)
        highest = max(vocab.values(), default=-1)
        if highest >= vocab_size:
            raise UserError(
                f"{source} has token {highest:,}, but the base knows {vocab_size:,} tokens only: the two do "
                "not belong together."
            )
        self.vocab_size = vocab_size
        self._bytes = [b""] * vocab_size
        of_token = _bytes_of_characters() if byte_level else None
        for token, index in vocab.items():
            if index in self._names:
                continue
            if index in added:
                self._bytes[index] = added[index]["content"].encode()
            elif of_token is None:
                byte = BYTE.fullmatch(token)
                self._bytes[index] = bytes([int(byte[1], 16)]) if byte else token.replace(BLANK, " ").encode()
            else:
                self._bytes[index] = b"".join(of_token.get(char) or char.encode() for char in token)
        self.eos_id, self.pad_id = _end_and_padding({name: index for index, name in self._names.items()})
        self.fingerprint = hashlib.sha256(backend.to_str().encode()).hexdigest()

    @classmethod
    def read(cls, path: Path, vocab_size: int) -> PretrainedTokenizer:
        """Of a tokenizer.json. Raises UserError on a file that is missing, damaged or of another kind."""
        try:
            stored = json.loads(path.read_bytes())
        except FileNotFoundError as error:
            raise UserError(
                f"{path.parent} has no {path.name}, which holds the base's tokenizer: take the whole folder "
                "of the base. Tokenizers in other files (tokenizer.model) are not read."
            ) from error
        except OSError as error:
            raise UserError(f"The tokenizer {path} cannot be read ({error.strerror}).") from error
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path} is not a tokenizer: it is no JSON file.") from error
        if not isinstance(stored, dict) or not isinstance(stored.get("model"), dict):
            raise UserError(f"{path} is not a tokenizer of the tokenizers library.")
        return cls(stored, vocab_size, path)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """One list of ids a text, on all cores."""
        if self._in_pieces:
            return super().encode_batch(texts)
        clean = [without_surrogates(text) for text in texts]
        found = self._backend.encode_batch_fast(clean, add_special_tokens=False)
        return [encoding.ids for encoding in found]

    def token_bytes(self, token_id: int) -> bytes:
        """As `Tokenizer.token_bytes`; none for one past the end, since networks pad their vocabularies."""
        return super().token_bytes(token_id) if token_id < self.vocab_size else b""

    def _label(self, token_id: int) -> str:
        if not self.token_bytes(token_id):
            return self._names.get(token_id, f"<unused {token_id}>")
        return super()._label(token_id)


def _end_and_padding(special: dict[str, int]) -> tuple[int, int]:
    """The ids of the tokens that end a document and fill up, from name -> id of the special tokens."""
    end = next((special[name] for name in ENDS if name in special), max(special.values(), default=0))
    return end, next((special[name] for name in PADS if special.get(name, end) != end), end)


def _without_text_at_zero(stored: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """The tokenizer whose token 0 stands for no text, and the token that was exchanged with it (0: none)."""
    added = stored.get("added_tokens") or []
    special = {entry["content"]: entry["id"] for entry in added if entry.get("special")}
    vocab = stored["model"]["vocab"] | {entry["content"]: entry["id"] for entry in added}
    other = _end_and_padding(special)[1]
    if 0 not in vocab.values() or 0 in special.values() or not other:
        return stored, 0
    place = {0: other, other: 0}

    def moved(value: Any, *, ids: bool = False) -> Any:
        if isinstance(value, dict):
            return {key: moved(part, ids=key == "ids") for key, part in value.items()}
        if isinstance(value, list):
            return [moved(part, ids=ids) for part in value]
        return place.get(value, value) if ids else value

    changed = {
        "model": stored["model"] | {"vocab": {token: place.get(i, i) for token, i in vocab.items()}},
        "added_tokens": [entry | {"id": place.get(entry["id"], entry["id"])} for entry in added],
        "post_processor": moved(stored.get("post_processor")),
    }
    return stored | changed, other


def _is_byte_level(stored: dict[str, Any], source: Path) -> bool:
    """Whether tokens are written in GPT-2's letters for bytes. Raises UserError where it is neither kind."""
    model = stored["model"]
    kind = model.get("type", "BPE")
    vocab = model.get("vocab")
    if kind != "BPE" or not isinstance(vocab, dict):
        raise UserError(f"{source} is a tokenizer of the kind {kind!r}, and only BPE is read.")
    parts = [stored.get(name) or {} for name in ("pre_tokenizer", "decoder")]
    steps = {part.get("type") for part in parts}
    for part in parts:
        steps |= {step.get("type") for step in part.get("pretokenizers", []) + part.get("decoders", [])}
    if "ByteLevel" in steps:
        return True
    if model.get("byte_fallback") and f"<0x{0:02X}>" in vocab and BLANK in "".join(vocab):
        return False
    raise UserError(
        f"{source} is a BPE that writes neither bytes (as GPT-2 and Llama 3) nor characters with single "
        "bytes for the rest (as Llama 2), and no other is read."
    )


def _cuts_as_gpt2(stored: dict[str, Any]) -> bool:
    """Whether words end where our own tokenizer's do, so that a long text may be encoded in pieces."""
    splitter = stored.get("pre_tokenizer") or {}
    steps = splitter.get("pretokenizers", [splitter])
    return stored.get("normalizer") is None and any(
        step.get("type") == "ByteLevel" and step.get("use_regex", True) for step in steps
    )


def _without_blank_first(stored: dict[str, Any]) -> dict[str, Any]:
    """A tokenizer that puts no blank before a text, and neither cuts nor fills it."""
    stored = {**stored, "truncation": None, "padding": None}

    def changed(step: Any) -> Any:
        if not isinstance(step, dict):
            return step
        step = dict(step)
        for name in ("normalizers", "pretokenizers"):
            if name in step:
                step[name] = [changed(one) for one in step[name] if one.get("type") != "Prepend"]
        if step.get("type") == "Metaspace":
            step["prepend_scheme"] = "never"
            step.pop("add_prefix_space", None)
        if step.get("type") == "ByteLevel":
            step["add_prefix_space"] = False
        return None if step.get("type") == "Prepend" else step

    for name in ("normalizer", "pre_tokenizer"):
        stored[name] = changed(stored.get(name))
    return stored


def _backend(stored: dict[str, Any], source: Path) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_str(json.dumps(stored))
    except Exception as error:  # noqa: BLE001 - the library raises bare ones
        raise UserError(f"{source} is not a tokenizer that can be read ({str(error)[:200]}).") from error


def _prefix(backend: tokenizers.Tokenizer) -> tuple[int, ...]:
    """What its makers put before every text."""
    whole, plain = (backend.encode("a", add_special_tokens=added).ids for added in (True, False))
    at = next((i for i in range(len(whole)) if whole[i : i + len(plain)] == plain), 0)
    return tuple(whole[:at])


def _bytes_of_characters() -> dict[str, bytes]:
    return {char: bytes([byte]) for byte, char in enumerate(byte_alphabet())}


def load_tokenizer(path: Path, vocab_size: int = 0) -> Tokenizer:
    """A tokenizer of either kind, as `Tokenizer.save` wrote it. Raises UserError as `Tokenizer.load` does.

    `vocab_size`: of the network, where a pretrained one has room for more tokens than there are.
    """
    try:
        stored = json.loads(path.read_bytes())
        vocab = stored["model"]["vocab"]
        pretrained = [vocab.get(token) for token in SPECIALS] != list(range(len(SPECIALS)))
        highest = max([*vocab.values(), *(entry["id"] for entry in stored["added_tokens"])])
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return Tokenizer.load(path)  # which says what is wrong
    return (
        PretrainedTokenizer(stored, max(highest + 1, vocab_size), path)
        if pretrained
        else Tokenizer.load(path)
    )
