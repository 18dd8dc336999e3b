"""The page over HTTP: the public endpoints as a stranger's program uses them, and what is refused."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from held_back import PATIENCE
from page_helpers import client_of, page_home
from page_shared import ENDPOINTS  # noqa: F401
from places import TESTS

from benchmarks.serving import served_page
from retro_demo.corpus.building import build_corpus, prepare_corpus
from retro_demo.server import corpus_changes, service
from retro_demo.server.service import safe_name
from retro_demo.server.workspace import Workspace, new_code
from retro_demo.settings import CorpusConfig, EvaluateConfig, ExplainConfig, GenerateConfig

SMALL = {"dim": 16, "depth": 2, "num_heads": 2, "cca_layers": (2,), "enc_dim": 16}
BRIEF = {"seq_len": 32, "batch_size": 2, "eval_tokens": 200, "save_every": 5, "eval_every": 10}


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Iterator[Path]:
    with page_home(tmp_path_factory.mktemp("page")) as folder:
        yield folder


@pytest.fixture(scope="module")
def url(home) -> Iterator[str]:
    with served_page(home) as address:
        yield address


@pytest.fixture(scope="module")
def client(url) -> Iterator[Client]:
    with client_of(url) as opened:
        yield opened


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("files")
    paths = []
    for number in range(8):
        path = folder / f"island {number}.txt"
        lines = (f"Island {number} exports fish, salt and {i} boats of timber." for i in range(60))
        path.write_text("\n".join(lines), encoding="utf-8")
        paths.append(path)
    return paths


@pytest.fixture(scope="module")
def code() -> str:
    return new_code()


@pytest.fixture(scope="module")
def built(client, code, files) -> dict:
    """The finished event of a corpus that was built over HTTP."""
    sent = [handle_file(path) for path in files]
    job = client.submit(code, sent, "Islands", 8, 0.2, "static", api_name="/build_corpus")
    job.result(timeout=PATIENCE)
    return job.outputs()[-1]


@pytest.fixture(scope="module")
def trained(home, built, code) -> str:
    """A run of a few steps on that corpus, at its end."""
    workspace = Workspace.open(home, code)
    settings = SMALL | BRIEF | {"steps": 10}
    run = service.start_run(workspace, built["corpus"], "retro", "tiny", settings, "little")
    for status in service.follow(workspace.run(run)):
        last = status
    assert last.state == "finished", last
    return run


def refusal(client: Client, *values: object, endpoint: str) -> str:
    with pytest.raises(AppError) as error:
        client.submit(*values, api_name=endpoint).result(timeout=PATIENCE)
    return str(error.value)


def test_the_named_endpoints_and_no_others_are_public(client):
    assert set(client.view_api(return_format="dict")["named_endpoints"]) == ENDPOINTS  # pyright: ignore


def test_every_endpoint_takes_the_workspace_code_first(client):
    named = client.view_api(return_format="dict")["named_endpoints"]  # pyright: ignore
    for endpoint in ENDPOINTS:
        assert named[endpoint]["parameters"][0]["parameter_name"] == "workspace"


@pytest.mark.parametrize(
    ("endpoint", "config"),
    [
        ("/build_corpus", CorpusConfig(embedder="static")),  # pinned before there was auto
        ("/generate", GenerateConfig()),
        ("/evaluate", EvaluateConfig()),
        ("/explain", ExplainConfig()),
    ],
)
def test_what_a_program_leaves_out_is_what_the_settings_say(client, endpoint, config):
    named = client.view_api(return_format="dict")["named_endpoints"]  # pyright: ignore
    left_out = {
        parameter["parameter_name"]: parameter["parameter_default"]
        for parameter in named[endpoint]["parameters"]
        if hasattr(config, parameter["parameter_name"])
    }

    assert left_out
    assert left_out == {name: getattr(config, name) for name in left_out}


def test_a_corpus_is_built_of_uploaded_files(built):
    assert built["event"] == "finished"
    assert built["documents"] == 8
    assert built["corpus"] == "islands"


def test_uploaded_files_are_copied_into_the_workspace(home, built, code):
    sources = Workspace.open(home, code).corpus(built["corpus"]) / "sources"

    assert len(list(sources.iterdir())) == 8


def test_a_search_gives_chunks_with_their_continuations(client, built, code):
    found = client.predict(code, built["corpus"], "boats of timber", 3, api_name="/search")

    assert len(found) == 3
    assert {"title", "score", "text", "continuation"} <= set(found[0])


def test_a_raw_call_may_leave_out_the_last_arguments_as_programs_of_before_do(url, built, code):
    body = json.dumps({"data": [code, built["corpus"], "boats of timber"]}).encode()
    asked = Request(f"{url}gradio_api/call/search", body, {"Content-Type": "application/json"})
    event = json.loads(urlopen(asked, timeout=30).read())["event_id"]
    said = urlopen(f"{url}gradio_api/call/search/{event}", timeout=60).read().decode()

    assert len(json.loads(said.partition("data: ")[2])[0]) == 4  # k as it is where nobody says


@pytest.mark.parametrize("retriever", ["bm25", "bm25-words", "hybrid"])
def test_a_search_takes_a_retriever(client, built, code, retriever):
    found = client.predict(code, built["corpus"], "boats of timber", 3, retriever, api_name="/search")

    assert len(found) == 3


@pytest.fixture(scope="module")
def unknown(home, code) -> list[str]:
    """Two corpora of the visitor: the embedder knows a part of the first, and nothing in the second."""
    for name in ("zh", "amharic"):
        folder = Workspace.open(home, code).make().folder / "corpora" / name
        sources = sorted((TESTS / "data" / "languages").glob(f"{name}_*.txt"))
        prepare_corpus(
            folder, sources, CorpusConfig(chunk_len=16, vocab_size=400, holdout=0.0, embedder="static")
        )
        list(build_corpus(folder))
    return ["zh", "amharic"]


def test_a_search_says_where_the_embedder_does_not_know_the_text_and_why_nothing_is_found(
    client, unknown, code
):
    part, nothing = unknown
    passage = "灯塔的看守每年冬天写一封信，讲述风暴与潮汐。"

    found = client.predict(code, part, passage, 2, api_name="/search")
    words = client.predict(code, part, passage, 2, "bm25-words", api_name="/search")

    assert len(found) == len(words) == 2
    assert all("does not know" in one["warned"] and "bm25-words" in one["warned"] for one in found)
    assert not any("warned" in one for one in words)
    for corpus, by in ((nothing, "dense"), (nothing, "hybrid"), (part, "bm25-words")):
        said = refusal(client, code, corpus, "በጸደይ", 2, by, endpoint="/search")
        assert f"Nothing was found by {by}" in said


def test_a_training_can_be_given_the_retriever_that_its_refusal_names(client, unknown, code):
    asked = code, unknown[1], "retro", "tiny", 5, 0, ""

    assert "with the retriever bm25-words or bm25" in refusal(client, *asked, endpoint="/train")
    assert "choose one of dense, bm25, bm25-words" in refusal(client, *asked, "x", endpoint="/train")


def test_training_returns_at_once_and_can_be_watched_and_stopped(client, built, code):
    begun = client.predict(code, built["corpus"], "lm", "tiny", 100_000, 1, api_name="/train")
    run = begun["run"]
    deadline = time.monotonic() + PATIENCE
    status = {}
    while not status.get("losses") and time.monotonic() < deadline:
        status = client.predict(code, run, api_name="/run_status")

    assert client.predict(code, run, api_name="/stop_run") == {"run": run, "asked": True}
    while status["state"] == "running" and time.monotonic() < deadline:
        status = client.predict(code, run, api_name="/run_status")
    assert status["state"] == "stopped"
    assert status["steps"] == 100_000
    assert status["step"] == len(status["losses"])
    assert "nats" in next(iter(status["arms"].values()))


def test_a_run_tells_its_best_measurement_and_is_used_with_the_save_that_is_asked_for(client, code, trained):
    status = client.predict(code, trained, api_name="/run_status")

    assert status["best_step"] == 10
    assert status["best_held_out"] == status["arms"]["on"]["nats"]
    assert status["weights"] == {"keep": "last", "last": 10, "best": 10}
    assert status["passes"] > 0
    assert status["warnings"] == []
    asked = client.predict(code, trained, "best", api_name="/keep_weights")
    assert asked == {"run": trained, "keep": "best"}
    assert client.predict(code, trained, api_name="/run_status")["weights"]["keep"] == "best"
    assert "first" in refusal(client, code, trained, "first", endpoint="/keep_weights")
    assert "ships with the app" in refusal(
        client, code, "sample:factbook-retrofit", "best", endpoint="/keep_weights"
    )


def test_text_streams_and_ends_with_the_neighbors_of_each_chunk(client, code, trained):
    job = client.submit(
        code, trained, "Island 3 exports fish", 20, 0.8, 0, 0.95, 7, "on", api_name="/generate"
    )
    last = job.result(timeout=PATIENCE)

    assert last["done"] is True
    assert last["text"].startswith("Island 3 exports fish")
    assert last["chunks"]
    assert last["chunks"][0]["neighbors"][0]["continuation"]
    assert not any(look["done"] for look in job.outputs()[:-1])


def test_the_same_seed_writes_the_same_text_and_off_has_no_neighbors(client, code, trained):
    def text(retrieval: str) -> dict:
        values = (code, trained, "Island 3", 16, 0.8, 0, 0.95, 3, retrieval)
        return client.predict(*values, api_name="/generate")

    assert text("on")["text"] == text("on")["text"]
    assert text("off")["chunks"] == []


def test_a_text_can_read_another_corpus_by_another_retriever_and_says_so(client, code, trained):
    asked = ("Island 3 exports fish", 20, 0.8, 0, 0.95, 7, "shuffled", "bm25")
    plain = client.predict(code, trained, *asked, api_name="/generate")

    assert (plain["retriever"], plain["swapped"]) == ("bm25", "")
    assert plain["chunks"]
    said = refusal(client, code, trained, *asked, "nowhere", endpoint="/generate")
    assert "There is no corpus 'nowhere'" in said


def test_a_text_is_explained_with_an_edit_and_its_proof(client, code, trained):
    text = "Island 3 exports fish, salt and 4 boats of timber. Island 5 exports fish, salt and tin."
    edit = {"chunk": 0, "neighbor": 0, "text": "Island 9 exports gold", "continuation": ""}

    found = client.predict(code, trained, text, edit, api_name="/explain")

    assert "".join(row["text"] for row in found["tokens"]) == text
    read = [row for row in found["tokens"] if row["shapley"]]
    assert read
    for row in read:
        assert sum(row["shapley"]) == pytest.approx(row["gain"], abs=1e-3)
    assert found["edit"]["earlier_positions_changed"] == 0
    assert found["about"]["provenance"]["run"] == trained


@pytest.mark.parametrize(
    ("endpoint", "values", "said"),
    [
        ("/explain", ("nothing", "fish"), "There is no run 'nothing'"),
        ("/search", ("nowhere", "fish", 3), "There is no corpus 'nowhere'"),
        ("/search", ("../../x", "fish", 3), "There is no corpus"),
        ("/run_status", ("nothing",), "There is no run 'nothing'"),
        ("/train", ("nowhere", "retro", "tiny", 5, 0), "There is no corpus"),
        ("/build_corpus", ([], "empty", 64, 0.15, "static"), "nothing to build from"),
        ("/stop_run", ("sample:factbook-retrofit",), "ships with the app"),
    ],
)
def test_bad_input_is_answered_with_one_sentence(client, code, endpoint, values, said):
    assert said in refusal(client, code, *values, endpoint=endpoint)


@pytest.mark.parametrize("bad", ["", "short", "../../../../etc/passwd", "a" * 65])
def test_what_is_no_workspace_code_is_refused(client, bad):
    assert "workspace code" in refusal(client, bad, "anything", endpoint="/run_status")


def test_a_prompt_longer_than_the_context_is_refused(client, code, trained):
    said = refusal(client, code, trained, "fish " * 300, 4, 0.8, 0, 0.95, 7, "on", endpoint="/generate")
    assert "reads at most 32" in said


def test_a_model_that_does_not_exist_is_refused(client, built, code):
    said = refusal(client, code, built["corpus"], "oracle", "tiny", 5, 0, endpoint="/train")
    assert "oracle" in said


def test_an_empty_file_fails_the_build_with_a_sentence(client, code, tmp_path):
    (tmp_path / "void.txt").write_text("")
    sent = [handle_file(tmp_path / "void.txt")]

    said = refusal(client, code, sent, "void", 64, 0.15, "static", endpoint="/build_corpus")

    assert "void.txt" in said
    assert str(tmp_path) not in said


def test_a_table_is_built_by_its_columns_which_the_refusal_says_how_to_name(client, code, tmp_path):
    lines = [f"Island {i} exports fish and salt. " * 9 for i in range(8)]
    (tmp_path / "islands.csv").write_text(
        "Name,Body\n" + "".join(f"{i},{line}\n" for i, line in enumerate(lines))
    )
    values = (code, [handle_file(tmp_path / "islands.csv")], "tables", 8, 0.2, "static")

    assert 'with fields="text=NAME"' in refusal(client, *values, endpoint="/build_corpus")
    job = client.submit(*values, fields="text=Body,title=Name", api_name="/build_corpus")
    job.result(timeout=240)

    assert job.outputs()[-1]["documents"] == 8


@pytest.mark.parametrize("path", ["/etc/passwd", "../../../etc/passwd", "http://127.0.0.1:1/x.txt"])
def test_a_path_on_the_server_is_no_upload(url, code, path):
    forged = [{"path": path, "meta": {"_type": "gradio.FileData"}}]
    body = json.dumps({"data": [code, forged, "forged", 64, 0.15, "static"]}).encode()
    asked = Request(f"{url}gradio_api/call/build_corpus", body, {"Content-Type": "application/json"})
    before = set(service.Workspace.open(Path(os.environ["RETRO_DEMO_HOME"]), code).corpora())

    try:  # raw HTTP: gradio_client would upload its own machine's file of that name
        event = json.loads(urlopen(asked, timeout=PATIENCE).read())["event_id"]
        said = urlopen(f"{url}gradio_api/call/build_corpus/{event}", timeout=PATIENCE).read().decode()
    except HTTPError as error:
        said = f"event: error {error.code}"

    assert "event: error" in said
    assert "finished" not in said
    assert "root:" not in said
    assert set(service.Workspace.open(Path(os.environ["RETRO_DEMO_HOME"]), code).corpora()) == before


def test_another_visitor_finds_neither_corpus_nor_run(client, built, trained):
    stranger = new_code()

    assert "no corpus" in refusal(client, stranger, built["corpus"], "x", 1, endpoint="/search")
    assert "no run" in refusal(client, stranger, trained, endpoint="/run_status")


def test_files_of_a_workspace_are_not_served(home, url, built, code):
    place = Workspace.open(home, code).corpus(built["corpus"]) / "documents.jsonl"

    with pytest.raises(HTTPError) as error:
        urlopen(Request(f"{url}gradio_api/file={place}"))
    assert error.value.code in (403, 404)


def test_every_answer_carries_the_content_security_policy(url):
    with urlopen(url) as answer:
        assert "default-src 'self'" in answer.headers["content-security-policy"]


def test_renaming_and_deleting_keep_to_the_workspace(home, code, files):
    workspace = Workspace.open(home, code)
    config = CorpusConfig(chunk_len=8)
    name = service.start_build(workspace, [(p.name, p) for p in files], "again", config)
    for _ in service.follow(workspace.corpus(name)):
        pass

    assert workspace.rename("corpora", name, "renamed") == "renamed"
    workspace.delete("corpora", "renamed")
    assert "renamed" not in workspace.corpora()


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("../../etc/passwd.txt", "passwd.txt"),
        ("C:\\texts\\a.md", "a.md"),
        (".hidden.csv", "hidden.csv"),
        ('<img src=x onerror="1">.txt', "_img src_x onerror__1__.txt"),
        ("a.jsonl.gz", "a-2.jsonl.gz"),
    ],
)
def test_names_of_uploads_become_names_only(given, kept):
    taken = {"a.jsonl.gz"}

    assert safe_name(given, taken) == kept


def test_a_renamed_corpus_is_still_that_of_its_runs(home, code, built, trained, client):
    workspace = Workspace.open(home, code)

    corpus_changes.rename_corpus(workspace, built["corpus"], "moved")
    try:
        last = client.predict(code, trained, "Island 1", 8, 0.8, 0, 0.95, 3, "on", api_name="/generate")
        assert last["done"] is True
    finally:
        corpus_changes.rename_corpus(workspace, "moved", built["corpus"])


def test_a_corpus_is_changed_in_a_copy_over_http_and_a_run_says_what_it_would_miss(
    client, home, code, built, trained, tmp_path
):
    text = "Island 99 exports wool and 3 boats of slate. " * 40
    (tmp_path / "new.csv").write_text(f"Body,Name\n{text},new\n")
    asked = (
        code,
        built["corpus"],
        [handle_file(tmp_path / "new.csv")],
        ["island 3.txt"],
        "database",
        "changed",
        "text=Body",
    )
    job = client.submit(*asked, api_name="/change_corpus")
    job.result(timeout=240)
    done = job.outputs()[-1]
    workspace = Workspace.open(home, code)

    assert (done["event"], done["corpus"], done["documents"]) == ("finished", "changed", 8)
    assert len(service.statistics(workspace.corpus(built["corpus"]))["held_out"]) == 8
    found = client.predict(code, "changed", "boats of slate", 1, api_name="/search")
    assert found[0]["document"].startswith("new")
    held_out = service.statistics(workspace.corpus(built["corpus"]))["held_out"]
    title = f"island {held_out.index(False)}.txt"
    result = client.predict(code, trained, [title], "Island 5 exports fish and salt. " * 9, api_name="/weigh")
    assert result["weighed"] == [title]
    assert result["nats"]["with"] > 0


def test_a_corpus_is_changed_in_place_over_http_and_every_search_follows(client, home, code, files, tmp_path):
    """The server has searched the corpus as it was; nothing of that is remembered, or left in its folder."""
    sent = [handle_file(path) for path in files]
    client.submit(code, sent, "shifting", 8, 0.2, "static", api_name="/build_corpus").result(timeout=240)
    folder = Workspace.open(home, code).corpus("shifting")
    title = f"island {service.statistics(folder)['held_out'].index(False)}.txt"
    text = (files[0].parent / title).read_text()[:60]
    for retriever in ("dense", "bm25", "hybrid"):
        before = client.predict(code, "shifting", text, 50, retriever, api_name="/search")
        assert title in {row["title"] for row in before}
    (tmp_path / "new.txt").write_text("Island 99 exports wool and 3 boats of slate.\n" * 40)

    job = client.submit(
        code, "shifting", [handle_file(tmp_path / "new.txt")], [title], api_name="/change_corpus"
    )
    job.result(timeout=240)

    done = job.outputs()[-1]
    assert (done["event"], done["corpus"], done["documents"]) == ("finished", "shifting", 8)
    for retriever in ("dense", "bm25", "hybrid"):
        after = client.predict(code, "shifting", text, 50, retriever, api_name="/search")
        assert title not in {row["title"] for row in after}
        found = client.predict(code, "shifting", "boats of slate", 1, retriever, api_name="/search")
        assert found[0]["title"] == "new.txt"
    assert not (folder / "sources").exists()
    assert not [path for path in folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]


def test_more_documents_than_are_weighed_at_a_time_are_refused_over_http(client, code, trained):
    assert "here at most 50" in refusal(client, code, trained, ["island 1.txt"] * 51, endpoint="/weigh")


@pytest.mark.parametrize(
    ("endpoint", "values", "said"),
    [
        ("/change_corpus", ("nowhere", [], ["x"]), "There is no corpus 'nowhere'"),
        ("/change_corpus", ("sample:udhr44", [], ["x"]), "ot built yet"),
        ("/weigh", ("nowhere", ["x"]), "There is no run 'nowhere'"),
    ],
)
def test_a_change_that_cannot_be_is_answered_with_one_sentence(client, code, endpoint, values, said):
    assert said in refusal(client, code, *values, endpoint=endpoint)
