"""The networks that are compared: the references at the sizes of their measured baseline, and ours.

Each comparison has three sides: the reference as its user would configure it; our network of the same
arithmetic, its weights taken over from the reference, so that both compute the same losses; and our network
as its user would configure it at these sizes, where 4 heads are 4 (the reference always has 8).

Shapes: B batch, T tokens, L chunks, K neighbors, R neighbor length, M evidence, S evidence length.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.measuring import torch  # first: it settles how idle threads wait
from benchmarks.reference_env import load_references

import torch.nn.functional as F  # isort: skip
from torch import Tensor, nn

from retro_demo.devices import SINGLE_PROCESS, wrap_model
from retro_demo.events import Evaluated, Step
from retro_demo.interop import retro_from_reference
from retro_demo.interop.marge_pytorch import marge_from_reference
from retro_demo.models.config import MargeConfig, RetroConfig
from retro_demo.models.marge import MARGE, MargeBatch
from retro_demo.models.retro import RETRO, RetroBatch
from retro_demo.runs.alarms import Watch
from retro_demo.settings import TrainConfig
from retro_demo.training.loop import Hooks, make_optimizer, train

LR, DECAY = 3e-4, 0.1
FOREVER = 1_000_000  # steps
EOS = 102  # ends a text of the reference; never in random tokens here


@dataclass(frozen=True)
class RetroSizes:
    """Half the parameters are embeddings and output layer; the encoder reads 4 times the decoder's tokens."""

    vocab: int = 8192
    width: int = 256
    head_width: int = 64
    context: int = 256
    chunk: int = 32
    neighbors: int = 2
    depth: int = 6
    enc_depth: int = 2
    cca_layers: tuple[int, ...] = (1, 3, 6)
    batch: int = 8

    def arguments(self) -> dict[str, Any]:
        """For the reference's constructor."""
        return {
            "num_tokens": self.vocab,
            "max_seq_len": self.context,
            "enc_dim": self.width,
            "dec_dim": self.width,
            "enc_depth": self.enc_depth,
            "dec_depth": self.depth,
            "dec_cross_attn_layers": self.cca_layers,
            "heads": self.width // self.head_width,
            "dim_head": self.head_width,
            "chunk_size": self.chunk,
        }

    def config(self) -> RetroConfig:
        """Ours at these sizes, all else at its default."""
        return RetroConfig(
            vocab_size=self.vocab,
            chunk_len=self.chunk,
            dim=self.width,
            depth=self.depth,
            num_heads=self.width // self.head_width,
            cca_layers=self.cca_layers,
            enc_dim=self.width,
            enc_depth=self.enc_depth,
            enc_cross_layers=tuple(range(1, self.enc_depth + 1)),
        )

    def random_batch(self) -> RetroBatch:
        """Random tokens (B, T + 1) and neighbors (B, L, K, 2 C); without layers that read them None."""
        tokens = torch.randint(EOS + 1, self.vocab, (self.batch, self.context + 1))
        shape = (self.batch, self.context // self.chunk, self.neighbors, 2 * self.chunk)
        return RetroBatch(tokens, torch.randint(EOS + 1, self.vocab, shape) if self.cca_layers else None)


@dataclass(frozen=True)
class MargeSizes:
    """4 decoder layers without evidence, then 2 with it; the first 2 of 4 encoder layers embed."""

    vocab: int = 8192
    width: int = 256
    heads: int = 8
    context: int = 256
    target: int = 128
    evidence: int = 4
    evidence_len: int = 128
    enc_depth: int = 4
    retrieval_depth: int = 2
    dec_depth: int = 6
    batch: int = 4

    def arguments(self) -> dict[str, Any]:
        """For the reference's constructor."""
        return {
            "dim": self.width,
            "num_tokens": self.vocab,
            "max_seq_len": self.context,
            "enc_depth": self.enc_depth,
            "enc_retrieval_depth": self.retrieval_depth,
            "dec_depth": self.dec_depth,
            "dec_ff_mult": 16,
        }

    def config(self) -> MargeConfig:
        """Ours at these sizes, all else at its default."""
        return MargeConfig(
            vocab_size=self.vocab,
            dim=self.width,
            num_heads=self.heads,
            enc_depth=self.enc_depth,
            retrieval_depth=self.retrieval_depth,
            base_depth=4,
            dec_depth=self.dec_depth - 4,
            ff_mult=4,
            enc_ff_mult=4,
            dec_ff_mult=16,
        )

    def random_batch(self) -> MargeBatch:
        """Random targets (B, T + 1), and evidence (B, M, S) of each target."""
        evidence = (self.batch, self.evidence, self.evidence_len)
        targets = torch.randint(EOS + 1, self.vocab, (self.batch, self.target + 1))
        return MargeBatch(targets, torch.randint(EOS + 1, self.vocab, evidence))


QUICK_RETRO = RetroSizes(256, 64, 32, 64, 16, 2, 3, 1, (1, 3), 2)
QUICK_MARGE = MargeSizes(256, 64, 8, 64, 32, 2, 24, 2, 1, 5, 2)
"""Sizes to see in seconds that a benchmark works."""


def reference_retro(sizes: RetroSizes) -> Any:
    """The network of RETRO-pytorch, drawn by itself."""
    return load_references()[0].RETRO(**sizes.arguments())


def reference_marge(sizes: MargeSizes) -> Any:
    """The network of marge-pytorch, drawn by itself."""
    return load_references()[1].Marge(**sizes.arguments())


def same_retro(theirs: Any, sizes: RetroSizes) -> RETRO:
    """Ours with the weights of the reference's network, and its numbers."""
    return retro_from_reference(theirs.state_dict(), **sizes.arguments())


def same_marge(theirs: Any, sizes: MargeSizes) -> MARGE:
    """Ours with the weights of the reference's network, and its numbers."""
    return marge_from_reference(theirs.state_dict(), **sizes.arguments())


def retro_step(theirs: Any, batch: RetroBatch) -> Callable[[], float]:
    """One training step of RETRO-pytorch with its optimizer; without neighbors it gives no loss."""
    package, _ = load_references()
    optimizer = package.training.get_optimizer(theirs.parameters(), lr=LR, wd=DECAY)
    theirs.train()

    def loss() -> Tensor:
        if batch.neighbors is not None:
            return theirs(batch.tokens, batch.neighbors, return_loss=True)
        logits = theirs(batch.tokens[:, :-1])
        return F.cross_entropy(logits.transpose(1, 2), batch.tokens[:, 1:], ignore_index=0)

    return lambda: _plain_step(optimizer, loss)


def marge_step(theirs: Any, batch: MargeBatch) -> Callable[[], float]:
    """One training step of marge-pytorch as its TrainingWrapper computes it, masks of nothing included."""
    _, package = load_references()
    wrapper = package.TrainingWrapper.__new__(
        package.TrainingWrapper
    )  # its constructor wants a GPU and files
    nn.Module.__init__(wrapper)
    wrapper.model = theirs
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=LR, weight_decay=DECAY)
    masks = [torch.ones_like(part).bool() for part in batch[:2]]
    data = (batch.targets, masks[0], batch.evidence, masks[1])
    theirs.train()
    return lambda: _plain_step(optimizer, lambda: wrapper(data))


def _plain_step(optimizer: torch.optim.Optimizer, loss_of: Callable[[], Tensor]) -> float:
    optimizer.zero_grad()
    loss = loss_of()
    loss.backward()
    optimizer.step()
    return loss.item()


class OneBatch:
    """The same batch at every step."""

    def __init__(self, batch: Any) -> None:
        self.batch = batch

    def train_batch(self, step: int) -> Any:
        return self.batch


def our_step(model: nn.Module, batch: Any, *, half: bool = False) -> Callable[[], float]:
    """One training step of ours, by the loop that trains every run; `half`: bf16 where it serves."""
    config = TrainConfig(
        steps=FOREVER, warmup=0, lr=LR, weight_decay=DECAY, eval_every=FOREVER, save_every=FOREVER
    )
    hooks = Hooks(
        evaluate=lambda step: (Evaluated(step, {}),), save=lambda step, best: None, stop=lambda: False
    )
    optimizer = make_optimizer(model, config)
    learner = wrap_model(model, SINGLE_PROCESS, sharded=False, precision="bfloat16" if half else "float32")
    events = train(learner, OneBatch(batch), optimizer, config, start=0, hooks=hooks, watch=Watch(config))
    return lambda: next(event.loss for event in events if isinstance(event, Step))


@contextlib.contextmanager
def silence():
    """Within the block nothing is printed: the references report their progress."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
