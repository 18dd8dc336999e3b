"""The overview of heads as HTML: a button for each head and each mean, with its figures in words."""

from __future__ import annotations

import re
from dataclasses import replace

import torch
from views_helpers import HEADS, TRACE

from retro_demo.explain.heads import heads
from retro_demo.render.heads_view import heads_html
from retro_demo.render.trace_views import heatmap


def test_each_head_and_each_mean_is_a_button_and_the_mean_of_all_is_chosen():
    page = heads_html(TRACE)

    places = re.findall(r'data-layer="(\d+)" data-head="(\d+)" aria-pressed="(\w+)" tabindex="(-?\d)"', page)
    assert sorted((int(layer), int(head)) for layer, head, *_ in places) == sorted(
        (layer, head) for layer in (0, *TRACE.layers) for head in range(HEADS + 1)
    )
    assert [place for place in places if place[2] == "true"] == [("0", "0", "true", "0")]
    assert {stop for *_, pressed, stop in places if pressed == "false"} == {"-1"}


def test_a_head_says_its_shares_in_words_and_what_it_left_to_nothing():
    one = heads(TRACE)[0][0]
    said = f"Layer 2, head 1: {one.shares[0]:.0%} on neighbor 1, {one.shares[1]:.0%} on neighbor 2"
    assert f'aria-label="{said}"' in heads_html(TRACE)

    turned = replace(TRACE, weights=0.25 * TRACE.weights, about=TRACE.about | {"null_slot": True})
    assert "75% on nothing" in heads_html(turned)
    assert "<b>25%</b>" in heads_html(turned)


def test_of_a_reader_it_is_said_what_its_one_look_up_serves():
    use = {"gates": {"18": 0.31, "22": 0.4}, "copy_head": True}
    reader = replace(TRACE, about=TRACE.about | {"look_up": use})

    assert (
        "A reader looks up once, for cross-attention after layers 18 (gate 0.31), 22 (gate 0.40) of the "
        in (heads_html(reader))
    )
    copies = replace(TRACE, about=TRACE.about | {"look_up": {"gates": {}, "copy_head": True}})
    assert "A reader looks up once, for the copy head." in heads_html(copies)


def test_where_nothing_was_read_there_is_no_overview():
    assert heads_html(None) == ""
    assert heads_html(replace(TRACE, neighbors=[], layers=[], weights=torch.zeros(0))) == ""


def test_a_heatmap_says_of_which_layer_and_head_it_is():
    for which, said in (
        ((None, None), "Mean over the 3 heads of 2 layers"),
        ((4, None), "Mean over the 3 heads of layer 4"),
        ((None, 1), "Head 2, mean over 2 layers"),
        ((4, 1), "Head 2 of layer 4"),
    ):
        assert said in heatmap(TRACE, *which)
    one = replace(TRACE, weights=TRACE.weights[:1, :, :1], layers=[18])
    assert "The look-up, one for all layers" in heatmap(one)
