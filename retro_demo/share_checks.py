"""What an import believes of a run only after a look: its config and the heads of its tensor files.

Every check reads at most a head or one tensor at a time, and raises a UserError.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from tokenize import TokenError  # numpy mends heads of Python 2 with it

import numpy as np
import torch
from safetensors import safe_open

from retro_demo.checkpoint import MODELS, AnyRun, MargeRun, RunConfig, read_any_config
from retro_demo.errors import UserError
from retro_demo.evidence_store import load_reindexing
from retro_demo.marge import MARGE
from retro_demo.retro import RETRO
from retro_demo.share_records import MOST_NUMBER, is_plain
from retro_demo.sharing import read_json
from retro_demo.tokenizer import Tokenizer

HEADER_BYTES = 16_000_000
SAID_CHARS = 300
WIDTH = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "U8": 1}
GENERATOR = re.compile(r"generator\.(cpu|cuda)(\.[1-9][0-9]{0,3})?")
LANGUAGE = re.compile(r"[A-Za-z0-9_-]{0,32}")
EVIDENCE_KINDS = {
    "target": ("I32", 1),
    "evidence": ("I32", 1),
    "relevance": ("F32", 1),
    "rows": ("I64", 1),
    "vectors": ("F16", 2),
}


@dataclass(frozen=True)
class Head:
    """What a safetensors file says of itself: name -> (dtype, shape), and its notes."""

    tensors: dict[str, tuple[str, tuple[int, ...]]]
    notes: dict[str, str]

    @property
    def step(self) -> int:
        return self.number("step", 0)

    def number(self, name: str, default: int) -> int:
        text = self.notes.get(name, str(default))
        if not re.fullmatch(r"[0-9]{1,9}", text):
            raise UserError(f"A tensor file says {name} = {text[:40]!r}, which is no count. Export anew.")
        return int(text)


def read_head(path: Path) -> Head:
    """The head of a safetensors file, checked against the file's size; no tensor is read."""
    size = path.stat().st_size
    sentence = f"{path.name} is no whole safetensors file"
    with path.open("rb") as file:
        first = file.read(8)
        length = int.from_bytes(first, "little")
        if first.startswith(b"version "):
            raise UserError(f"{path.name} is a pointer of Git LFS, not the file. Run: git lfs pull")
        if len(first) < 8 or length > min(size - 8, HEADER_BYTES):
            raise UserError(f"{sentence}: its head would be {length:,} bytes of {size:,}. Export anew.")
        content = file.read(length)
    try:
        values = json.loads(content)
        notes = values.pop("__metadata__", {})
        tensors, places = {}, []
        for name, about in values.items():
            start, stop = about["data_offsets"]
            kind, shape = about["dtype"], tuple(about["shape"])
            if not all(type(n) is int and 0 <= n < MOST_NUMBER for n in (*shape, start, stop)):
                raise ValueError(f"numbers of {name[:80]!r}")
            if stop - start != prod(shape) * WIDTH[kind]:
                raise ValueError(f"size of {name[:80]!r}")
            tensors[name] = (kind, shape)
            places.append((start, stop))
        if not all(isinstance(text, str) for text in notes.values()):
            raise ValueError("notes")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{sentence}: its head is damaged ({str(error)[:80]}). Export anew.") from error
    end = 0
    for start, stop in sorted(places):
        if start != end:
            raise UserError(f"{sentence}: its tensors leave a gap or overlap. Export anew.")
        end = stop
    if end != size - 8 - length:
        raise UserError(
            f"{sentence}: its head tells of {end:,} bytes of tensors, there are {size - 8 - length:,}. "
            "Export anew, or copy it again."
        )
    return Head(tensors, notes)


def check_config(folder: Path) -> AnyRun:
    """The config of a run in a staged export, every value of the kind and in the range that it must have."""
    read_json(folder / "config.json")
    try:
        config = read_any_config(folder)
        _check_plain(config)
    except UserError as error:  # what a stranger wrote may be long, and where it lies for now means nothing
        said = str(error).replace(f"{folder}/", "")
        raise UserError(said if len(said) < SAID_CHARS else f"{said[:SAID_CHARS]} ...") from None
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"config.json is not the config of a run ({str(error)[:80]}). Export the run anew."
        ) from error
    if isinstance(config, MargeRun):
        languages = config.network.languages
        whole = isinstance(languages, tuple) and len(languages) <= 1000
        if not whole or not all(isinstance(one, str) and LANGUAGE.fullmatch(one) for one in languages):
            raise UserError("config.json names languages that are none. Export the run anew.")
    elif (config.model == "lm") == bool(config.network.cca_layers):
        raise UserError(
            f"config.json calls the run a {config.model}, but its network has "
            f"{len(config.network.cca_layers)} layers that read neighbors. Export the run anew."
        )
    return config


def _check_plain(config: AnyRun) -> None:
    """Raise ValueError for a field beside the dataclasses of knobs that is not as a run's."""
    texts = {"model": config.model, "preset": config.preset, "corpus": config.corpus}
    texts |= {"corpus_fingerprint": config.corpus_fingerprint, "device": config.device}
    if isinstance(config, RunConfig):
        texts |= {"base": config.base, "base_weights": config.base_weights}
    for name, text in texts.items():
        if not isinstance(text, str) or len(text) > 4096:
            raise ValueError(f"{name} is {str(text)[:40]!r}")
    if config.model not in MODELS:
        raise ValueError(f"model is {config.model[:40]!r}; there is {', '.join(MODELS)}")
    if config.device.split(":")[0] not in ("cpu", "cuda", "mps"):
        raise ValueError(f"device is {config.device[:40]!r}")
    for name, number, most in (("threads", config.threads, 4096), ("lesson_steps", config.lesson_steps, 1e9)):
        if type(number) is not int or not 0 <= number <= most:
            raise ValueError(f"{name} is {str(number)[:40]!r}")
    kept = config.versions.items()
    if len(kept) > 20 or not all(isinstance(t, str) and len(t) <= 100 for pair in kept for t in pair):
        raise ValueError("versions")


def shapes_of(config: AnyRun) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every weight of a run's network, found without memory for any of them."""
    try:
        with torch.device("meta"):
            model = MARGE(config.network) if isinstance(config, MargeRun) else RETRO(config.network)
    except (ValueError, AssertionError, RuntimeError, IndexError, TypeError, ZeroDivisionError) as error:
        raise UserError(f"config.json describes no network that can be made ({str(error)[:200]}).") from error
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def check_weights(path: Path, config: AnyRun) -> Head:
    """The head of model.safetensors: the tensors of the config's network and nothing else, all finite."""
    head = read_head(path)
    _check_names(path.name, {n: s for n, (_, s) in head.tensors.items()}, shapes_of(config))
    _check_kinds(path.name, head, ("F32", "F16", "BF16"))
    _check_steps(path.name, head, config)
    _check_finite(path)
    return head


def check_state(path: Path, config: AnyRun) -> Head:
    """The head of state.safetensors: weights, moments of such weights, generators of this torch."""
    head, wanted = read_head(path), shapes_of(config)
    weights = {n.removeprefix("model."): s for n, (_, s) in head.tensors.items() if n.startswith("model.")}
    _check_names(path.name, weights, wanted)
    generators = []
    for name, (kind, shape) in head.tensors.items():
        if name.startswith("model."):
            fits = kind == "F32"
        elif GENERATOR.fullmatch(name):
            fits = kind == "U8" and len(shape) == 1 and shape[0] <= 10_000
            generators.append(name)
        else:
            part, moment, weight = (*name.split(".", 2), "", "")[:3]
            fits = part == "optimizer" and weight in wanted and kind == "F32"
            fits = fits and shape == {"step": ()}.get(moment, wanted.get(weight))
            fits = fits and moment in ("step", "exp_avg", "exp_avg_sq")
        if not fits:
            raise UserError(
                f"{path.name} holds {name[:80]!r} ({kind} {list(shape)}), which no run of this network saves."
            )
    _check_steps(path.name, head, config)
    head.number("processes", 1)
    _check_finite(path)
    with safe_open(path, "pt") as file:
        for name in generators:
            if name.startswith("generator.cpu"):
                try:
                    torch.Generator().set_state(file.get_tensor(name))
                except RuntimeError as error:
                    raise UserError(f"{path.name} holds {name}, which is no generator's state.") from error
    return head


def _check_names(
    name: str, there: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]
) -> None:
    for weight in (*wanted, *there):
        if there.get(weight) != wanted.get(weight):
            told = {True: "is not there", False: f"is {list(there.get(weight, ()))}"}[weight not in there]
            asked = f"{list(wanted[weight])}" if weight in wanted else "none of that name"
            raise UserError(
                f"{name} does not fit the network of config.json: {weight[:80]!r} {told}, the network has "
                f"{asked}. Export the run anew."
            )


def _check_kinds(name: str, head: Head, kinds: tuple[str, ...]) -> None:
    for tensor, (kind, _) in head.tensors.items():
        if kind not in kinds:
            raise UserError(f"{name} keeps {tensor[:80]!r} as {kind}; it must be {' or '.join(kinds)}.")


def _check_steps(name: str, head: Head, config: AnyRun) -> None:
    if head.step > config.training.steps:
        raise UserError(
            f"{name} was saved at step {head.step}, but config.json has {config.training.steps} steps."
        )


def _check_finite(path: Path) -> None:
    with safe_open(path, "pt") as file:
        for name in file.keys():  # noqa: SIM118
            tensor = file.get_tensor(name)
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                raise UserError(f"{path.name} holds {name!r} with values that are no numbers. Train it anew.")


def check_tokenizer(path: Path, vocabulary: int | None = None) -> None:
    """Raise UserError where the file is no tokenizer of ours, or has another vocabulary than a network."""
    found = Tokenizer.load(path).vocab_size
    if vocabulary not in (None, found):
        raise UserError(f"{path.name} has {found} tokens, the network of config.json {vocabulary}.")


def check_evidence(path: Path) -> None:
    """Raise UserError where a file of evidence/ is not what a re-index leaves."""
    head = read_head(path)
    for name, (kind, shape) in head.tensors.items():
        wanted = EVIDENCE_KINDS.get(name, (kind if kind in ("F32", "F64") else "F32", 2))
        if name not in (*EVIDENCE_KINDS, "matrix") or (kind, len(shape)) != wanted:
            raise UserError(f"evidence/{path.name} holds {name[:80]!r} as {kind} {list(shape)}. Export anew.")
    sizes = {name: shape[0] for name, (_, shape) in head.tensors.items()}
    same = [sizes.get(name) for name in ("target", "evidence", "relevance")]
    if set(EVIDENCE_KINDS) - set(sizes) or len(set(same)) > 1 or sizes["rows"] != sizes["vectors"]:
        raise UserError(f"evidence/{path.name} is not what a re-index leaves. Export anew.")
    found = load_reindexing(path.parent.parent, int(path.stem))
    if found is None or found.step != int(path.stem) or not is_plain(found.figures):
        raise UserError(f"evidence/{path.name} does not tell what it says it does. Export anew.")
    ids = (found.pairs.target, found.pairs.evidence, found.rows)
    if any(each.size and each.min() < 0 for each in ids) or not np.isfinite(found.pairs.relevance).all():
        raise UserError(f"evidence/{path.name} names passages that cannot be. Export anew.")


def check_vectors(path: Path) -> None:
    """Raise UserError where the file is not float32 rows in numpy's format, as long as its head says."""
    try:
        with path.open("rb") as file:
            if np.lib.format.read_magic(file) != (1, 0):
                raise ValueError("another version of the format")
            shape, in_columns, kind = np.lib.format.read_array_header_1_0(file, max_header_size=1000)
            rest = path.stat().st_size - file.tell()
        if kind != np.float32 or in_columns or len(shape) != 2 or rest != 4 * shape[0] * shape[1]:
            raise ValueError(f"{kind} {shape}")
    except (ValueError, TypeError, SyntaxError, EOFError, TokenError) as error:
        raise UserError(
            f"{path.name} is no array of vectors ({str(error)[:80]}). Export the corpus anew."
        ) from error
