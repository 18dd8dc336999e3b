"""Chunks a second of our MiniLM against sentence-transformers' `encode` with the same weights, on CPU.

    .venv/bin/python -m benchmarks.embedding [--chunks 512] [--rounds 5] [--json FILE]

Both embed the same chunks of the shipped Factbook in one process, in turns A B A B, with the same torch
and tokenizers and as many threads as the machine allows. The library goes into an environment of the
benchmark's own, made with venv and pip on the first call (see --venv). The weights are those of the
installed package or of --weights; where there are none, a random network of the same shape is written
for both, which is as fast and says nothing. The ratio is that of the medians; its range, that of the
single rounds. Beside the time on the clock stands that of the cores, which a busy machine disturbs less.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from safetensors.torch import save_file

from benchmarks.measuring import Ratio, Report, at_threads
from retro_demo.corpus.chunks import SHIPPED_TOKENIZERS
from retro_demo.devices import allowed_threads
from retro_demo.documents.sources import read_documents
from retro_demo.errors import UserError
from retro_demo.paths import ASSETS, STATIC_FOLDER, data_home
from retro_demo.retrieval.embedders import MiniLMEmbedder, find_minilm
from retro_demo.tokenizer import Tokenizer

LIBRARY = "sentence-transformers==5.1.2"
CONFIG = {
    "architectures": ["BertModel"],
    "model_type": "bert",
    "hidden_act": "gelu",
    "hidden_size": 384,
    "intermediate_size": 1536,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "num_attention_heads": 12,
    "num_hidden_layers": 6,
    "type_vocab_size": 2,
    "vocab_size": 30522,
    "pad_token_id": 0,
}


def make_environment(folder: Path) -> Path:
    """The python of an environment with the library; torch and the rest are shared with ours."""
    python, made = folder / "bin" / "python", (folder / "ready").exists()
    if not made:
        print(f"making {folder} with {LIBRARY} (once)", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    ours = [path for path in sys.path if path.endswith("site-packages")]  # another checkout may have made it
    show = "import site; print(site.getsitepackages()[0])"
    theirs = subprocess.run([python, "-c", show], check=True, capture_output=True, text=True)
    (Path(theirs.stdout.strip()) / "shared.pth").write_text("\n".join(ours))
    if not made:
        # its own huggingface-hub does not fit our gradio, which this environment never imports
        subprocess.run([python, "-m", "pip", "install", "--quiet", LIBRARY], check=True)
        (folder / "ready").touch()
    return python


def write_model(folder: Path, weights: Path | None) -> str:
    """A folder that both can load; returns where its weights are from."""
    folder.mkdir(parents=True, exist_ok=True)
    source, origin = weights, "all-MiniLM-L6-v2"
    if source is None:
        try:
            source = find_minilm()
        except UserError:
            origin = "random, of the shape of all-MiniLM-L6-v2"
    if source is not None:
        for name in ("model.safetensors", "tokenizer.json"):
            (folder / name).write_bytes((source / name).read_bytes())
    else:
        save_file(random_weights(), folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "tokenizer.json").write_bytes((STATIC_FOLDER / "tokenizer.json").read_bytes())
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return origin


def random_weights() -> dict[str, torch.Tensor]:
    """A BERT of 6 layers with random weights, by the names that both loaders read."""
    torch.manual_seed(0)
    width, wide = CONFIG["hidden_size"], CONFIG["intermediate_size"]
    weights = {
        "embeddings.word_embeddings.weight": torch.randn(CONFIG["vocab_size"], width),
        "embeddings.position_embeddings.weight": torch.randn(512, width),
        "embeddings.token_type_embeddings.weight": torch.randn(2, width),
    }
    shapes = {f"attention.self.{role}": (width, width) for role in ("query", "key", "value")}
    shapes |= {"attention.output.dense": (width, width)}
    shapes |= {"intermediate.dense": (wide, width), "output.dense": (width, wide)}
    for layer in range(6):
        for name, shape in shapes.items():
            weights[f"encoder.layer.{layer}.{name}.weight"] = torch.randn(shape) * shape[1] ** -0.5
            weights[f"encoder.layer.{layer}.{name}.bias"] = torch.zeros(shape[0])
    norms = ["embeddings.LayerNorm"]
    for layer in range(6):
        norms += [f"encoder.layer.{layer}.{part}.LayerNorm" for part in ("attention.output", "output")]
    for norm in norms:
        weights |= {f"{norm}.weight": torch.ones(width), f"{norm}.bias": torch.zeros(width)}
    return weights


def chunk_texts(count: int, tokens: int) -> list[str]:
    """`count` chunks of the shipped Factbook, of so many tokens of its tokenizer, drawn with a seed."""
    tokenizer = Tokenizer.load(SHIPPED_TOKENIZERS["factbook"])
    documents = read_documents([ASSETS / "factbook2015" / "factbook2015.jsonl.gz"], fields={}).documents
    texts = []
    for document in documents:
        ids = tokenizer.encode(document.text)
        texts += [tokenizer.decode(ids[start : start + tokens]) for start in range(0, len(ids), tokens)]
    drawn = np.random.default_rng(0).permutation(len(texts))[:count]
    return [texts[i] for i in drawn]


def compare(model: Path, chunks: int, tokens: int, rounds: int, threads: int) -> dict[str, object]:
    """Runs inside the library's environment: both embedders in turns, in one process."""
    import sentence_transformers  # pyright: ignore[reportMissingImports]
    from sentence_transformers import SentenceTransformer, models  # pyright: ignore[reportMissingImports]

    torch.set_num_threads(threads)
    texts = chunk_texts(chunks, tokens)
    ours = MiniLMEmbedder(model)
    bert = models.Transformer(str(model), max_seq_length=256)
    theirs = SentenceTransformer(
        modules=[bert, models.Pooling(bert.get_word_embedding_dimension()), models.Normalize()], device="cpu"
    )
    embed = {
        "ours": ours.embed,
        "sentence-transformers": lambda part: theirs.encode(part, show_progress_bar=False),
    }
    vectors = {name: one(texts[:64]) for name, one in embed.items()}  # both are warm after that
    apart = float(np.abs(vectors["ours"] - vectors["sentence-transformers"]).max())
    seconds: dict[str, list[float]] = {name: [] for name in embed}
    cores: dict[str, list[float]] = {name: [] for name in embed}
    for _ in range(rounds):
        for name, one in embed.items():
            begun, used = time.perf_counter(), time.process_time()
            one(texts)
            seconds[name].append(time.perf_counter() - begun)
            cores[name].append(time.process_time() - used)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "chunks_per_second": {name: round(chunks / value, 1) for name, value in median.items()},
        "chunks_per_core_second": {
            name: round(chunks / statistics.median(values), 1) for name, values in cores.items()
        },
        "clock": ratio_of(seconds),
        "cores": ratio_of(cores),
        "seconds": seconds,
        "core_seconds": cores,
        "largest_difference": apart,
        "versions": {"torch": torch.__version__, "sentence-transformers": sentence_transformers.__version__},
        "threads": torch.get_num_threads(),
        "chunks": chunks,
        "tokens_a_chunk": tokens,
        "rounds": rounds,
    }


def ratio_of(seconds: dict[str, list[float]]) -> dict[str, float]:
    """How many times as long the library takes: of the medians, and the least and most of a round."""
    ours, theirs = seconds["ours"], seconds["sentence-transformers"]
    each = [b / a for a, b in zip(ours, theirs, strict=True)]
    medians = statistics.median(theirs) / statistics.median(ours)
    return {"ratio": round(medians, 3), "least": round(min(each), 3), "most": round(max(each), 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--chunks", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=64, help="tokens of a chunk")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=allowed_threads())
    parser.add_argument("--weights", type=Path, help="folder of all-MiniLM-L6-v2 (default: the package's)")
    parser.add_argument("--venv", type=Path, help="environment of the library (default: in the data folder)")
    parser.add_argument("--json", help="where the figures go (default: build/benchmarks/embedding.json)")
    parser.add_argument("--quick", action="store_true", help="few chunks: to see that it works")
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)  # set for the process inside the venv
    options = parser.parse_args()
    if options.model:
        settings = options.chunks, options.tokens, options.rounds, options.threads
        print(json.dumps(compare(options.model, *settings)))
        return
    if options.quick:
        options.chunks, options.rounds = 32, 2
    place = data_home()[0] / "benchmarks"
    python = make_environment(options.venv or place / "sentence-transformers")
    origin = write_model(place / "minilm", options.weights)
    command = [python, "-m", "benchmarks.embedding", "--model", place / "minilm"]
    command += [f"--{name}={getattr(options, name)}" for name in ("chunks", "tokens", "rounds", "threads")]
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(command, check=True, cwd=root, stdout=subprocess.PIPE, text=True)
    report = Report("embedding", figures=json.loads(done.stdout.splitlines()[-1]) | {"weights": origin})
    found = report.figures
    speeds = found["chunks_per_second"]
    rows = [(name, speed, found["chunks_per_core_second"][name]) for name, speed in speeds.items()]
    what = f"{options.chunks} chunks of {options.tokens} tokens"
    title = f"{what}, {at_threads(options.threads, 'wall')}, weights: {origin}"
    report.table(title, ("embedder", "chunks/s", "chunks a second of a core"), rows)
    for kind, words in (("clock", ""), ("cores", ", time of the cores")):
        one = Ratio(found[kind]["ratio"], found[kind]["least"], found[kind]["most"])
        report.aim(f"chunks/s against sentence-transformers{words}", one, least=1.3)
    print(f"\nThe same vectors to {found['largest_difference']:.1e}.")
    report.publish(options.json)


if __name__ == "__main__":
    main()
