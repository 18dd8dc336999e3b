"""What the page and the endpoints say: settings as the asker names them, no folder of the server.

The glossary stands here too: each word of the field, explained in one sentence.

Jobs and verbs write their sentences for the command line of this machine: `--holdout` or `--fields
text=NAME`, with its folders. Here they are changed for the reader: settings become the labels of the forms,
or for programs the arguments of the endpoints. A UserError may list the settings that its sentence names
without dashes. Any other name is the user's (perhaps of a file or folder) and stays.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from retro_demo.errors import UserError
from retro_demo.kinds import setting_types
from retro_demo.paths import without_folders
from retro_demo.runs import commands
from retro_demo.server.limits import HERE
from retro_demo.settings import (
    AddConfig,
    CorpusConfig,
    EvaluateConfig,
    ExplainConfig,
    GenerateConfig,
    WeighConfig,
    settings_of,
)

CONFIGS: tuple[Any, ...] = (
    *setting_types(),
    GenerateConfig,
    ExplainConfig,
    EvaluateConfig,
    WeighConfig,
    AddConfig,
    CorpusConfig,
)
LABELS: Mapping[str, str] = {
    setting.name: setting.metadata["label"] for config in reversed(CONFIGS) for setting in settings_of(config)
} | {
    "base": "Base",
    "baseline": "Matched baseline",
    "control": "Control",
    "corpus": "Corpus",
    "with_corpus": "its corpus (the texts!)",
    "with_state": "what a training goes on from",
}
"""Label on the page of each setting; of those that several forms have, that of the first."""

QUOTED = r"'[^']*'|\"[^\"]*\""
VALUE = rf"{QUOTED}|[a-z]+=(?:{QUOTED}|\S*[^\s.,;:)])|[A-Z][A-Z:_]*\b"
FLAG = re.compile(rf"(?<![\w'\"`/.-])--([a-z][a-z-]*)(?:=(\S*[^\s.,;:)])|[ ]({VALUE}))?")
"""A flag, with its value where that is plain: after "=", in quotes, NAME=VALUE or a word in capitals."""


def for_page(error: str | Exception) -> str:
    """A sentence, or that of an error, with the labels of the forms."""
    text = str(error)
    for name, label in error.labels.items() if isinstance(error, UserError) else ():
        text = re.sub(rf"(?<![\w-]){name}(?!\w)", f"“{label or LABELS[name]}”", text, count=1)
    return FLAG.sub(lambda found: _flag(found, "“{}”: {}", "“{}”", LABELS), text)


def for_programs(text: str) -> str:
    """A sentence with the names of arguments."""
    return FLAG.sub(lambda found: _flag(found, "{}={}", "{}", {name: name for name in LABELS}), text)


def _flag(found: re.Match[str], with_value: str, alone: str, names: Mapping[str, str]) -> str:
    """A flag in other words; one that nobody else knows stays as it is."""
    name, value = found[1].replace("-", "_"), found[2] or found[3]
    if name not in names:
        return found[0]
    if value and value[0] in "'\"" and len(value) > 1:
        value = value[1:-1]
    if value and names[name] == name:
        value = json.dumps(value, ensure_ascii=False) if '"' not in value else repr(value)
    return with_value.format(names[name], value) if value else alone.format(names[name])


SENTENCES = ("error", "warnings", "verdict", "next", "why")
"""Names of values that hold sentences of ours; so does the text of a warning."""


def on_page(error: str | Exception) -> str:
    """A sentence, or that of an error, for the page."""
    return without_folders(for_page(error))


def to_program(error: str | Exception) -> str:
    """The same for whoever calls an endpoint."""
    return without_folders(for_programs(str(error)))


def values_to_program(values: Any) -> Any:
    """Values of JSON for whoever calls an endpoint or takes a file along.

    Sentences of ours speak of settings as programs know them, commands run where the asker sits, and the text
    of others stays as it is, but for folders.
    """
    if isinstance(values, dict):
        warned = values.get("event") == "warned"
        return {name: _inner("warnings" if warned else name, inner) for name, inner in values.items()}
    if isinstance(values, (list, tuple)):
        return [values_to_program(inner) for inner in values]
    return without_folders(values) if isinstance(values, str) else values


def _inner(name: str, value: Any) -> Any:
    """A value by the name that it has in an object."""
    if name == "command" and isinstance(value, str):
        return told(value)
    if name not in SENTENCES:
        return values_to_program(value)
    if isinstance(value, list):
        return [_inner(name, one) for one in value]
    return to_program(value) if isinstance(value, str) else values_to_program(value)


def told(text: str) -> str:
    """A command as it is told to whoever asks now."""
    return commands.for_here(text) if HERE.get() else commands.for_others(text)


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
    "score": "How alike two chunks are: the cosine between their vectors, or BM25 (shared words).",
    "mass": "The share of the cross-attention that fell on this neighbor, averaged over the reading tokens.",
    "cross-attention": "The part of the network through which the text reads its neighbors.",
    "heatmap": "How much each token of the text (row) read from each token of the neighbor (column).",
    "layer": "One of the stacked blocks of the network; only some of them read neighbors.",
    "head": "One of several attention patterns that a layer computes side by side.",
    "index": "The vectors of all chunks, arranged so that the nearest ones are found quickly.",
    "embedder": "What turns the text of a chunk into a vector, so that like texts lie near each other.",
    "retriever": "What finds neighbors: by vectors (dense), by words in common (BM25), or by both (hybrid).",
    "BM25": "A score for words in common: a shared word counts the more, the fewer chunks have it.",
    "hybrid": "The nearest chunks by their vectors, put into the order of BM25.",
    "hot swap": "The same weights reading another corpus than the one they were trained on.",
    "held out": "Documents kept out of training and of the index, to measure the model on unseen text.",
    "near-duplicate": "A document that is almost the same as another; the two never help each other.",
    "run": "One training of one model: its settings, weights and history in a folder.",
    "checkpoint": "The weights of a run as they were saved at a step.",
    "preset": "A named set of sizes and settings: tiny for minutes, larger ones for longer or for a GPU.",
    "step": "One update of the weights from one batch of sequences.",
    "loss": "How surprised the model is by the next token, in nats; lower is better.",
    "nat": "The unit of surprise with the natural logarithm; 0.69 nat is one bit.",
    "bits per byte": "Surprise per byte of text, which can be compared between tokenizers; lower is better.",
    "retrieval on": "Held-out loss while the model reads the neighbors that were found.",
    "retrieval off": "Held-out loss of the same weights without any neighbors.",
    "gap": "Loss with retrieval off minus loss with it on: what the neighbors are worth to these weights.",
    "retro": "A decoder that reads neighbors by chunked cross-attention (Borgeaud et al. 2022).",
    "retrofit": "A finished lm, frozen, that learns to read neighbors: without them it stays what it was.",
    "reader": "A pretrained model, frozen, that learns to read neighbors: without them it stays what it was.",
    "tuned": "A pretrained model trained on the texts, by small updates beside its weights (LoRA).",
    "look-up": "How a reader finds what to read: the text is compared with each token of the neighbors.",
    "copy head": "The weights of a look-up as a prediction: the tokens found, mixed with the model's own.",
    "null key": "What a look-up turns to where no neighbor helps: its share of the attention reads nothing.",
    "other edition": "The same documents with other values, to teach that values are read and not known.",
    "lm": "The matched baseline: the same decoder without retrieval.",
    "prompt": "The beginning that you give; the model writes on from there.",
    "temperature": "How boldly tokens are drawn: 0 always takes the likeliest, 1 draws as the model says.",
    "top p": "Draw only among the likeliest tokens that together hold this share.",
    "seed": "The number that fixes all chance: the same seed writes the same text.",
    "parameters": "The numbers that training adjusts.",
    "gain": "Loss without neighbors minus loss with them, for one token: above 0 retrieval helped it.",
    "surprise": "How unexpected a token was, in nats: minus the logarithm of its probability.",
    "entropy": "How widely attention is spread over the neighbors' tokens, in nats; 0: all on one.",
    "copied": "Tokens in the order in which a neighbor has them that the model could read then.",
    "verbatim span": "Words of a text that stand in the same order, character by character, in the corpus.",
    "citation": "A document whose neighbors made a sentence at least e times as likely as without them.",
    "effect": "The Shapley value of a rank (all first neighbors, all second ones): how much loss it removes.",
    "shuffled control": "The same with neighbors of another chunk: what is left is not due to content.",
    "KL": "How far two predictions are apart, in nats; 0 means that they are the same.",
    "matched baseline": "The same model without neighbors, trained as long on the same text.",
    "baseline before": "What the baseline began from, or its best save: trained too long, it gets worse.",
    "shuffled": "The neighbors of another sequence: what they still help is not due to what they say.",
    "random chunks": "Neighbors drawn by chance from the database, with the same exclusions.",
    "reach": "The share of the looks at neighbors where one of them holds the next 4 tokens of the text in "
    "one piece: what is not there cannot be read.",
    "wrong chunk order": "The right neighbors of a window, each shown to another chunk of it.",
    "oracle": "The best neighbor is the chunk itself with its true continuation: it shows who can read.",
    "prepend": "The neighbors put in front of the text that the baseline reads, in place of earlier text.",
    "in the prompt": "The neighbors put before the text, as RAG does: at each look the base reads all anew.",
    "kNN-LM": "The base's prediction mixed with what followed the tokens whose states are most alike.",
    "control": "A run trained with random neighbors: the same network and work, but nothing to read.",
    "interval": "Where the figure would lie in 95 of 100 draws of other documents of the same kind.",
    "overlap": "The longest run of tokens that a chunk shares word for word with the database.",
    "marge": "It finds its own evidence and writes documents anew from it (Lewis et al. 2020).",
    "evidence": "Passages that MARGE found relevant to a target, from which it writes the target anew.",
    "random evidence": "Held-out loss with passages drawn at random in place of the evidence found.",
    "no evidence": "Held-out loss of the same weights without any evidence.",
    "target": "The passage that MARGE is to write from its evidence.",
    "relevance": "The cosine f between the encoder's embeddings of target and evidence, from -1 to 1.",
    "beta": "How much relevance weighs in the attention over the evidence: trained, one for each layer.",
    "re-index": "All passages embedded anew with the encoder as it is then, and the best pairs kept.",
    "group": "Documents that say the same, such as translations of one another; held out together.",
    "recall@1": "Share of searches in another language whose first hit is of the same group.",
    "MRR": "Mean of one over the place of the first hit of the same group; 1 if it is always first.",
    "churn": "Share of the pairs of target and evidence that were not kept at the re-index before.",
    "resting": "Share of targets that have no evidence until the next re-index, and are not read.",
    "attention": "The share of the attention of the target's tokens that fell on a piece of evidence.",
    "Spearman": "Agreement of two orders: 1 if they are the same, -1 if reversed, 0 if unrelated.",
    "words alone": "Relevance by the words of texts, weighted by rarity: nothing of it is learned.",
    "learned part": "Relevance by the vectors of tokens alone, which training moves, without the words.",
    "passage": "A stretch of a document of fixed length: what a MARGE writes and reads in one piece.",
    "encoder": "The part of a network that turns what is read into vectors; the decoder reads these.",
    "decoder": "The part of a network that writes: it predicts the next token from all before it.",
    "embedding": "The vector of a text: texts that say alike things have vectors of like direction.",
    "rank": "The place in an order by likeness: 1 is the most alike.",
    "learning rate": "How far each step changes the weights.",
    "batch": "The sequences that one step learns from at the same time.",
    "resume": "To go on from the last save with the very weights that an unbroken training would have.",
    "fingerprint": "A short code of a content: where it differs, the content was changed.",
    "overfitting": "Learning the training text by heart: its loss falls while that of held-out text rises.",
    "centered": "Relevance minus what the target and the document have in common with all others.",
    "workspace": "Your own corner of this app; its code is the only key to it.",
}


def explain(term: str) -> str:
    """The sentence for a term; a KeyError names one that is missing here."""
    return GLOSSARY[term]
