"""Which embedder a corpus has: the one that was named, or the one that the build takes; and what is fitted.

auto    static, or words where static does not know enough of the text: measured, and said in one sentence
words   fitted on the training documents; its counts lie with the corpus, in words.safetensors

Once a corpus is built, its manifest names what was taken. A change of the corpus, a retokenized one and an
export keep that and its counts: what comes later is embedded with what was fitted.
"""

from __future__ import annotations

from pathlib import Path

from retro_demo.corpus.chunks import Text
from retro_demo.corpus.embedding import BETTER, HIGH, measure_unknown
from retro_demo.corpus.store import Chunks
from retro_demo.devices import choose_device
from retro_demo.retrieval.dense import percent
from retro_demo.retrieval.embedders import Embedder, load_embedder
from retro_demo.retrieval.words import WordsEmbedder, fit_words
from retro_demo.settings import AUTO
from retro_demo.tokenizer import Tokenizer

STATIC = "static"
COUNTS = "words.safetensors"


def open_embedder(folder: Path, name: str) -> Embedder:
    """The embedder of a corpus folder; raises UserError where it, or what was fitted, is not there."""
    if name == WordsEmbedder.name:
        return WordsEmbedder(folder / COUNTS)
    return load_embedder(name, choose_device("auto"))


def check_embedder(name: str) -> None:
    """Raise UserError where a named embedder is missing, before any work is done for it."""
    if name not in (AUTO, WordsEmbedder.name):
        load_embedder(name, choose_device("auto"))


def choose_embedder(name: str, chunks: Chunks, tokenizer: Tokenizer) -> tuple[str, str]:
    """The embedder to take, and a sentence where it is another than usual; what a user named is taken."""
    if name != AUTO:
        return name, ""
    figure = measure_unknown(chunks, tokenizer, load_embedder(STATIC))
    assert figure is not None
    share, characters = figure["share"], figure["character_share"]
    if max(share, characters) < HIGH:
        return STATIC, ""
    shares = f"{percent(share)} of the word pieces of this text"
    if percent(characters) != percent(share):
        shares += f" ({percent(characters)} of its characters)"
    return BETTER, f"The build took the embedder {BETTER}, since {STATIC} does not know {shares}."


def fit_embedder(out: Path, name: str, text: Text) -> None:
    """Fit what is fitted on text, on the training documents alone, where that is not done yet."""
    if name == WordsEmbedder.name and not (out / COUNTS).exists():
        pairs = zip(text.documents, text.held_out, strict=True)
        fit_words((document.text for document, held_out in pairs if not held_out), out / COUNTS)
