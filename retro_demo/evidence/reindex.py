"""How MARGE re-indexes: embeddings of all passages -> the evidence of each, with figures, in the run folder.

training/marge_batches.py says when. evidence/000300.safetensors holds what the re-index before step 300
found: all pairs, and for the page the embeddings of up to SHOWN passages in half precision. These are always
the same passages, first ones of documents before others. Each file is written beside itself and renamed.

Does an encoder find the same item in another language? Recall and reciprocal rank, by script too. The first
passage stands for a document. A query searches all documents of one other language, held out or not, for one
of its own group (say, its translation).

Shapes: P passages, D embedding width, L languages, Q queries, C candidates.
"""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from retro_demo.corpus.store import Corpus
from retro_demo.devices import SINGLE_PROCESS, World
from retro_demo.errors import UserError
from retro_demo.evidence.hubs import nearness
from retro_demo.evidence.passages import Pairs, Passages, chance_of_group, find_pairs, pair_figures
from retro_demo.evidence.vectors import Vectors, WordVectors, cosines, language_means, narrow, word_vectors
from retro_demo.files import beside
from retro_demo.models.config import EvidenceConfig
from retro_demo.models.marge import MARGE
from retro_demo.models.words import WordCounts
from retro_demo.tokenizer import Tokenizer

SHOWN = 2048
MOST_ASKED = 2000  # documents that each re-index asks for: an evaluation asks for all


@dataclass(frozen=True)
class Reindexing:
    """One re-index: pairs, embeddings (R, D) of length 1 of the passages `rows` (R,), and its figures.

    `matrix` (languages, languages) is the recall from each language to each other, where there is any.
    `weights` float32 (V,): what each token weighs in relevance by words, None where it is the paper's.
    """

    step: int
    pairs: Pairs
    rows: np.ndarray
    vectors: np.ndarray
    figures: dict[str, Any]
    matrix: np.ndarray | None = None
    weights: np.ndarray | None = None


def reindex(
    step: int,
    vectors: Vectors,
    passages: Passages,
    config: EvidenceConfig,
    *,
    targets: np.ndarray,
    candidates: np.ndarray,
    scripts: Sequence[str],
    seed: int,
    before: Pairs | None,
) -> Reindexing:
    """Find the evidence of all targets by embeddings (P, D) of length 1, as they are before `step`.

    targets, candidates bool (P,): what gets evidence, and what may be some. `seed` makes the shards,
    `scripts` are for `recall_by`, `before` are the pairs of the last re-index. Raises UserError where no
    passage has any evidence.
    """
    pairs = find_pairs(vectors, passages, config, targets=targets, candidates=candidates, seed=seed)
    if not len(pairs.target):
        raise UserError(
            f"No passage of this corpus has evidence: of {len(passages.document)} none may be "
            "evidence for another. Add documents, or allow evidence from the same document or language."
        )
    figures = pair_figures(pairs, passages, targets, before)
    figures["same_group_by_chance"] = chance_of_group(
        pairs, passages, config, candidates=candidates, shard_seed=seed
    )
    asking = some_that_ask(passages)
    across = recall(vectors, passages, asking, scripts)
    across.pop("languages", None)
    cells = across.pop("matrix", None)
    if across and isinstance(vectors, WordVectors):
        who = (passages, asking, scripts)
        figures |= parts_alone(vectors, who, with_words=step == 0)
    matrix = None if cells is None else np.array(cells, dtype=np.float32)  # NaN where there is no pair
    rows = shown_rows(passages.position)
    return Reindexing(step, pairs, rows, narrow(vectors)[rows], figures | {"recall": across}, matrix)


def some_that_ask(passages: Passages) -> np.ndarray:
    """bool (P,): first passages of held-out documents, MOST_ASKED of them at most, spread evenly."""
    ids = np.flatnonzero(passages.held_out & (passages.position == 0))
    out = np.zeros(len(passages), dtype=bool)
    if len(ids):
        out[ids[np.unique(np.linspace(0, len(ids) - 1, min(len(ids), MOST_ASKED)).astype(np.int64))]] = True
    return out


def parts_alone(
    vectors: WordVectors, who: tuple[Passages, np.ndarray, Sequence[str]], *, with_words: bool
) -> dict[str, Any]:
    """Recall by what is learned beside the words alone, and by words alone; `who` is for `recall`."""
    parts: dict[str, Vectors] = {}
    if vectors.widths[-1]:
        parts["recall_learned"] = vectors.learned_alone()
    if with_words and any(vectors.widths[:2]):
        parts["recall_words"] = vectors.part((0, 1))
    return {name: short_recall(recall(part, *who)) for name, part in parts.items()}


def short_recall(found: dict[str, Any]) -> dict[str, float]:
    """Of the figures of `recall_by` those that are numbers."""
    return {name: value for name, value in found.items() if not isinstance(value, list)}


def shown_rows(position: np.ndarray) -> np.ndarray:
    """Ids of the passages whose embeddings are kept; position (P,): their numbers within their documents."""
    firsts, others = np.flatnonzero(position == 0), np.flatnonzero(position > 0)
    if len(firsts) > SHOWN:  # spread evenly through the documents
        return firsts[np.unique(np.linspace(0, len(firsts) - 1, SHOWN).astype(np.int64))]
    return np.sort(np.concatenate([firsts, others[: SHOWN - len(firsts)]]))


def save_reindexing(folder: Path, found: Reindexing) -> None:
    """Keep a re-index in the run `folder`."""
    (folder / "evidence").mkdir(exist_ok=True)
    path = _path(folder, found.step)
    tensors = {
        "target": found.pairs.target.astype(np.int32),
        "evidence": found.pairs.evidence.astype(np.int32),
        "relevance": found.pairs.relevance,
        "rows": found.rows,
        "vectors": found.vectors.astype(np.float16),
    }
    for name, extra in (("matrix", found.matrix), ("weights", found.weights)):
        if extra is not None:
            tensors[name] = extra
    with beside(path) as unfinished:
        save_file(
            {name: np.ascontiguousarray(array) for name, array in tensors.items()},
            unfinished,
            metadata={"step": str(found.step), "figures": json.dumps(found.figures)},
        )


def load_reindexing(folder: Path, step: int) -> Reindexing | None:
    """The re-index before `step`, its vectors in half precision; None where there is none."""
    path = _path(folder, step)
    if not path.exists():
        return None
    try:
        with safe_open(path, "numpy") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            meta = file.metadata()
        target, evidence = (tensors[name].astype(np.int64) for name in ("target", "evidence"))
        pairs = Pairs(target, evidence, tensors["relevance"])
        figures = json.loads(meta["figures"])
        rows, vectors = tensors["rows"], tensors["vectors"]
        extra = tensors.get("matrix"), tensors.get("weights")
        return Reindexing(int(meta["step"]), pairs, rows, vectors, figures, *extra)
    except (SafetensorError, KeyError, ValueError, TypeError, OSError) as error:
        raise UserError(
            f"{path.name} of the run {folder.name} is damaged ({error}). Train it anew."
        ) from error


def reindexed_steps(folder: Path) -> list[int]:
    """The steps before which the run re-indexed, in order."""
    return sorted(int(path.stem) for path in (folder / "evidence").glob("[0-9]*.safetensors"))


def _path(folder: Path, step: int) -> Path:
    return folder / "evidence" / f"{step:06d}.safetensors"


def begin_words(model: MARGE, passages: Passages, tokenizer: Tokenizer, seed: int) -> None:
    """Give relevance by words what it begins with: of all passages that are not held out, no more.

    Where relevance is the paper's, nothing.
    """
    if model.words is not None:
        told = ~passages.held_out
        model.words.begin(passages.tokens[told], passages.language[told], tokenizer, seed)


def weights_of_tokens(model: MARGE) -> np.ndarray | None:
    """float32 (V,): what each token weighs in the model's relevance, None where words have no part in it."""
    if model.words is None:
        return None
    return model.words.log_weights.detach().exp().float().cpu().numpy()


def embed_passages(
    model: MARGE, tokens: np.ndarray, world: World = SINGLE_PROCESS, counted: WordCounts | None = None
) -> Vectors:
    """tokens (P, S), padded -> embeddings of length 1, as the loss has them: `first_tokens`, or by words.

    `counted`: what stands in these tokens, where that is known and relevance is by words.
    """
    if model.words is None:
        return first_tokens(model, tokens, world)
    words, device, first = model.words, next(model.parameters()).device, None
    if words.widths[2] and not model.config.relevance_table:
        first = first_tokens(model, tokens, world)
    language = words.languages_of(torch.from_numpy(tokens[:, :1]).to(device)).cpu().numpy()
    return word_vectors(words, counted or words.count(tokens), language, first)


def center_anew(model: MARGE, vectors: Vectors, which: np.ndarray, world: World = SINGLE_PROCESS) -> Vectors:
    """The embeddings (P, D) around the means of languages among `which` (P,), bool, in the model from now on.

    As they are where the network does not center. Several processes have the means of the main one, so that
    no rounding can part them.
    """
    if model.words is None or not model.words.centered or not isinstance(vectors, WordVectors):
        return vectors
    means = language_means(vectors, which)
    if not world.is_main:
        means = np.zeros_like(means)
    world.add_up(means)
    with torch.no_grad():
        model.words.centers.copy_(torch.from_numpy(means))
    return replace(vectors, means=means, kept={})


@torch.inference_mode()
def first_tokens(model: MARGE, tokens: np.ndarray, world: World = SINGLE_PROCESS) -> np.ndarray:
    """tokens (P, S), padded -> the encoder's embeddings of length 1, float32 (P, D).

    In eval mode and with masks, so padding and dropout change nothing; short passages go together.
    Several processes take turns and give the same vectors, to the bit, as one.
    """
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    pad = model.config.pad_id
    lengths = (tokens != pad).sum(axis=1)
    order = np.argsort(lengths, kind="stable")
    vectors = np.zeros((len(tokens), model.config.dim), dtype=np.float32)
    at = turn = 0
    while at < len(order):
        count = max(1, EMBED_TOKENS // max(1, int(lengths[order[at : at + 256]].max(initial=1))))
        rows = order[at : at + min(count, 256)]
        if turn % world.size == world.rank:
            part = torch.from_numpy(tokens[rows, : max(1, lengths[rows].max())]).to(device)
            vectors[rows] = (
                torch.nn.functional.normalize(model.first_tokens(part), dim=-1).float().cpu().numpy()
            )
        at, turn = at + len(rows), turn + 1
    world.add_up(vectors)
    model.train(was_training)
    return vectors


EMBED_TOKENS = 16_384  # in one forward of the encoder
QUERY_BLOCK = 256
CJK = ("CJK", "HIRAGANA", "KATAKANA", "BOPOMOFO")  # written together, so they count as one


def recall(
    embeddings: Vectors,
    passages: Passages,
    queries: np.ndarray,
    scripts: Sequence[str],
    *,
    hub_neighbors: int = 0,
) -> dict[str, Any]:
    """`recall_by` with the cosine of embeddings (P, D), of any length, or the margin (evidence/hubs.py)."""
    vectors = embeddings
    if isinstance(vectors, np.ndarray):
        vectors = np.asarray(vectors, dtype=np.float64)
        vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-30)
    return recall_by(scores_of(vectors, passages, hub_neighbors), passages, queries, scripts)


def scores_of(
    vectors: Vectors, passages: Passages, hub_neighbors: int = 0
) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """What `recall_by` asks for: the cosine of vectors of length 1, or its margin among first passages."""
    if not hub_neighbors:
        return lambda own, others: cosines(vectors, own, others)
    language, firsts = passages.language, passages.position == 0
    near = nearness(vectors, language, len(passages.languages), firsts, hub_neighbors)

    def margins(own: np.ndarray, others: np.ndarray) -> np.ndarray:
        found = 2 * cosines(vectors, own, others)
        return found - near[own][:, language[others]] - near[others][:, language[own]].T

    return margins


def recall_by(
    scores: Callable[[np.ndarray, np.ndarray], np.ndarray],
    passages: Passages,
    queries: np.ndarray,
    scripts: Sequence[str],
) -> dict[str, Any]:
    """Figures over all pairs of a query and another language that holds its group; {} where there are none.

    scores: passage ids (Q,), (C,) -> (Q, C), more is nearer. queries bool (P,): passages whose documents
    ask, the first passage of each only. scripts: one for each of `passages.languages`.

    recall_at_1: share in which the nearest document of that language is of the query's group; mrr: mean
    of one over the rank of the best such; chance: recall_at_1 of a draw. An equal score counts as
    nearer than it, so vectors that are all the same find nothing. The first two also for pairs of one
    script and of two (`_same_script`, `_other_script`), where there are any. queries and pairs: how
    many; pool: mean number of candidates. matrix: recall_at_1 from language (row) to language
    (column) as `languages` orders them, None where there is no pair.
    """
    query, target, rank, pool, chance = ranks_by(scores, passages, queries)
    if not len(query):
        return {}
    source, target = passages.language[query.astype(np.int64)], target.astype(np.int64)
    _, script = np.unique(np.array(scripts), return_inverse=True)
    same = script[source] == script[target]
    figures: dict[str, Any] = {}
    for name, part in (("", same | True), ("_same_script", same), ("_other_script", ~same)):
        if part.any():
            figures["recall_at_1" + name] = float(np.mean(rank[part] == 1))
            figures["mrr" + name] = float(np.mean(1 / rank[part]))
    figures["queries"] = len(np.unique(query))
    figures["pairs"] = len(query)
    figures["pool"] = float(pool.mean())
    figures["chance"] = float(chance.mean())
    count = len(passages.languages)
    cell = source * count + target
    hits, asked = (np.bincount(cell, weights, count * count) for weights in (rank == 1, None))
    cells = [hit / of if of else None for hit, of in zip(hits.tolist(), asked.tolist(), strict=True)]
    figures["languages"] = list(passages.languages)
    figures["matrix"] = [cells[i : i + count] for i in range(0, count * count, count)]
    return figures


def ranks_by(
    scores: Callable[[np.ndarray, np.ndarray], np.ndarray], passages: Passages, queries: np.ndarray
) -> np.ndarray:
    """Columns (5, n) of all pairs that `recall_by` is over, as it takes them.

    The query's passage id, the other language, the rank of the best document of its group there, how many
    candidates there are, and the share of them that are of the group.
    """
    firsts = np.flatnonzero(passages.position == 0)
    asking = firsts[queries[firsts]]
    found = [np.zeros((5, 0))]
    for start in range(0, len(asking), QUERY_BLOCK):
        own = asking[start : start + QUERY_BLOCK]
        values = scores(own, firsts)
        for language in np.unique(passages.language[firsts]):
            there = np.flatnonzero(passages.language[firsts] == language)
            candidates = firsts[there]
            away = passages.language[own] != language
            away &= np.isin(passages.group[own], passages.group[candidates])
            found.append(_ranks(values[np.ix_(away, there)], passages, own[away], candidates))
    columns = np.concatenate(found, axis=1)
    return columns[:, np.argsort(columns[1], kind="stable")]


def script_of(text: str) -> str:
    """The script that most letters of a text are of, such as "Latin"; Chinese and Japanese: "CJK".

    "" for a text without letters.
    """
    return _most(Counter(text))


def scripts_of(corpus: Corpus, languages: Sequence[str]) -> list[str]:
    """The script of each language: of most letters in its documents; "" where it has none."""
    signs = {language: Counter[str]() for language in languages}
    for document in corpus.documents:
        if document.lang in signs:
            signs[document.lang].update(document.text)
    return [_most(signs[language]) for language in languages]


def _ranks(values: np.ndarray, passages: Passages, own: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Columns (5, Q) as `ranks_by` gives them: passages own (Q,) search the language of all candidates.

    values (Q, C): how near each candidate is.
    """
    same = passages.group[own][:, None] == passages.group[candidates]
    best = np.where(same, values, -np.inf).max(axis=1, keepdims=True)
    rank = 1 + ((values >= best) & ~same).sum(axis=1)
    size = np.full(len(own), len(candidates))
    language = np.full(len(own), passages.language[candidates[0]])
    return np.stack([own, language, rank, size, same.mean(axis=1)])


def _most(signs: Counter[str]) -> str:
    """The script that most of the counted letters are of."""
    scripts = Counter[str]()
    for sign, count in signs.items():
        if unicodedata.category(sign) in ("Lu", "Ll", "Lt", "Lo"):
            words = (
                unicodedata.name(sign, "").removeprefix("FULLWIDTH ").removeprefix("HALFWIDTH ").split(" ")
            )
            scripts["CJK" if words[0] in CJK else words[0].capitalize()] += count
    # of equal counts the first in the alphabet, whatever the order of the text
    return min(scripts, key=lambda name: (-scripts[name], name), default="")
