"""A run or a corpus as a folder for others: export, model card, push to the Hub.

An export holds no pickle and no path of this machine. Its model card is README.md with YAML front matter:
figures with their intervals, how to repeat them, and just as plainly what was not measured. A push to the
Hugging Face Hub uses the user's own token, which is never stored or shown.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import zipfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import huggingface_hub  # its parts load on first use, which only who pushes waits for

from retro_demo.corpus.embedder_choice import COUNTS
from retro_demo.corpus.samples import SAMPLES
from retro_demo.corpus.store import KEPT_FILES, Corpus, load_corpus
from retro_demo.corpus.store import MANIFEST as CORPUS_MANIFEST
from retro_demo.errors import UserError
from retro_demo.evaluation.arms import arm_name, arms_in_order
from retro_demo.evaluation.runner import read_request
from retro_demo.events import read_events
from retro_demo.files import file_hash, replacing
from retro_demo.jobs.lifecycle import is_running, let_leave
from retro_demo.kinds import resolve
from retro_demo.output_folder import EXPORT, kind_of, whole_folder
from retro_demo.paths import ASSETS, SAMPLE, data_home
from retro_demo.pretrained.bases import ON_THE_HUB, SMOLLM2, SMOLLM2_ON_HUB
from retro_demo.runs.checkpoint import (
    BEST,
    IMPORTED,
    LAST,
    STATE,
    AnyRun,
    ReaderRun,
    read_any_config,
    weights_file,
    write_run_config,
)
from retro_demo.runs.commands import for_others
from retro_demo.runs.loading import load_trained_on
from retro_demo.runs.provenance import NOT_COMPARABLE, base_name, folder_name, weights_of, without_places
from retro_demo.sharing.export_format import RUN, CorpusNote, Manifest, write_manifest

LANGUAGE = re.compile(r"[a-z]{2,3}")
LICENSE = re.compile(r"[a-z0-9][a-z0-9.-]{0,40}")


def model_card(
    name: str,
    run: Path,
    config: AnyRun,
    corpus: CorpusNote,
    *,
    result: Mapping[str, Any] | None,
    events: list[dict[str, Any]],
    license: str,
    has: frozenset[str],
    imported: bool,
) -> str:
    """README.md of an export; `result` are the figures of an evaluation of these weights, None = none.

    `has`: "corpus" and "state" where they are along.
    """
    parts = [
        _front(config, license),
        f"# {plain(name)}\n\nA small {config.kind.title}, made with retro_demo.",
        _origin(run, config, corpus, imported),
        _figures(config, result, events, weights_of(run)[0]),
        _not_measured(config, result),
        _base(config),
        _data(corpus, "corpus" in has),
        _use(name, config, has),
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def plain(text: str) -> str:
    """A text of a user as Markdown that shows it and does nothing."""
    one_line = " ".join(text.split())[:200]
    return re.sub(r"([\\`*_{}\[\]()<>#|!~$&])", r"\\\1", one_line)


def _front(config: AnyRun, license: str) -> str:
    known = [one for one in config.languages if LANGUAGE.fullmatch(one)]
    lines = ["---", f"license: {license}", "library_name: retro_demo"]
    lines += ["language:", *(f'- "{one}"' for one in known)] if known else []  # "no" would be a truth value
    lines += [f"pipeline_tag: {config.kind.pipeline}"] if config.kind.pipeline else []
    hub = SMOLLM2_ON_HUB if config.base == SMOLLM2 else base_name(config)
    if config.kind.trains_pretrained and ON_THE_HUB.fullmatch(hub):
        lines += [f"base_model: {hub}"]
    lines += ["tags:", f"- {config.kind.tag}", "- retrieval-augmented", "- small-model", "---"]
    return "\n".join(lines)


def _origin(run: Path, config: AnyRun, corpus: CorpusNote, imported: bool) -> str:
    step, parameters = weights_of(run)
    training = config.training
    rows = {
        "Parameters": f"{parameters:,}",
        "Steps": f"{step:,} of {training.steps:,}" + (", the best save" if training.keep == "best" else ""),
        "Seed": str(training.seed),
        "Preset": plain(config.preset),
        "Trained on": f"{plain(corpus.title)} (fingerprint {plain(corpus.fingerprint)})",
        "Machine": f"{plain(config.device)}, {config.threads} threads, "
        + ", ".join(f"{plain(k)} {plain(v)}" for k, v in config.versions.items()),
    }
    if config.kind.even_batches:
        tokens = step * config.tokens_per_step
        rows["Tokens read in training"] = f"{tokens:,} (batch {training.batch_size}, {training.seq_len} each)"
    if config.chunk_len:
        rows["Neighbors"] = f"{training.num_neighbors} of each chunk, by {training.retriever}"
    if config.base:
        rows["Begun with"] = f"{plain(base_name(config))} (weights {config.base_weights[:16]})"
    if isinstance(config, ReaderRun) and config.tuned:
        rows["Fine-tuned in"] = f"{plain(folder_name(config.tuned))} (weights {config.tuned_weights[:16]})"
    table = "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])
    note = (
        "\n\nThis run was imported before it was exported here: its record is as its maker gave it, and "
        "nobody here saw the training."
        if imported
        else ""
    )
    return f"## What it is\n\n{table}\n\n{NOT_COMPARABLE}{note}"


def _figures(
    config: AnyRun, result: Mapping[str, Any] | None, events: list[dict[str, Any]], step: int
) -> str:
    names = resolve(config.kind.arm_names)
    if result is not None:
        arms = {name: result["arms"][name] for name in arms_in_order(result)}
        rows = [
            f"| {arm_name(name, names)} | {arm['bpb']:.4f} | {_interval(arm)} | {arm['nats']:.4f} |"
            for name, arm in arms.items()
            if arm.get("bpb") is not None and arm.get("nats") is not None
        ]
        counts = result["counts"]
        head = (
            f"Measured on {counts['tokens']:,} held-out tokens of {counts['documents']:,} documents; the "
            "intervals are drawn anew from the documents (bootstrap).\n\n"
            "| Arm | Bits a byte | 95% interval | Nats a token |\n|---|---|---|---|\n"
        )
        said = plain_sentence(result["verdict"])
        command = " ".join(result.get("provenance", {}).get("command", "").split())
        made = f"\n\nMeasured with:\n\n{code_block(command)}" if command else ""
        return f"## Held-out loss\n\n{head}" + "\n".join(rows) + f"\n\n{said}{made}"
    told = [event for event in events if event["event"] == "evaluated" and event["step"] <= step]
    measured = [event for event in told if event["arms"]]
    if not measured:
        return "## Held-out loss\n\nNothing was measured."
    rows = [
        f"| {names.get(name, plain(name))} | {arm['bpb']:.4f} | {arm['nats']:.4f} |"
        for name, arm in measured[-1]["arms"].items()
    ]
    return (
        f"## Held-out loss\n\nMeasured while training, at step {measured[-1]['step']:,}, on a part of the "
        "held-out text: without intervals and without a matched baseline, so it does not say whether "
        "retrieval is worth its cost.\n\n| Arm | Bits a byte | Nats a token |\n|---|---|---|\n"
    ) + "\n".join(rows)


def plain_sentence(text: str) -> str:
    """A verdict as Markdown: as long as it is, on one line."""
    return re.sub(r"([\\`*_{}\[\]<>#|~$&])", r"\\\1", " ".join(text.split()))


def code_block(text: str) -> str:
    """A line as Markdown that shows it as it is: a fence that nothing in it closes."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text}\n{fence}"


def _interval(arm: Mapping[str, Any]) -> str:
    found = arm.get("ci")
    whole = isinstance(found, (list, tuple)) and all(isinstance(end, (int, float)) for end in found)
    return f"{found[0]:.4f} to {found[1]:.4f}" if whole and found else "too few documents"


def _not_measured(config: AnyRun, result: Mapping[str, Any] | None) -> str:
    names = resolve(config.kind.arm_names)
    arms = result["arms"] if result is not None else {}
    missing = [names[arm] for arm in config.kind.claims if arm not in arms]
    lines = [f"- With intervals: {', '.join(missing)}."] if missing else []
    lines += [
        "- Other seeds: this is one training.",
        "- Whether what it writes is true, fair or safe. Expect made-up facts, and passages of its corpus "
        "word for word.",
        "- Any other corpus, language or task than the held-out part of its own corpus.",
    ]
    return "## What was not measured\n\n" + "\n".join(lines)


def _base(config: AnyRun) -> str:
    """What a reader needs beside its own weights, "" for every other run."""
    if not config.kind.trains_pretrained:
        return ""
    return (
        f"## The base\n\nIt reads and writes with the pretrained base {plain(base_name(config))}, which is "
        "not in this export: the weights here are those that were added to it, and its license is its "
        "maker's. "
        f"The sha256 of its weights is `{config.base_weights}`; with any other ones this run is not used."
    )


def _data(corpus: CorpusNote, along: bool) -> str:
    notice = ASSETS / corpus.shipped / "NOTICE"
    if corpus.shipped == "lookup":
        terms = "Made-up facts that retro_demo writes itself; there is nothing to license."
    elif corpus.shipped and notice.exists():
        terms = notice.read_text("utf-8").strip()
        terms = "\n".join(f"> {line}".rstrip() for line in terms.splitlines())
    else:
        terms = (
            "The texts are its maker's. Their license is not known to the program that wrote this card; "
            "whoever shares it must say so here, and must be allowed to share them."
        )
    where = "It is in the folder `corpus`." if along else "It is not in this export."
    said = f"{plain(corpus.title)}, fingerprint `{plain(corpus.fingerprint)}`. {where}"
    return f"## The corpus\n\n{said}\n\n{terms}"


def _use(name: str, config: AnyRun, has: frozenset[str]) -> str:
    run = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "run"
    named = " --base BASE" if config.kind.trains_pretrained and config.base != SMOLLM2 else ""
    lines = [
        f"python -m retro_demo import EXPORT --as {run}{named}     # EXPORT: this folder, clone or .zip",
        f'python -m retro_demo generate {run} --prompt "Some words"',
    ]
    if config.retrieves:
        lines.append(f"python -m retro_demo evaluate {run}     # measure it yourself")
    more = "A larger number of `--steps` trains it on: `train --out RUN --steps N`." if "state" in has else ""
    more = more or "It has no optimizer state, so it cannot be trained on as it was."
    if "corpus" not in has and config.retrieves:
        more += " Where its corpus is missing, name another one with `--corpus`."
    config_note = "`config.json` holds every setting and the seed; with the corpus they repeat the training."
    return "## Use\n\n```\n" + "\n".join(lines) + f"\n```\n\n{more} {config_note}"


ABSOLUTE = re.compile(r"(?<![\w:/.])(?:/[^\s/\"']+)+/([^\s/\"']+)")
FIGURES = ("verdict", "helps", "counts", "arms", "names", "match")
ORIGIN = ("seed", "settings", "command", "weights", "measured_on_fingerprint", "split", "code", "versions")
STORED = (".safetensors", ".npy", ".faiss")  # numbers hardly shrink


def export_run(
    run: Path,
    out: Path,
    *,
    with_corpus: bool = False,
    with_state: bool = False,
    license: str = "unknown",
    evaluations: Path | None = None,
) -> Manifest:
    """Write a run with its card to the folder `out`, which must not be there yet.

    `evaluations`: where those of a shipped run lie, beside its own folder. Raises UserError where the run
    has no weights or is being trained, or the corpus that is asked for is gone or changed.
    """
    config = read_any_config(run)
    if not LICENSE.fullmatch(license):
        raise UserError(f"The license is {license[:80]!r}; give its short name, such as mit or cc-by-4.0.")
    let_leave(run)
    if is_running(run):
        raise UserError(f"{run.name} is being trained. Stop it first, or wait for its end.")
    if not (run / LAST).exists():
        raise UserError(f"{run.name} has no weights yet. Let it train until its first save.")
    if with_state and not (run / STATE).exists():
        raise UserError(
            f"{run.name} has no optimizer state (it ships or was imported without one). Export without it."
        )
    corpus = load_trained_on(config) if with_corpus else None
    note = _note(config.corpus, config.corpus_fingerprint)
    with whole_folder(out) as folder:
        write_run_config(folder, without_places(config))
        # to be trained on it needs its last weights, and its best ones stay what they are
        of_state = [name for name in (STATE, BEST) if with_state and (run / name).exists()]
        shutil.copyfile(run / LAST if with_state else weights_file(run), folder / LAST)
        for name in ["tokenizer.json", *of_state]:
            shutil.copyfile(run / name, folder / name)
        for path in sorted((run / "evidence").glob("[0-9]*.safetensors")):
            (folder / "evidence").mkdir(exist_ok=True)
            shutil.copyfile(path, folder / "evidence" / path.name)
        events = [_told(event, with_corpus) for event in read_events(run / "events.jsonl")]
        lines = "".join(json.dumps(event) + "\n" for event in events)
        (folder / RUN[-1]).write_text(lines, encoding="utf-8")
        result = figures_of(run, config, evaluations)
        if result is not None:
            (folder / "evaluation.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        if corpus is not None:
            _copy_corpus(corpus, folder / "corpus")
        has = frozenset(name for name, there in (("corpus", with_corpus), ("state", with_state)) if there)
        card = model_card(
            run.name,
            run,
            config,
            note,
            result=result,
            events=events,
            license=license,
            has=has,
            imported=(run / IMPORTED).exists(),
        )
        (folder / "README.md").write_text(card, encoding="utf-8")
        return write_manifest(folder, "run", run.name, note)


def export_corpus(corpus: Path, out: Path, title: str = "") -> Manifest:
    """Write a built corpus to the folder `out`, not there yet; `title`: "sample:NAME" of a sample."""
    if kind_of(corpus) != "corpus":  # not even a lock of it is looked at
        raise UserError(f"There is no corpus at {corpus}. Build one with build-corpus, or name another.")
    let_leave(corpus)
    if is_running(corpus):
        raise UserError(f"{corpus.name} is being worked on. Stop that first, or wait for its end.")
    loaded = load_corpus(corpus)
    note = _note(title or str(corpus.resolve()), loaded.fingerprint)
    with whole_folder(out) as folder:
        _copy_corpus(loaded, folder / "corpus")
        return write_manifest(folder, "corpus", title.removeprefix(SAMPLE) or corpus.name, note)


def write_zip(folder: Path, path: Path) -> None:
    """An export as one .zip, the same bytes for the same files."""
    with replacing(path) as beside, zipfile.ZipFile(beside, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(each for each in folder.rglob("*") if each.is_file()):
            about = zipfile.ZipInfo(file.relative_to(folder).as_posix())
            about.compress_type = zipfile.ZIP_STORED if file.suffix in STORED else zipfile.ZIP_DEFLATED
            about.external_attr = 0o600 << 16
            with file.open("rb") as source, archive.open(about, "w", force_zip64=True) as target:
                shutil.copyfileobj(source, target, 1 << 20)


def _note(corpus: str, fingerprint: str) -> CorpusNote:
    """A corpus in words; `corpus` as a run's config names it."""
    name = corpus.removeprefix(SAMPLE)
    if corpus.startswith(SAMPLE) and name in SAMPLES:
        return CorpusNote(SAMPLES[name].title, fingerprint, name)
    return CorpusNote(folder_name(corpus)[:200], fingerprint)


def _copy_corpus(corpus: Corpus, out: Path) -> None:
    """The files of a built corpus, without what can be made from them in seconds; sources stay unnamed."""
    out.mkdir()
    names = {*KEPT_FILES, COUNTS, "reading.json", "vectors.npy", "vectors.json", "index.json"}
    names |= {path.name for path in corpus.folder.glob("index*.faiss")}
    for name in sorted(names):
        if (corpus.folder / name).exists():  # early corpora lack some
            shutil.copyfile(corpus.folder / name, out / name)
    config = asdict(corpus.config) | {"tokenizer": Path(corpus.config.tokenizer).name}
    about = {"kind": "corpus", "sources": [], "config": config}
    (out / "config.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    manifest = corpus.manifest | {"config": config}
    (out / CORPUS_MANIFEST).write_text(json.dumps(_without_places(manifest)), encoding="utf-8")


def _told(event: dict[str, Any], with_corpus: bool) -> dict[str, Any]:
    """An event without this machine's paths, and without held-out text where the corpus stays behind."""
    sample = event.get("sample")
    told = _without_places({name: value for name, value in event.items() if name != "sample"})
    return told | ({} if sample is None else {"sample": sample if with_corpus else ""})


def _without_places(value: Any) -> Any:
    """The same values; of an absolute path in a text only its last part."""
    if isinstance(value, str):
        return ABSOLUTE.sub(r"\1", value)
    if isinstance(value, dict):
        return {name: _without_places(inner) for name, inner in value.items()}
    return [_without_places(inner) for inner in value] if isinstance(value, list) else value


def figures_of(run: Path, config: AnyRun, evaluations: Path | None = None) -> dict[str, Any] | None:
    """The figures of the latest finished evaluation of these very weights on their own corpus, None = none.

    One with a matched baseline goes before later ones without.
    """
    places = [run / "evaluations", data_home()[0] / "evaluations" / run.name]
    found = [
        path for place in [*places, *([evaluations] if evaluations else [])] for path in place.glob("*/")
    ]
    weights, results = file_hash(weights_file(run)), []
    for folder in [run / "evaluation", *found]:
        if not (folder / "config.json").exists() or read_request(folder).corpus:
            continue
        ended = [event for event in read_events(folder / "events.jsonl") if event["event"] == "finished"]
        if ended and ended[-1].get("provenance", {}).get("weights", {}).get("run") == weights:
            at = (folder / "events.jsonl").stat().st_mtime
            results.append(("baseline" in ended[-1]["arms"], at, ended[-1]))
    if not results:
        return None
    last = max(results, key=lambda result: result[:2])[2]
    kept = {name: last[name] for name in FIGURES if name in last}
    origin = {name: last["provenance"][name] for name in ORIGIN if name in last["provenance"]}
    origin |= {"command": for_others(origin["command"])} if "command" in origin else {}
    return _without_places(kept | {"provenance": origin})


REPO = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
TOKEN = re.compile(r"[!-~]{8,400}")
SAID = {
    401: "the token is wrong or has expired",
    403: "the token may not write there; make one with write access to that repository",
    404: "there is no such owner or repository",
    413: "a file is too large for the Hub",
    429: "there were too many requests; wait a few minutes",
}


def own_token() -> str:
    """The token of who runs this command: HF_TOKEN, or the one that `hf auth login` kept. UserError: none.

    Never for a visitor of the page: on a server it would be its owner's.
    """
    token = huggingface_hub.get_token()
    if not token:
        raise UserError(
            "There is no token for the Hub. Make one with write access at huggingface.co/settings/tokens and "
            "put it into the environment: HF_TOKEN=... (or run: hf auth login)."
        )
    return token


def push(export: Path, repo: str, token: str, *, private: bool) -> str:
    """Upload an export to the model repository OWNER/NAME, made where there is none; returns its address.

    The Hub is HF_ENDPOINT's, else huggingface.co. Raises UserError with what the Hub answered.
    """
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import disable_progress_bars  # pyright: ignore[reportPrivateImportUsage]

    check_address(repo, token)
    if not (export / EXPORT).exists():
        raise UserError(f"{export.name} is no export. Make one with: export RUN --out DIR")
    disable_progress_bars()
    # the HTTPError of the client that this version of the library uses: httpx or httpx2
    cut_off: type[Exception] = HfHubHTTPError.__bases__[0]  # pyright: ignore[reportAssignmentType]
    api = huggingface_hub.HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, token=token)
    try:
        url = api.create_repo(repo, repo_type="model", private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repo, folder_path=export, repo_type="model", commit_message="Add a run of retro_demo"
        )
    except HfHubHTTPError as error:
        code = error.response.status_code
        raise UserError(f"The Hub refused {repo} ({code}): {SAID.get(code, 'try again later')}.") from None
    except ValueError:  # what the library itself finds wrong with a name or an answer
        raise UserError(f"The Hub cannot take {repo}. Check the name, and try again.") from None
    except (cut_off, OSError, RuntimeError) as error:
        raise UserError(
            f"The Hub at {api.endpoint} was not reached, or the upload broke off ({type(error).__name__}). "
            "Check the connection and push again: what is there already is not sent twice."
        ) from None
    return str(url)


def check_address(repo: str, token: str) -> None:
    """Raise UserError where a repository or token cannot be one; no message holds a token."""
    if not REPO.fullmatch(repo):
        raise UserError(f"The repository is {repo[:120]!r}; give it as OWNER/NAME.")
    if not TOKEN.fullmatch(token):
        raise UserError("That is no token of the Hub. Make one at huggingface.co/settings/tokens.")
