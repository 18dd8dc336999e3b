"""Plain language: each word of the field has its sentence, each widget its own, each picture its figures."""

from __future__ import annotations

import numpy as np

from retro_demo.render import html_parts, plots
from retro_demo.render.wording import GLOSSARY
from retro_demo.ui.page import build_app

FIELD = """
attention, batch, beta, bits per byte, BM25, centered, checkpoint, chunk, churn, continuation, control,
copied, corpus, cross-attention, decoder, document, effect, embedder, embedding, encoder, entropy,
evidence, F, fingerprint, gain, gap, group, head, heatmap, held out, hot swap, hybrid, index, interval,
KL, layer, learned part, learning rate, lm, loss, marge, mass, matched baseline, MRR, N, nat,
near-duplicate, neighbor, no evidence, oracle, overfitting, overlap, parameters, passage, prepend,
preset, prompt, random chunks, random evidence, rank, reader, re-index, recall@1, relevance, resting,
resume, retrieval, retrieval off, retrieval on, retriever, retro, retrofit, run, score, seed, shuffled,
shuffled control, Spearman, step, surprise, target, temperature, token, top p, words alone, workspace,
wrong chunk order
"""
"""Every word of the field that the page shows."""
SAYS_ALL = {
    "Prompt",
    "Run",
    "Name",
    "Reads from",
    "Search the settings",
    "The command that does this",
    "Text",
    "Workspace code",
    "New name of the chosen corpus",
    "New name of the chosen run",
    "The command that does the same",
    "The command that measures the same",
}
"""Labels that need no sentence."""
ASKED = ("textbox", "number", "slider", "radio", "dropdown", "checkbox")


def test_every_word_of_the_field_on_the_page_has_its_sentence():
    words = {word.strip() for word in FIELD.replace("\n", " ").split(",")}

    assert words <= set(GLOSSARY)
    shown = html_parts.glossary()
    for word, sentence in GLOSSARY.items():
        assert f"<dt>{html_parts.esc(word)}</dt><dd>{html_parts.esc(sentence)}</dd>" in shown


def test_every_field_to_fill_in_says_in_a_sentence_what_it_is(tmp_path):
    demo, _ = build_app(tmp_path)
    silent = {
        block["props"]["label"]
        for block in demo.get_config_file()["components"]
        if block["type"] in ASKED and block["props"].get("label") and not block["props"].get("info")
        if block["props"].get("visible", True)
    }

    assert silent <= SAYS_ALL


def test_a_picture_of_lines_says_where_each_begins_and_ends():
    words = plots.lines_words("loss", "step", {"on": [(0, 2.0), (5, 3.0), (10, 1.25)], "none": []})

    assert "on from 2.000 at step 0 to 1.250 at step 10" in words
    assert "none" not in words


def test_a_matrix_names_its_most_relevant_pair_and_leaves_out_what_is_no_evidence():
    relevance = np.array([[np.nan, 0.25], [0.75, np.nan]])

    words = plots.matrix_words(relevance, ["a", "b"])
    assert "highest for target b and evidence a" in words
    assert "from 0.2500 to 0.7500" in words
    assert "none of them" in plots.matrix_words(np.full((2, 2), np.nan), ["a", "b"])


def test_the_arms_are_told_with_their_bits_per_byte():
    words = plots.arms_words({"on": 0.5, "matched baseline": 0.75}, "matched baseline")

    assert "on 0.5000" in words
    assert "dashed line is matched baseline" in words


def test_overlap_is_told_from_the_first_measured_step_on():
    words = plots.overlap_words(["0", "1/8", "1"], {"on": [None, 2.0, 1.0]}, 7)

    assert "on 2.0000 where at most 1/8 overlaps and 1.0000 at most 1" in words


def test_a_heatmap_says_which_token_reads_most_and_of_what():
    weights = np.array([[0.1, 0.2], [0.7, 0.0]])

    assert "0.7000, of “two” on “x”" in plots.heatmap_words(weights, ["one", "two"], ["x", "y"])
