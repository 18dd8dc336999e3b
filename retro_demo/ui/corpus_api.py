"""Public HTTP endpoints on built corpora: change one, and say what its documents are worth to a run."""

from __future__ import annotations

from collections.abc import Iterator

import gradio as gr

from retro_demo.change_config import AddConfig
from retro_demo.server import corpus_changes
from retro_demo.server.library import Library
from retro_demo.server.telling import values_to_program
from retro_demo.server.workspace import Workspace
from retro_demo.ui.form import MODEL
from retro_demo.ui.refusals import public
from retro_demo.ui.uploads import followed, uploaded


def add_corpus_endpoints(library: Library) -> None:
    """Publish the endpoints; call inside the Blocks of the page."""
    home = library.home

    def change_corpus(
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
        space = Workspace.open(home, workspace)
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

    def weigh(workspace: str, run: str, documents: list[str], text: str = "", corpus: str = "") -> dict:
        """Which tokens would lose their gain if documents (ids or titles) were forgotten: in the text, or in
        held-out text that finds them. Rows with log p with, without and with retrieval off, the nats lost
        and the document; over all, nats a token; provenance."""
        space = Workspace.open(home, workspace)
        found = corpus_changes.weigh_documents(library, space, run, documents, text=text, corpus=corpus)
        return values_to_program(found)

    publish = gr.api  # pyright: ignore[reportPrivateImportUsage]
    publish(public(change_corpus), api_name="change_corpus", concurrency_limit=None)
    publish(public(weigh), api_name="weigh", **MODEL)
