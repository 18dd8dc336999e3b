"""Loss by overlap: the bins add up, the last point is the plain figure, and a copied document shows."""

from __future__ import annotations

import numpy as np
import pytest

from retro_demo.evaluation import copied_text
from retro_demo.evaluation.arms import held_out_windows
from retro_demo.evaluation.copied_text import ALPHAS, FEW_CHUNKS, Overlaps, leakage, share_in_common
from retro_demo.evaluation.losses import LossTable, Sums, arm_figures, tokens_moved


@pytest.fixture(scope="module")
def table(half_held_out) -> LossTable:
    """A table of made-up losses over all windows."""
    windows = held_out_windows(half_held_out, 4, seed=0)
    rows = windows.rows
    tokens = np.where((rows >= 0)[..., None], half_held_out.chunks.tokens[rows], 0).reshape(len(rows), -1)
    table = LossTable(windows, tokens.astype(np.int64), half_held_out.bytes_of_tokens())
    rng = np.random.default_rng(0)
    everything = np.arange(len(windows))
    for arm in ("baseline", "off", "on", "shuffled"):
        table.add(arm, everything, rng.exponential(2.0, table.there.shape))
    return table


@pytest.fixture(scope="module")
def sums(table) -> Sums:
    return Sums(table, len(table.windows), resamples=200, seed=0)


def measured_tokens(table: LossTable) -> np.ndarray:
    return table.tokens.reshape(len(table.windows), -1, table.chunk_len)[:, 1:]


def database(corpus) -> np.ndarray:
    return np.flatnonzero(~corpus.held_out[corpus.chunks.document])


def found(corpus, table, ids) -> dict[str, np.ndarray]:
    measured = table.windows.rows[:, 1:]
    return Overlaps(corpus.chunks, measured, ids).of(len(measured), corpus.neighbor_ids)


def test_bpb_is_nats_over_ln_2_and_the_bytes_of_the_original_text(half_held_out, table, sums):
    measured = table.windows.rows[:, 1:]
    ids = half_held_out.chunks.tokens[measured[measured >= 0]]
    text = b"".join(half_held_out.tokenizer.token_bytes(int(i)) for i in ids[ids != 0])
    nats = sum(float(loss) for loss in table.losses["on"][table.there])

    figure = arm_figures(sums, ["on", "off"])["on"]

    assert figure["tokens"] == (ids != 0).sum()
    assert figure["nats"] == pytest.approx(nats / figure["tokens"], rel=1e-6)
    assert figure["bpb"] == pytest.approx(nats / np.log(2) / len(text), rel=1e-6)


@pytest.mark.parametrize("against", ["database", "neighbors"])
def test_bpb_at_alpha_1_is_the_plain_figure(half_held_out, table, sums, against):
    longest = found(half_held_out, table, database(half_held_out))[against]
    curve = leakage(sums, longest, measured_tokens(table), ["baseline", "off", "on", "shuffled"])
    plain = arm_figures(sums, ["baseline", "off", "on"])

    for arm in ("baseline", "off", "on"):
        assert curve["bpb"][arm][-1] == plain[arm]["bpb"]


@pytest.mark.parametrize("against", ["database", "neighbors"])
def test_every_measured_chunk_stands_in_one_bin_and_one_bucket(half_held_out, table, sums, against):
    longest = found(half_held_out, table, database(half_held_out))[against]
    curve = leakage(sums, longest, measured_tokens(table), ["off", "on"])
    chunks = int((table.windows.rows[:, 1:] >= 0).sum())

    assert sum(curve["chunks_per_bin"]) == curve["chunks"][-1] == chunks
    assert sum(bucket["chunks"] for bucket in curve["buckets"]) == chunks
    assert curve["chunks"] == sorted(curve["chunks"])
    assert curve["greyed"] == [count < FEW_CHUNKS for count in curve["chunks"]]


def test_the_curve_at_alpha_is_the_loss_of_the_chunks_that_overlap_so_little(half_held_out, table, sums):
    longest = found(half_held_out, table, database(half_held_out))["database"]
    tokens = measured_tokens(table)
    share = share_in_common(longest.reshape(-1), tokens.reshape(-1, 8)).reshape(longest.shape)
    curve = leakage(sums, longest, tokens, ["off", "on"])

    for place, alpha in enumerate(ALPHAS):
        kept = np.repeat(share <= alpha, 8, axis=1) & table.there
        size = table.size[kept].sum()
        value = curve["bpb"]["on"][place]
        if size:
            assert value == pytest.approx(table.losses["on"][kept].sum() / np.log(2) / size, rel=1e-5)


def test_the_gain_of_a_bucket_is_what_the_reference_needs_more(table, sums):
    longest = np.zeros(table.windows.rows[:, 1:].shape, dtype=np.int64)
    longest[0] = 6
    bucket = leakage(sums, longest, measured_tokens(table), ["off", "on"])["buckets"][2]
    there = table.there[0]
    gain = (table.losses["off"][0] - table.losses["on"][0])[there].mean()

    assert bucket["tokens"] == "5-8"
    assert bucket["gain"]["off"]["nats"] == pytest.approx(gain, rel=1e-5)


def test_a_held_out_document_copied_into_the_index_moves_the_report(half_held_out, table, sums):
    corpus = half_held_out
    document = table.windows.document[0]
    copied = np.flatnonzero(corpus.chunks.document == document)
    clean = database(corpus)
    before, after = (found(corpus, table, ids)["database"] for ids in (clean, np.r_[clean, copied]))
    own = table.windows.document == document
    there = table.windows.rows[:, 1:] >= 0
    lengths = (measured_tokens(table) != 0).sum(axis=-1)

    assert (after >= before).all()
    assert (after[own] == lengths[own]).all()  # every chunk of it is found whole
    assert before[own].sum() < after[own].sum()
    assert (after[~own & there.any(axis=1)] >= before[~own & there.any(axis=1)]).all()
    tokens = measured_tokens(table)
    shares = [leakage(sums, longest, tokens, ["off", "on"])["mean_share"] for longest in (before, after)]
    assert shares[1] > shares[0] + 0.02


def test_a_run_goes_over_two_chunks_of_a_document_but_never_over_its_end(half_held_out, table):
    corpus = half_held_out
    chunks, (first, second) = corpus.chunks, np.flatnonzero(np.diff(corpus.chunks.document) == 0)[:2]
    across = np.concatenate([chunks.tokens[first][4:], chunks.tokens[first + 1][:4]])
    made = type(chunks)(np.vstack([chunks.tokens, across[None]]), np.append(chunks.document, 10**6))
    own = np.array([[len(chunks)]])
    table_of_none = np.full((len(made), 1), -1)

    joined = Overlaps(made, own, np.array([first, first + 1])).of(1, table_of_none)["database"]
    apart = Overlaps(made, own, np.array([first, second + 5])).of(1, table_of_none)["database"]

    assert joined[0, 0] == 8
    assert apart[0, 0] < 8


def test_what_is_asked_for_round_by_round_is_found_once_and_is_the_same(half_held_out, table, monkeypatch):
    calls = []
    for name in ("longest_in_text", "longest_in_neighbors"):
        plain = getattr(copied_text, name)

        def counted(chunks, other, name=name, plain=plain):
            calls.append((name, len(chunks)))
            return plain(chunks, other)

        monkeypatch.setattr(copied_text, name, counted)
    measured, ids = table.windows.rows[:, 1:], database(half_held_out)
    growing = Overlaps(half_held_out.chunks, measured, ids)

    rounds = [growing.of(count, half_held_out.neighbor_ids) for count in (3, 3, 9, len(measured))]

    sizes = {name: [n for called, n in calls if called == name and n] for name, _ in calls}
    assert sizes["longest_in_text"] == [(measured >= 0).sum()]
    assert sum(sizes["longest_in_neighbors"]) == (measured >= 0).sum()
    whole = Overlaps(half_held_out.chunks, measured, ids).of(len(measured), half_held_out.neighbor_ids)
    for one in rounds:
        for name, runs in one.items():
            assert (runs == whole[name][: len(runs)]).all()


def test_tokens_helped_and_hurt_are_counted_beyond_a_tenth_of_a_nat(table):
    copy = LossTable(table.windows, table.tokens, np.zeros(400, dtype=np.int64))
    everything = np.arange(len(table.windows))
    gain = np.zeros(table.there.shape)
    gain.reshape(-1)[np.flatnonzero(table.there)[:4]] = [0.2, 0.09, -0.09, -0.2]
    copy.add("off", everything, 1 + gain)
    copy.add("on", everything, np.ones(table.there.shape))
    moved = tokens_moved(Sums(copy, len(everything), resamples=200, seed=0), "off")

    tokens = table.there.sum()
    assert moved["helped"] == pytest.approx(1 / tokens)
    assert moved["hurt"] == pytest.approx(1 / tokens)
    assert moved["mean"] == pytest.approx(0, abs=1e-7)
