"""The overview of heads: shares of attention, the null key's, and small maps that add up to them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from views_helpers import HEADS, TRACE, C, K, small_trace

from retro_demo.explain.heads import COARSE, FINE, MANY, head_rows, heads
from retro_demo.explain.text import trace_values


def test_there_is_a_head_for_each_of_each_layer_and_its_shares_are_means_over_the_tokens_that_read():
    grid = heads(TRACE)

    assert [[(one.layer, one.number) for one in row] for row in grid] == [
        [(layer, h + 1) for h in range(HEADS)] for layer in TRACE.layers
    ]
    wanted = TRACE.weights[1, :, 2].sum(dim=-1).reshape(-1, K).mean(dim=0)  # all 8 rows belong to a token
    assert np.allclose(grid[1][2].shares, wanted.numpy(), atol=1e-6)
    assert grid[1][2].null is None
    assert np.isclose(sum(grid[1][2].shares), 1, atol=1e-6)


def test_rows_past_the_end_of_the_text_and_chunks_that_found_nothing_do_not_count():
    shorter = small_trace(8)  # of the second chunk only its last token reads
    weights = shorter.weights.clone()
    weights[:, 1, :, 1:] = 7.0
    assert heads(replace(shorter, weights=weights))[0][0].shares == heads(shorter)[0][0].shares

    alone = replace(TRACE, neighbors=[TRACE.neighbors[0], []])
    wanted = TRACE.weights[0, 0, 0].sum(dim=-1).mean(dim=0)
    assert np.allclose(heads(alone)[0][0].shares, wanted.numpy(), atol=1e-6)


def test_what_is_left_of_the_neighbors_fell_on_nothing_where_there_is_a_null_key():
    turned = replace(TRACE, weights=0.25 * TRACE.weights, about=TRACE.about | {"null_slot": True})

    for row in heads(turned):
        for one in row:
            assert one.null is not None
            assert np.isclose(one.null, 0.75, atol=1e-6)


def test_a_small_map_adds_up_to_the_shares_and_is_coarse_for_many_heads():
    one = heads(TRACE)[0][0]
    assert one.small.shape == (C, K, FINE)
    assert np.allclose(one.small.sum(axis=-1).mean(axis=0), one.shares, atol=1e-6)

    many = replace(TRACE, weights=TRACE.weights.repeat(1, 1, MANY, 1, 1, 1))
    coarse = heads(many)[0][0]
    assert coarse.small.shape == (C, K, COARSE)
    assert np.allclose(coarse.small.sum(axis=-1).mean(axis=0), one.shares, atol=1e-6)


def test_a_head_that_reads_along_draws_a_diagonal():
    weights = torch.zeros(1, 2, 1, C, 1, 2 * C)
    for place in range(C):
        weights[0, :, 0, place, 0, C + place] = 1
    along = replace(TRACE, weights=weights, layers=[2])

    assert np.array_equal(heads(along)[0][0].small[:, 0, C:], np.eye(C))


def test_the_download_has_a_row_for_each_head_and_a_text_without_neighbors_has_none():
    rows = head_rows(TRACE)

    assert trace_values(TRACE)["heads"] == rows
    assert [(row["layer"], row["head"]) for row in rows] == [
        (layer, h + 1) for layer in TRACE.layers for h in range(HEADS)
    ]
    assert all(len(row["neighbors"]) == K and row["nothing"] is None for row in rows)
    bare = replace(TRACE, neighbors=[], layers=[], weights=torch.zeros(0))
    assert heads(bare) == []
    assert "heads" not in trace_values(bare)
