"""What an import believes of a run only after a look: its config and the heads of its tensor files.

Every check reads at most a head or one tensor at a time, and raises a UserError.
"""

from __future__ import annotations

import re
from pathlib import Path
from tokenize import TokenError  # numpy mends heads of Python 2 with it

import numpy as np
import torch

from retro_demo.errors import UserError
from retro_demo.evidence.evidence_store import load_reindexing
from retro_demo.models.network_size import shapes_of
from retro_demo.runs import checkpoint, run_state
from retro_demo.runs.checkpoint import AnyRun, MargeRun, read_any_config
from retro_demo.sharing.share_records import MOST_NUMBER, is_plain
from retro_demo.tensor_files import Head, finite_tensors, read_head
from retro_demo.tokenizer import Tokenizer

LANGUAGE = re.compile(r"[A-Za-z0-9_-]{0,32}")
EVIDENCE_KINDS = {
    "target": ("I32", 1),
    "evidence": ("I32", 1),
    "relevance": ("F32", 1),
    "rows": ("I64", 1),
    "vectors": ("F16", 2),
}


def check_config(folder: Path) -> AnyRun:
    """The config of a run in a staged export, every value of the kind and in the range that it must have."""
    config = read_any_config(folder)
    if isinstance(config, MargeRun):
        languages = config.network.languages
        if len(languages) > 1000 or not all(LANGUAGE.fullmatch(one) for one in languages):
            raise UserError("config.json names languages that are none. Export the run anew.")
    elif (config.model == "lm") == bool(config.network.cca_layers):
        raise UserError(
            f"config.json calls the run a {config.model}, but its network has "
            f"{len(config.network.cca_layers)} layers that read neighbors. Export the run anew."
        )
    return config


def check_weights(path: Path, config: AnyRun) -> None:
    """Raise UserError where model.safetensors is not of the config's network and training, or not finite."""
    head = checkpoint.check_weights(path, config.network)
    _ = head.held_out  # or it is no number
    if _step(head, config) == 0:
        raise UserError(f"{path.name} was saved at step 0: there is nothing trained in it.")
    for _ in finite_tensors(path):
        pass


def check_state(path: Path, config: AnyRun) -> None:
    """Raise UserError where state.safetensors is not, or holds generators that this torch does not take."""
    head = run_state.check_state(path, shapes_of(config.network))
    _step(head, config)
    head.number("processes", 1)
    for name, tensor in finite_tensors(path):
        if name.startswith("generator.cpu"):
            try:
                torch.Generator().set_state(tensor)
            except RuntimeError as error:
                raise UserError(f"{path.name} holds {name}, which is no generator's state.") from error


def _step(head: Head, config: AnyRun) -> int:
    """The step of a save; raises UserError where the training has fewer."""
    step, steps = head.step, config.training.steps
    if step > steps:
        raise UserError(f"{head.path.name} was saved at step {step}, but config.json has {steps} steps.")
    return step


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
        known = name in (*EVIDENCE_KINDS, "matrix") and (kind, len(shape)) == wanted
        if not known or max(shape) >= MOST_NUMBER:
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
