"""A re-index of MARGE: ours against the reference's, at equal arithmetic for each document.

    .venv/bin/python -m benchmarks.marge_reindex [--threads 2 1] [--documents 512]

Both have the same weights; their embeddings are checked to agree. The reference's `reindex` is run as it
is shipped, on a flat index, with the `.cuda()` in it doing nothing; ours embeds and finds pairs. How many
documents pass through each encoder is counted. First all documents are as long as they can be, then their
lengths vary: the reference embeds the padding too, for its `reindex` passes no masks; ours does not read it.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import faiss
import numpy as np

from benchmarks.measuring import Report, at_threads, options, ratio, span, take_turns, torch
from benchmarks.peers import QUICK_MARGE, MargeSizes, load_references, reference_marge, same_marge, silence
from retro_demo.evidence.passages import Passages, find_pairs
from retro_demo.evidence.reindex import embed_passages
from retro_demo.models.config import EvidenceConfig
from retro_demo.models.marge import MARGE

from torch import nn  # isort: skip

THEIRS, EMBEDS, OURS, ALONE = (
    "reference, reindex",
    "reference, get_embeds",
    "ours, re-index",
    "ours, embedding",
)
EVIDENCE, SHIPPED_BATCH = 4, 4
AGREE = 1e-4
LEAST = 3.0


def make_documents(count: int, sizes: MargeSizes, *, varied: bool) -> np.ndarray:
    """Random documents int64 (N, S), padded with 0 where their lengths vary from an eighth of S to S."""
    chance = np.random.default_rng(0)
    length = sizes.evidence_len
    documents = chance.integers(3, sizes.vocab, (count, length))
    if varied:
        lengths = chance.integers(length // 8, length + 1, count)
        documents[np.arange(length) >= lengths[:, None]] = 0
    return documents


def reference_reindex(theirs: Any, documents: np.ndarray, folder: Path) -> Callable[[], None]:
    """The shipped `TrainingWrapper.reindex` over these documents, which are targets and evidence."""
    _, package = load_references()
    path = folder / "documents"
    documents.astype(np.int32).tofile(path)
    wrapper = package.TrainingWrapper.__new__(package.TrainingWrapper)  # its constructor wants a GPU
    nn.Module.__init__(wrapper)
    wrapper.model, wrapper.index = theirs, faiss.IndexFlatL2(theirs.dim)
    wrapper.use_faiss_ann, wrapper.separate_target_and_evidence = False, False
    wrapper.reindex_batch_size, wrapper.num_evidence = SHIPPED_BATCH, EVIDENCE
    wrapper.num_docs = wrapper.num_targets = len(documents)
    wrapper.doc_shape = wrapper.target_shape = documents.shape
    wrapper.documents_path = wrapper.target_path = str(path)
    wrapper.knn_path = f"{path}.knn"

    def run() -> None:
        with silence(), patch.object(torch.Tensor, "cuda", lambda tensor: tensor):
            wrapper.reindex()

    return run


def our_reindex(model: MARGE, documents: np.ndarray) -> Callable[[], None]:
    """Embed all documents and find the pairs that batches are made of."""
    own = np.arange(len(documents))
    nothing, everything = np.zeros(len(own), dtype=bool), np.ones(len(own), dtype=bool)
    passages = Passages(documents, own, 0 * own, 0 * own, own, own, nothing, nothing, ("",))
    config = EvidenceConfig(evidence_per_target=EVIDENCE)

    def run() -> None:
        vectors = embed_passages(model, documents)
        find_pairs(vectors, passages, config, targets=everything, candidates=everything, seed=0)

    return run


@contextmanager
def counting(theirs: Any, ours: MARGE) -> Iterator[dict[str, int]]:
    """Within the block, count the documents that pass through the reference's encoder and through ours."""
    counts = {"theirs": 0, "ours": 0}

    def count(_module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        counts["theirs"] += len(inputs[0])

    embed = ours.embed

    def counted(tokens: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        counts["ours"] += len(tokens)
        return embed(tokens, mask)

    handle = theirs.encoder.register_forward_pre_hook(count)
    try:
        with patch.object(ours, "embed", counted):
            yield counts
    finally:
        handle.remove()


def compare(report: Report, chosen: Any, sizes: MargeSizes, *, varied: bool) -> None:
    """One table: documents of full length, or of varied ones."""
    torch.manual_seed(0)
    theirs = reference_marge(sizes)
    ours = same_marge(theirs, sizes)
    if varied:  # the same weights, and padding is not read
        blind = MARGE(replace(ours.config, blind_padding=True)).eval()
        blind.load_state_dict(ours.state_dict())
        ours = blind
    documents = make_documents(chosen.documents, sizes, varied=varied)
    tokens = torch.from_numpy(documents)
    with torch.no_grad():  # without padding the two agree; the reference embeds padding as text
        apart = float(
            abs(theirs.get_embeds(tokens[:64]).numpy() - embed_passages(ours, documents[:64])).max()
        )
    if not varied and apart > AGREE:
        raise SystemExit(f"The embeddings of the two are {apart} apart: not the same network.")
    with tempfile.TemporaryDirectory() as folder:
        ways = {
            THEIRS: reference_reindex(theirs, documents, Path(folder)),
            EMBEDS: torch.no_grad()(lambda: theirs.get_embeds(tokens)),
            OURS: our_reindex(ours, documents),
            ALONE: lambda: embed_passages(ours, documents),
        }
        with counting(theirs, ours) as counts:
            ways[THEIRS]()
            ways[OURS]()
        kind = "of varied length" if varied else f"of {documents.shape[1]} tokens"
        embedded = {THEIRS: counts["theirs"], OURS: counts["ours"], EMBEDS: len(tokens), ALONE: len(tokens)}
        for threads in chosen.threads:
            torch.set_num_threads(threads)
            seconds = take_turns(ways, chosen.rounds, warmup=0, clock=chosen.clock)
            at = at_threads(threads, chosen.clock)
            rows = [
                (
                    side,
                    f"{len(documents) / statistics.median(times):.0f}",
                    span(times, 2),
                    "" if side == THEIRS else ratio(seconds[THEIRS], times),
                    embedded[side],
                )
                for side, times in seconds.items()
            ]
            report.table(
                f"Re-index of {len(documents)} documents {kind}, {at}, {chosen.rounds} rounds:",
                ("side", "documents/s", "seconds (range)", "times the reference", "documents embedded"),
                rows,
            )
            report.figures[f"{kind}, {at}"] = {"seconds": seconds, "embedded": embedded, "apart": apart}
            if not varied and not chosen.quick:
                report.aim(
                    f"re-index, {at}, equal length", ratio(seconds[THEIRS], seconds[OURS]), least=LEAST
                )
    if not varied:
        report.aim("documents embedded for each document", counts["ours"] / len(documents), most=1.0)


def main() -> None:
    parser = options(__doc__, rounds=3, threads=(2, 1))
    parser.add_argument("--documents", type=int, default=512, help="in one re-index")
    chosen = parser.parse_args()
    report = Report("marge_reindex")
    for varied in (False, True):
        compare(report, chosen, QUICK_MARGE if chosen.quick else MargeSizes(), varied=varied)
    report.publish(chosen.json)


if __name__ == "__main__":
    main()
