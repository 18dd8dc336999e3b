"""The memory that a network and the reading of a text take, counted from shapes alone.

A network is counted without making one, and refused where this machine cannot hold it. Reading a text is
bounded from above, in numbers of four bytes: what a forward holds at its widest, with attention weights as if
they were written out everywhere. Measured values stay below it.

Shapes: T tokens, C chunk length, K neighbors, R = 2 C, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import nn

from retro_demo.devices import allowed_memory
from retro_demo.errors import UserError
from retro_demo.kinds import kind_of_shape, resolve
from retro_demo.models.config import MargeConfig, NetworkConfig, RetroConfig
from retro_demo.models.reader_config import RUN, BesideBase, ReaderConfig

TRAINING_BYTES = 12  # of a parameter: a save holds the weight and both its moments in memory


def shapes_of(network: NetworkConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every weight of such a network."""
    return {name: tuple(weight.shape) for name, weight in _unfilled(network).state_dict().items()}


def count_parameters(network: NetworkConfig) -> int:
    """Parameters of such a network."""
    return sum(weight.numel() for weight in _unfilled(network).parameters())


def _unfilled(network: NetworkConfig) -> nn.Module:
    """Such a network without any memory behind its weights; raises UserError where none can be made."""
    try:
        with torch.device("meta"):
            return resolve(kind_of_shape(network).network)(network)
    except (ValueError, AssertionError, RuntimeError, IndexError, TypeError, ZeroDivisionError) as error:
        raise UserError(f"No network can be made of these settings ({str(error)[:200]}).") from error


def check_memory(network: NetworkConfig, step_tokens: int, device: str, base_bytes: int = 0) -> None:
    """Raise UserError where training such a network can never fit this machine's memory.

    `step_tokens` are those of a step, whose logits lie in this memory too where the device is the CPU, and
    `base_bytes` the weights of a pretrained base that is in memory beside it.
    It is what is needed at the very least: what passes may still be too much.
    """
    count, there = count_parameters(network), allowed_memory()
    logits = 4 * step_tokens * network.vocab_size if device == "cpu" else 0
    if base_bytes > there:
        raise UserError(
            f"The base takes {base_bytes / 1e9:,.1f} GB, but there are {there / 1e9:,.1f} GB of memory here. "
            "Choose a smaller base."
        )
    there, left = there - base_bytes, "left beside the base" if base_bytes else "here"
    if TRAINING_BYTES * count > there:
        raise UserError(
            f"A network of {count:,} parameters takes at least {TRAINING_BYTES * count / 1e9:,.0f} GB to "
            f"train, but there are {there / 1e9:,.0f} GB of memory {left}. {kind_of_shape(network).smaller}"
        )
    if TRAINING_BYTES * count + logits > there:
        raise UserError(
            f"A step of {step_tokens:,} tokens writes {logits / 1e9:,.0f} GB of logits, but there are "
            f"{there / 1e9:,.0f} GB of memory {left}. Choose a smaller batch, or a shorter context."
        )


NUMBER = 4  # bytes
LOGITS = 5  # of one text at a time: kept on and off, another reading, its logits and their softmax
RECORDED = 4  # attention that is shown is stacked, and averaged with its logarithm
RECORDED_EVIDENCE = 6  # the same, and kept as float64
MOST_EVIDENCE = 32  # pieces that the page reads a passage with
WRITTEN_FROM = 100  # passages at most that a MARGE writes from


def retro_numbers(network: RetroConfig, tokens: int, neighbors: int) -> int:
    """Numbers that one sequence of a forward holds: T tokens with K neighbors of each chunk."""
    heads = network.num_heads
    text = tokens * _width(network.dim, network.ff_mult, network.dim_head * heads) + heads * tokens**2
    logits = LOGITS * tokens * network.vocab_size
    if not network.cca_layers:
        return text + logits
    read = 2 * neighbors * tokens  # tokens of all neighbors
    encoder = read * (
        _width(network.enc_dim, network.ff_mult, network.dim_head * heads) + heads * network.neighbor_len
    )
    cross = 3 * heads * tokens * neighbors * network.neighbor_len
    return text + logits + encoder + cross


def reader_numbers(network: ReaderConfig, tokens: int, neighbors: int) -> int:
    """The same for a reader: its base reads text and neighbors, a look-up compares them."""
    read = 2 * neighbors * tokens  # tokens of all neighbors
    kept = len(network.match_layers) * network.dim
    looked = tokens * 2 * neighbors * network.chunk_len * (RUN + 4)
    heads = network.num_heads * read * network.neighbor_len
    return base_numbers(network, tokens) + read * (_width(network.dim, 4, 0) + 2 * kept) + looked + heads


def base_numbers(network: BesideBase, tokens: int) -> int:
    """The same for a pretrained base that reads a text alone."""
    heads = network.num_heads * tokens**2
    return tokens * _width(network.dim, 4, 0) + heads + LOGITS * tokens * network.vocab_size


def reader_megabytes(network: ReaderConfig, tokens: int, neighbors: int) -> float:
    """What explaining T tokens takes, the base's own weights aside."""
    return NUMBER * reader_numbers(network, tokens, neighbors) / 1e6


def tuned_megabytes(network: BesideBase, tokens: int, _neighbors: int) -> float:
    """What explaining T tokens takes of a base that reads no neighbors, its own weights aside."""
    return NUMBER * base_numbers(network, tokens) / 1e6


def numbers_held(network: RetroConfig | BesideBase, tokens: int, neighbors: int) -> int:
    """Numbers that one sequence of a forward of such a network holds."""
    if isinstance(network, RetroConfig):
        return retro_numbers(network, tokens, neighbors)
    if isinstance(network, ReaderConfig):
        return reader_numbers(network, tokens, neighbors)
    return base_numbers(network, tokens)


def retro_megabytes(network: RetroConfig, tokens: int, neighbors: int) -> float:
    """What explaining T tokens takes: one sequence at a time, and the attention that is shown."""
    shown = len(network.cca_layers) * network.num_heads * tokens * neighbors * network.neighbor_len
    return NUMBER * (retro_numbers(network, tokens, neighbors) + RECORDED * shown) / 1e6


def marge_megabytes(network: MargeConfig, tokens: int, _neighbors: int) -> float:
    """What reading a passage of T tokens takes with as much evidence as may be shown, or writing one."""
    heads, width = network.num_heads, max(network.enc_ff_mult, network.ff_mult, network.dec_ff_mult)
    passage = tokens * _width(network.dim, width, 0) + heads * tokens**2
    shown = network.dec_depth * heads * MOST_EVIDENCE * tokens**2
    logits = LOGITS * tokens * network.num_tokens
    return NUMBER * (WRITTEN_FROM * passage + RECORDED_EVIDENCE * shown + logits) / 1e6


def _width(dim: int, ff_mult: int, inner: int) -> int:
    """Numbers of a token in a layer: states, queries, keys and values, and the feed-forward at its widest."""
    return dim * (4 + 3 * ff_mult) + 4 * max(dim, inner)
