"""The public HTTP endpoints: typed methods over the same verbs as the page, for gradio_client.

Each takes the workspace code first, and says what is wrong in the sentence of a UserError.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from typing import Any

import gradio as gr

from retro_demo.corpus.embedding import nothing_found
from retro_demo.corpus.retrievers import search as search_corpus
from retro_demo.corpus.retrievers import search_doubt
from retro_demo.errors import UserError
from retro_demo.explain.edits import edit_by_values, edit_json
from retro_demo.explain.marge_history import reindexes
from retro_demo.explain.text import Writing, explain_text
from retro_demo.explain.tracing import as_json
from retro_demo.generation.marge import grown, ids_of, refuse_retriever
from retro_demo.generation.retro import refuse_evidence
from retro_demo.jobs import lifecycle
from retro_demo.render.wording import to_program, values_to_program
from retro_demo.runs.alarms import Watch, best_of
from retro_demo.runs.checkpoint import BEST, read_any_config, told_by
from retro_demo.runs.loading import LoadedRun, why_none_found
from retro_demo.server import corpus_changes, evaluations, origins, run_actions, service
from retro_demo.server.limits import checked_writing
from retro_demo.server.model_cache import ModelCache
from retro_demo.server.run_actions import weights_kept
from retro_demo.server.workspace import Workspace
from retro_demo.settings import (
    AddConfig,
    CorpusConfig,
    EvaluateConfig,
    ExplainConfig,
    OriginsConfig,
    whole,
)
from retro_demo.ui import zero_gpu
from retro_demo.ui.form import MODEL, SHARE
from retro_demo.ui.gradio_patches import public
from retro_demo.ui.uploads import exported, followed, forget_visitor, uploaded


class Endpoints:
    """What programs build, train, write, measure and explain; an endpoint has the name of its method."""

    def __init__(self, cache: ModelCache) -> None:
        self.cache, self.home = cache, cache.home
        self.watch = zero_gpu.writer(cache)
        self.write_from_evidence = zero_gpu.marge_writer(cache)

    def build_corpus(
        self,
        workspace: str,
        files: list[gr.FileData],
        name: str = "",
        chunk_len: int = 64,
        holdout: float = 0.15,
        embedder: str = "static",  # not auto: pinned before there was one (docs/http.md)
        fields: str = "",
    ) -> Iterator[dict]:
        """Build a corpus of uploaded files and follow it. fields says of files with columns which is which,
        as in text=body,title=name; embedder is static, words, minilm, or auto (static or words, whichever
        knows the text). Yields events (`waiting` with its place while it has to queue); the last is
        `finished`, `stopped` or `failed`, with the corpus id under "corpus"."""
        config = CorpusConfig(
            chunk_len=whole(chunk_len, "chunk_len"), holdout=holdout, embedder=embedder, fields=fields
        )
        space = Workspace.open(self.home, workspace)
        corpus = service.start_build(space, [uploaded(space, file) for file in files or []], name, config)
        yield from followed(space.corpus(corpus), "build", corpus=corpus)

    def search(
        self, workspace: str, corpus: str, text: str, k: int = 4, retriever: str = "dense"
    ) -> list[dict]:
        """The k chunks of a corpus that are nearest to the text: document, title, score, text and
        continuation of each. The retriever is dense, bm25 (over tokens), bm25-words or hybrid. Where dense or
        hybrid do not know the corpus or the text, each chunk has a sentence on that under "warned". Where
        nothing is found the call fails, and says why and what to try."""
        folder = service.built_corpus(Workspace.open(self.home, workspace), corpus)
        database = self.cache.corpus(folder, retriever)
        found = search_corpus(database.corpus, database.retriever, text, whole(k, "k"))
        if not found:  # an empty list has no room for a word
            raise UserError(nothing_found(retriever, database.corpus.manifest["statistics"]))
        doubted = to_program(search_doubt(database.corpus, database.retriever, text))
        return [one | {"warned": doubted} for one in found] if doubted else found

    def train(
        self,
        workspace: str,
        corpus: str,
        model: str = "retro",
        preset: str = "tiny",
        steps: int = 0,
        seed: int = 0,
        base: str = "",
        retriever: str = "",
        keep: str = "last",
        edition: str = "",
    ) -> dict:
        """Start training and return at once: {"run": id}. steps 0 means as many as the preset says;
        base is the run whose weights it begins with (a retrofit needs one), or for a reader or tuned the name
        of a pretrained model of this server, such as smollm2. model is lm, retro, retrofit, reader, tuned
        (that model, fine-tuned) or marge;
        edition is for a reader another corpus, which tells of the same documents with other values.
        retriever is dense, bm25, bm25-words, bm25-titles or hybrid; empty: that of the preset. keep says
        which of its saves it will be used with, the last or the best."""
        settings: dict[str, Any] = {"seed": whole(seed, "seed"), "keep": keep}
        settings |= {"steps": whole(steps, "steps")} if steps else {}
        settings |= {"retriever": retriever} if retriever else {}
        settings |= {"edition": edition} if edition else {}
        run = service.start_run(
            Workspace.open(self.home, workspace), corpus, model, preset, settings, base=base
        )
        return {"run": run}

    def run_status(self, workspace: str, run: str) -> dict:
        """How a run stands: state, its place in the queue while that is waiting, step, steps, losses of all
        steps, why one stopped that nobody stopped, the last held-out measurement (arms), the error of a
        failed one, or why one was interrupted; the step and loss of the best held-out measurement, passes
        over the training text so far, which saves it keeps and uses (weights), and warnings, as of rising
        held-out loss; of a marge also its re-indexes with their figures, and beta."""
        folder = Workspace.open(self.home, workspace).run(run)
        status, config = lifecycle.status(folder), read_any_config(folder)
        kept = weights_kept(folder)
        watch = Watch(config.training, status.events, curriculum_steps=config.lesson_steps)
        watch.keeps(*told_by(folder / BEST))
        best = best_of(watch.points)
        steps, measured, failed = (status.of_kind(k) for k in ("step", "evaluated", "failed"))
        stopped = status.of_kind("stopped") if status.state == "stopped" else []
        return {
            "run": run,
            "state": status.state,
            "place": status.queue_position,
            "why": stopped[-1].get("why", "") if stopped else "",
            "step": steps[-1]["step"] if steps else 0,
            "steps": config.training.steps,
            "losses": [step["loss"] for step in steps],
            "arms": measured[-1]["arms"] if measured else {},
            "sample": measured[-1].get("sample", "") if measured else "",
            "best_step": best.step if best else None,
            "best_held_out": best.nats if best else None,
            "passes": round(watch.passes(steps[-1]["step"]), 3) if steps else 0.0,
            "weights": {"keep": config.training.keep} | kept,
            "warnings": [to_program(words) for words in watch.warnings(ended=status.state == "finished")],
            "reindexes": reindexes(status),
            "beta": measured[-1].get("about", {}).get("beta", []) if measured else [],
            "error": to_program(failed[-1]["error"] if failed else status.why),
        }

    def stop_run(self, workspace: str, run: str) -> dict:
        """Ask a run to save and leave, or to leave the queue; {"asked": false} where it does neither."""
        return {"run": run, "asked": service.stop_run(Workspace.open(self.home, workspace), run)}

    def keep_weights(self, workspace: str, run: str, keep: str) -> dict:
        """Use a run with its last save or its best one from now on: keep is last or best. Both stay;
        training goes on from the last. Gives {"run": id, "keep": keep}."""
        service.keep_weights(Workspace.open(self.home, workspace), run, keep)
        return {"run": run, "keep": keep}

    def delete_my_data(self, workspace: str, confirm: bool = False) -> dict:
        """Stop all jobs of a workspace and delete it with all its corpora, runs and texts; confirm must be
        true. Gives {"deleted_bytes": n}."""
        if confirm is not True:
            raise UserError(
                "This deletes everything under the code. Call it with confirm=true if you mean it."
            )
        return {"deleted_bytes": forget_visitor(self.cache, workspace)}

    def resume_run(self, workspace: str, run: str) -> dict:
        """Go on from its last save with a run that was stopped, interrupted or failed: {"run": id}."""
        service.resume_run(Workspace.open(self.home, workspace), run)
        return {"run": run}

    def resume_build(self, workspace: str, corpus: str) -> Iterator[dict]:
        """Go on with the build or the change of a corpus, and follow it as build_corpus does."""
        space = Workspace.open(self.home, workspace)
        service.resume_build(space, corpus)
        yield from followed(space.corpus(corpus), "build", corpus=corpus)

    def generate(
        self,
        workspace: str,
        run: str,
        prompt: str,
        max_new_tokens: int = 128,
        temperature: float = 0.6,
        top_k: int = 0,
        top_p: float = 0.95,
        seed: int = 7,
        retrieval: str = "on",
        retriever: str = "",
        corpus: str = "",
        language: str = "",
        evidence: str = "",
        title: str = "",
        query_tokens: int = 0,
    ) -> Iterator[dict]:
        """Write text with a run. Yields {"text", "new_tokens", "done": false} as it grows; the last has
        "done": true, the full text and the neighbors of each chunk. retrieval is on, off or shuffled;
        retriever and corpus name others than those of the training, and "swapped" then says so; "warned"
        says why no chunk found a neighbor. A reader looks up by the title (empty: the prompt's first line)
        and so many tokens at the end of what is written (query_tokens; 0: as in training). A MARGE writes in
        a language, from evidence: ids of documents with commas between, none: its own choice."""
        space = Workspace.open(self.home, workspace)
        config = checked_writing(
            self.home,
            max_new_tokens=whole(max_new_tokens, "max_new_tokens"),
            temperature=temperature,
            top_k=whole(top_k, "top_k"),
            top_p=top_p,
            seed=whole(seed, "seed"),
            retrieval=retrieval,
            retriever=retriever,
            title=title,
            query_tokens=whole(query_tokens, "query_tokens"),
        )
        folder = space.run(run)
        service.check_ready(space, run, corpus)
        if read_any_config(folder).kind.chosen_evidence:
            marge = self.cache.marge(folder)
            refuse_retriever(corpus, config)
            chosen = {"language": language, "documents": ids_of(marge, evidence)}
            events = self.write_from_evidence(marge, prompt, config, **chosen)
            yield from grown(marge, prompt, events, run)
            return
        refuse_evidence(language, evidence)
        other = service.built_corpus(space, corpus) if corpus else None
        loaded = self.cache.run(folder, other, retriever)
        yield from _written(loaded, run, self.watch(loaded, run, prompt, config, lambda: False))

    def evaluate(
        self,
        workspace: str,
        run: str,
        baseline: str = "",
        control: str = "",
        corpus: str = "",
        max_tokens: int = 60_000,
        seed: int = 0,
    ) -> Iterator[dict]:
        """Measure whether retrieval helps a run, against a matched baseline (the id of an lm) and a
        control (a run trained with random neighbors). Yields events: `refined` after each round, and
        `finished` with arms, verdict, counts, leakage and provenance. A MARGE needs neither: its arms are
        other evidence and relevance. It goes on if you leave."""
        space = Workspace.open(self.home, workspace)
        config = EvaluateConfig(max_tokens=whole(max_tokens, "max_tokens"), seed=whole(seed, "seed"))
        folder = evaluations.start_evaluation(
            space, run, config, baseline=baseline, control=control, corpus=corpus
        )
        yield from followed(folder, "evaluation")

    def explain(
        self,
        workspace: str,
        run: str,
        text: str,
        edit: dict | None = None,
        num_neighbors: int = 0,
        retrieval: str = "on",
        retriever: str = "",
        corpus: str = "",
        page: int = 1,
    ) -> dict:
        """What retrieval does to each token of a text: losses on and off, gain, copied spans, attention
        mass and Shapley values of the neighbors with their rank correlation, top-10s, provenance. edit
        puts another text in place of a neighbor, {"chunk": 0, "neighbor": 0, "text": "...",
        "continuation": "..."} (both empty: deleted); what follows stands under "edit". A long text is
        read page by page."""
        space = Workspace.open(self.home, workspace)
        config = ExplainConfig(
            retrieval=retrieval,
            retriever=retriever,
            num_neighbors=whole(num_neighbors, "num_neighbors"),
            page=whole(page, "page"),
        )
        folder = space.run(run)
        service.check_ready(space, run, corpus)
        other = service.built_corpus(space, corpus) if corpus else None
        loaded = self.cache.run(folder, other, retriever)
        trace = explain_text(loaded, run, text, config)
        changed = {"edit": edit_json(edit_by_values(loaded, trace, edit))} if edit else {}
        return values_to_program(as_json(trace) | changed)


class CorpusEndpoints:
    """What programs change in a built corpus, and what its documents are worth to a run."""

    def __init__(self, cache: ModelCache) -> None:
        self.cache, self.home = cache, cache.home

    def change_corpus(
        self,
        workspace: str,
        corpus: str,
        files: list[gr.FileData] | None = None,
        forget: list[str] | None = None,
        use: str = "",
        name: str = "",
        fields: str = "",
    ) -> Iterator[dict]:
        """Add uploaded files to a built corpus, or forget documents (ids or titles), and follow it. Nothing
        that is there is embedded anew. use is what the new documents are for (training, database, held-out);
        name makes the changed corpus under another name; fields says which column of the new files is which,
        as in text=body, and empty that they are those of the build. Yields events; the last is `finished`,
        `stopped` or `failed`, with the corpus id under "corpus"."""
        space = Workspace.open(self.home, workspace)
        given = [uploaded(space, file) for file in files or []]
        changed = corpus_changes.start_change(
            space,
            corpus,
            files=given,
            forget=forget or [],
            config=AddConfig(use=use, fields=fields),
            name=name,
        )
        yield from followed(space.corpus(changed), "change", corpus=changed)

    def weigh(self, workspace: str, run: str, documents: list[str], text: str = "", corpus: str = "") -> dict:
        """Which tokens would lose their gain if documents (ids or titles) were forgotten: in the text, or in
        held-out text that finds them. Rows with log p with, without and with retrieval off, the nats lost
        and the document; over all, nats a token; provenance."""
        space = Workspace.open(self.home, workspace)
        found = corpus_changes.weigh_documents(self.cache, space, run, documents, text=text, corpus=corpus)
        return values_to_program(found)


class OriginEndpoints:
    """How programs ask where a text came from, and read a document at a place."""

    def __init__(self, cache: ModelCache) -> None:
        self.cache, self.home = cache, cache.home

    def trace(
        self,
        workspace: str,
        text: str,
        run: str = "",
        corpus: str = "",
        phrase: str = "",
        occurrence: int = 1,
        page: int = 1,
        retriever: str = "",
        num_neighbors: int = 0,
        least_words: int = 5,
        max_frequency: int = 10,
        max_documents: int = 10,
    ) -> Iterator[dict]:
        """Where a text came from: spans that stand word for word anywhere in the corpus of a run, or in
        `corpus`, longest first; with a run that reads neighbors also which documents each sentence of a page
        owes itself to (citations), and the sentences of the neighbors that a phrase of the text owes itself
        to. Yields {"done": false, "read", "readings"} before and while a phrase is attributed; the last has
        "done": true. Offsets count characters (code points); those of citations and phrase are of
        "read_text", the page that the run read."""
        config = OriginsConfig(
            least_words=whole(least_words, "least_words"),
            max_frequency=whole(max_frequency, "max_frequency"),
            max_documents=whole(max_documents, "max_documents"),
        )
        reading = ExplainConfig(
            page=whole(page, "page"), retriever=retriever, num_neighbors=whole(num_neighbors, "num_neighbors")
        )
        space, asked = Workspace.open(self.home, workspace), origins.TraceTarget(run, corpus)
        steps = origins.trace(
            self.cache,
            space,
            asked,
            text,
            phrase=phrase,
            occurrence=whole(occurrence, "occurrence"),
            explain=reading,
            config=config,
        )
        for step in steps:
            if isinstance(step, dict):
                yield values_to_program(step) | {"done": True}
            else:
                yield {"done": False, "read": step.done, "readings": step.total}

    def open_document(
        self,
        workspace: str,
        run: str = "",
        corpus: str = "",
        document: str = "",
        start: int = 0,
        end: int = 0,
        chunk: int = -1,
    ) -> dict:
        """A document of a corpus, or of that of a run, opened at a place: at characters start to end - 1 of
        `document` (id or title), or at a neighbor and its continuation by the number of its chunk. Gives
        document, title, held_out, text, and where the place stands in that text (start, end); of a very long
        document the text is what lies around it, and before and after say how much is left out."""
        space, asked = Workspace.open(self.home, workspace), origins.TraceTarget(run, corpus)
        if bool(document) == (chunk >= 0):
            raise UserError("Name either a document (id or title) or a chunk (its number, from 0).")
        if document:
            shown = origins.open_at(
                self.cache, space, asked, document, whole(start, "start"), whole(end, "end")
            )
        else:
            shown = origins.open_chunk(self.cache, space, asked, whole(chunk, "chunk"))
        return asdict(shown)


class ShareEndpoints:
    """How programs take a run out as a .zip, and a .zip in as a run or corpus."""

    def __init__(self, cache: ModelCache) -> None:
        self.home = cache.home

    def export_run(
        self, workspace: str, run: str, with_corpus: bool = False, with_state: bool = False, license: str = ""
    ) -> gr.FileData:
        """A run as a .zip to download: weights, tokenizer, config and a card with its figures; where asked
        its corpus (the texts) and the optimizer state from which a training goes on."""
        space = Workspace.open(self.home, workspace)
        path = exported(
            space, run, with_corpus=bool(with_corpus), with_state=bool(with_state), license=license
        )
        return gr.FileData(path=str(path), orig_name=path.name)

    def import_run(self, workspace: str, file: gr.FileData, name: str = "") -> dict:
        """Check the .zip of an export and make it a run or corpus of the workspace. Returns kind, run and
        corpus (ids) and notes: what is missing, or is being indexed."""
        space = Workspace.open(self.home, workspace)
        return run_actions.import_zip(space, uploaded(space, file), name)


def add_endpoints(cache: ModelCache) -> None:
    """Publish the endpoints; call inside the Blocks of the page."""
    ends = Endpoints(cache)
    for endpoint in (
        ends.build_corpus,
        ends.resume_build,
        ends.train,
        ends.run_status,
        ends.stop_run,
        ends.resume_run,
        ends.keep_weights,
        ends.evaluate,
        ends.delete_my_data,
    ):
        _publish(endpoint, concurrency_limit=None)
    _publish(ends.search, concurrency_limit=2)
    _publish(ends.generate, **MODEL)
    _publish(ends.explain, **MODEL)


def add_corpus_endpoints(cache: ModelCache) -> None:
    """As `add_endpoints`, for those of `CorpusEndpoints`."""
    ends = CorpusEndpoints(cache)
    _publish(ends.change_corpus, concurrency_limit=None)
    _publish(ends.weigh, **MODEL)


def add_origin_endpoints(cache: ModelCache) -> None:
    """As `add_endpoints`, for those of `OriginEndpoints`."""
    ends = OriginEndpoints(cache)
    _publish(ends.trace, **MODEL)
    _publish(ends.open_document, concurrency_limit=2)


def add_share_endpoints(cache: ModelCache) -> None:
    """As `add_endpoints`, for those of `ShareEndpoints`."""
    ends = ShareEndpoints(cache)
    _publish(ends.export_run, **SHARE)
    _publish(ends.import_run, **SHARE)


def _publish(endpoint: Callable[..., Any], **lane: Any) -> None:
    gr.api(public(endpoint), api_name=endpoint.__name__, **lane)  # pyright: ignore[reportPrivateImportUsage]


def _written(loaded: LoadedRun, name: str, writings: Iterable[Writing]) -> Iterator[dict[str, Any]]:
    """What `generate` yields of a text that reads neighbors; those come with the end."""
    for writing in writings:
        base = {"text": "".join(writing.pieces), "new_tokens": writing.new_tokens}
        if writing.trace is None:
            yield base | {"done": False}
            continue
        chunks = [{"chunk": e.chunk, "ms": e.ms, "neighbors": e.neighbors} for e in writing.retrieved]
        kept = {"run": name, "seconds": round(writing.seconds, 3), "chunks": chunks}
        kept |= {"retriever": loaded.retriever, "swapped": loaded.swapped}
        if nothing := why_none_found(loaded, writing.retrieved):
            kept |= {"warned": nothing}
        yield base | kept | {"done": True}
