"""Each word of the field, explained in one sentence; the page and the docs take it from here."""

from __future__ import annotations

GLOSSARY: dict[str, str] = {
    "retrieval": "Looking up passages that resemble what was just written, for the model to read.",
    "corpus": "Documents, cut into chunks and indexed, that a model learns from and looks things up in.",
    "document": "One text of the corpus: a file, a row of a table, or a section of a long text.",
    "chunk": "A stretch of tokens of fixed length (64 in the paper): the unit that is looked up.",
    "token": "A piece of text, often part of a word, that the model reads and writes one at a time.",
    "neighbor": "A chunk of another document that lies nearest to the chunk just written.",
    "continuation": "The chunk that follows a neighbor in its document: it shows how such a text went on.",
    "N": "The neighbor: the chunk of the corpus that resembles the text.",
    "F": "The continuation: what follows the neighbor in its document.",
    "score": "How alike two chunks are: the cosine between their vectors, 1 for equal direction.",
    "mass": "The share of the cross-attention that fell on this neighbor, averaged over the reading tokens.",
    "cross-attention": "The part of the network through which the text reads its neighbors.",
    "heatmap": "How much each token of the text (row) read from each token of the neighbor (column).",
    "layer": "One of the stacked blocks of the network; only some of them read neighbors.",
    "head": "One of several attention patterns that a layer computes side by side.",
    "index": "The vectors of all chunks, arranged so that the nearest ones are found quickly.",
    "embedder": "What turns the text of a chunk into a vector, so that like texts lie near each other.",
    "held out": "Documents kept out of training and of the index, to measure the model on unseen text.",
    "near-duplicate": "A document that is almost the same as another; the two never help each other.",
    "run": "One training of one model: its settings, weights and history in a folder.",
    "checkpoint": "The weights of a run as they were saved at a step.",
    "preset": "A named set of sizes and settings: tiny for minutes, small for an hour, base for a GPU.",
    "step": "One update of the weights from one batch of sequences.",
    "loss": "How surprised the model is by the next token, in nats; lower is better.",
    "nat": "The unit of surprise with the natural logarithm; 0.69 nat is one bit.",
    "bits per byte": "Surprise per byte of text, which can be compared between tokenizers; lower is better.",
    "retrieval on": "Held-out loss while the model reads the neighbors that were found.",
    "retrieval off": "Held-out loss of the same weights without any neighbors.",
    "gap": "Loss with retrieval off minus loss with it on: what the neighbors are worth to these weights.",
    "retro": "A decoder that reads neighbors by chunked cross-attention (Borgeaud et al. 2022).",
    "lm": "The matched baseline: the same decoder without retrieval.",
    "prompt": "The beginning that you give; the model writes on from there.",
    "temperature": "How boldly tokens are drawn: 0 always takes the likeliest, 1 draws as the model says.",
    "top p": "Draw only among the likeliest tokens that together hold this share.",
    "seed": "The number that fixes all chance: the same seed writes the same text.",
    "parameters": "The numbers that training adjusts.",
    "workspace": "Your own corner of this app; its code is the only key to it.",
}


def explain(term: str) -> str:
    """The sentence for a term; a KeyError names one that is missing here."""
    return GLOSSARY[term]
