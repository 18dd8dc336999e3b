"""Writing text: cached against recomputed, sampling, borders, traces."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from retro_demo.corpus.retrievers import Database, load_retriever
from retro_demo.errors import UserError
from retro_demo.events import Retrieved, Token
from retro_demo.explain.tracing import Trace, trace
from retro_demo.generation.retro import generate
from retro_demo.generation.sampling import Written, next_token
from retro_demo.models.config import RetroConfig
from retro_demo.models.retro import RETRO
from retro_demo.retrieval.neighbors import Neighbors
from retro_demo.settings import GenerateConfig

CHUNK = 8
PROMPT = "Area of Arden: 100 square km"


class Counting:
    """A retriever that answers by the sum of the tokens, and remembers what it was asked."""

    def __init__(self, num_chunks: int) -> None:
        self.num_chunks = num_chunks
        self.asked: list[list[int]] = []

    def search(self, tokens: np.ndarray, k: int, *, own: np.ndarray | None = None) -> Neighbors:
        self.asked += tokens.tolist()
        ids = (tokens.sum(axis=1, keepdims=True) + 7 * np.arange(k)) % self.num_chunks
        return Neighbors(ids.astype(np.int64), np.ones(ids.shape, dtype=np.float32))


@pytest.fixture
def model(small_corpus) -> RETRO:
    torch.manual_seed(0)
    model = RETRO(
        RetroConfig(
            vocab_size=small_corpus.tokenizer.vocab_size,
            chunk_len=CHUNK,
            dim=16,
            depth=4,
            num_heads=2,
            cca_layers=(2, 4),
            enc_dim=16,
        )
    )
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.mul_(8)
    return model.eval()


def write(model, corpus, database=None, *, prompt=PROMPT, context=256, **changes):
    config = GenerateConfig(**{"temperature": 0.0, "max_new_tokens": 40} | changes)
    return list(
        generate(model, corpus.tokenizer, prompt, config, context=context, num_neighbors=2, database=database)
    )


@torch.inference_mode()
def recomputed(model: RETRO, corpus, retriever, prompt: str, count: int) -> list[int]:
    """Greedy tokens with everything computed anew for each of them."""
    ids = corpus.tokenizer.encode(prompt)
    for _ in range(count):
        chunks = [ids[i : i + CHUNK] for i in range(0, len(ids) - CHUNK + 1, CHUNK)]
        neighbors = None
        if chunks:
            found = retriever.search(np.array(chunks), 2)
            neighbors = torch.from_numpy(corpus.chunks.with_continuation(found.ids))[None]
        logits = model(torch.tensor([ids]), neighbors)[0, -1]
        logits[0] = float("-inf")
        chosen = int(logits.argmax())
        if chosen == corpus.tokenizer.eos_id:
            break
        ids.append(chosen)
    return ids


@pytest.mark.parametrize("prompt", ["A", PROMPT, PROMPT * 2])
def test_greedy_tokens_equal_full_recomputation_over_several_chunk_borders(model, small_corpus, prompt):
    retriever = Counting(len(small_corpus.chunks))
    database = Database(small_corpus, retriever)

    written = write(model, small_corpus, database, prompt=prompt)[-1]

    expected = recomputed(model, small_corpus, Counting(len(small_corpus.chunks)), prompt, 40)
    assert written.tokens == expected
    assert len(retriever.asked) >= 3


def test_neighbors_are_fetched_once_for_each_whole_chunk_read(model, small_corpus):
    retriever = Counting(len(small_corpus.chunks))

    events = write(model, small_corpus, Database(small_corpus, retriever))

    written = events[-1]
    read = len(written.tokens) - 1  # the last token is written and not read
    chunks = [written.tokens[i : i + CHUNK] for i in range(0, read - CHUNK + 1, CHUNK)]
    assert retriever.asked == chunks
    assert [event.chunk for event in events if isinstance(event, Retrieved)] == list(range(len(chunks)))


def test_pieces_of_text_join_to_the_text(model, small_corpus):
    events = write(model, small_corpus, temperature=1.0)

    written = events[-1]
    text = "".join(event.text for event in events if isinstance(event, Token))
    whole = small_corpus.tokenizer.decode(written.tokens[written.prompt_tokens :])
    assert whole.startswith(text)
    assert len(whole) - len(text) <= 1  # an incomplete last character is held back


def test_the_same_seed_writes_the_same_text_and_another_seed_another(model, small_corpus):
    one, again, other = (
        write(model, small_corpus, temperature=1.0, seed=seed)[-1].tokens for seed in (1, 1, 2)
    )

    assert one == again
    assert one != other


def test_writing_leaves_the_global_generator_alone(model, small_corpus):
    torch.manual_seed(5)
    before = torch.get_rng_state()

    write(model, small_corpus, temperature=1.0)

    assert torch.equal(before, torch.get_rng_state())


def test_retrieval_off_asks_for_nothing_and_writes_as_without_a_database(model, small_corpus):
    retriever = Counting(len(small_corpus.chunks))

    off = write(model, small_corpus, Database(small_corpus, retriever), retrieval="off")[-1]

    assert not retriever.asked
    assert off.tokens == write(model, small_corpus, None)[-1].tokens


class Recording:
    """The corpus' own retriever, remembering the queries with the chunks they are."""

    def __init__(self, corpus) -> None:
        self.retriever = load_retriever(corpus)
        self.asked: list[tuple[list[int], int]] = []

    def search(self, tokens: np.ndarray, k: int, *, own: np.ndarray | None = None) -> Neighbors:
        assert own is not None
        self.asked += zip(tokens.tolist(), own.tolist(), strict=True)
        return self.retriever.search(tokens, k, own=own)


def test_shuffled_gives_each_chunk_the_neighbors_of_a_drawn_chunk_of_the_database(model, small_corpus):
    recording = Recording(small_corpus)

    *events, written = write(model, small_corpus, Database(small_corpus, recording), retrieval="shuffled")

    assert len(recording.asked) >= 3
    drawn = [chunk for _, chunk in recording.asked]
    assert len(set(drawn)) > 1
    assert not small_corpus.held_out[small_corpus.chunks.document[drawn]].any()
    assert [tokens for tokens, _ in recording.asked] == small_corpus.chunks.tokens[drawn].tolist()
    for event, chunk in zip([e for e in events if isinstance(e, Retrieved)], drawn, strict=True):
        own = small_corpus.chunks.tokens[[chunk]]
        found = recording.retriever.search(own, 2, own=np.array([chunk]))
        assert [neighbor["chunk"] for neighbor in event.neighbors] == found.ids[0].tolist()
    assert written.retrieved


def test_shuffled_draws_the_same_chunks_from_the_same_seed_and_others_from_another(model, small_corpus):
    asked = []
    for seed in (1, 1, 2):
        recording = Recording(small_corpus)
        write(model, small_corpus, Database(small_corpus, recording), retrieval="shuffled", seed=seed)
        asked.append([chunk for _, chunk in recording.asked])

    assert asked[0] == asked[1]
    assert asked[0] != asked[2]


def test_writing_ends_at_the_stop_text(model, small_corpus):
    free = write(model, small_corpus)[-1]
    text = small_corpus.tokenizer.decode(free.tokens[free.prompt_tokens : free.prompt_tokens + 5])

    events = write(model, small_corpus, stop=text)

    written = events[-1]
    assert small_corpus.tokenizer.decode(written.tokens[written.prompt_tokens :]).endswith(text)
    assert len(written.tokens) < len(free.tokens)


def logits_of(*probabilities: float) -> torch.Tensor:
    return torch.tensor(probabilities).log()


def draws(config: GenerateConfig, logits: torch.Tensor) -> set[int]:
    generator = torch.Generator().manual_seed(0)
    return {next_token(logits, config, generator)[0] for _ in range(300)}


def test_temperature_0_takes_the_likeliest_token():
    assert draws(GenerateConfig(temperature=0.0), logits_of(0.2, 0.5, 0.3)) == {1}


@pytest.mark.parametrize("temperature", [1e-300, 1e-9])
def test_a_temperature_next_to_nothing_takes_the_likeliest_token_too(temperature):
    assert draws(GenerateConfig(temperature=temperature), logits_of(0.2, 0.5, 0.3)) == {1}


def test_top_k_keeps_the_k_likeliest():
    assert draws(GenerateConfig(temperature=1.0, top_p=1.0, top_k=2), logits_of(0.2, 0.5, 0.3)) == {1, 2}


def test_top_p_keeps_the_smallest_set_that_holds_the_share():
    logits = logits_of(0.1, 0.5, 0.3, 0.1)

    assert draws(GenerateConfig(temperature=1.0, top_p=0.6), logits) == {1, 2}
    assert draws(GenerateConfig(temperature=1.0, top_p=0.4), logits) == {1}
    assert draws(GenerateConfig(temperature=1.0, top_p=0.0), logits) == {1}
    assert draws(GenerateConfig(temperature=1.0, top_p=1.0), logits) == {0, 1, 2, 3}


@pytest.mark.parametrize("top_p", [0.3, 0.95, 1.0])
@pytest.mark.parametrize("top_k", [0, 40])
def test_a_draw_from_a_large_vocabulary_is_that_from_all_of_it_sorted(monkeypatch, top_p, top_k):
    """Ties included: a float16 model gives many tokens the same logit."""
    config = GenerateConfig(temperature=0.9, top_p=top_p, top_k=top_k)
    rows = torch.randn(40, 3000, generator=torch.Generator().manual_seed(5)).mul(4).half().float()

    def drawn():
        generator = torch.Generator().manual_seed(3)
        return [next_token(row, config, generator)[0] for row in rows]

    looked_at_few = drawn()
    monkeypatch.setattr("retro_demo.generation.sampling.FEW", 3000)
    assert looked_at_few == drawn()


def test_tokens_are_drawn_as_often_as_is_likely():
    generator = torch.Generator().manual_seed(0)
    config = GenerateConfig(temperature=1.0, top_p=1.0)
    seen = [next_token(logits_of(0.2, 0.5, 0.3), config, generator)[0] for _ in range(4000)]

    shares = torch.bincount(torch.tensor(seen)) / len(seen)
    torch.testing.assert_close(shares, torch.tensor([0.2, 0.5, 0.3]), atol=0.03, rtol=0)


def test_the_reported_probability_is_the_models_own():
    chosen, probability = next_token(
        logits_of(0.2, 0.8), GenerateConfig(temperature=0.3), torch.Generator().manual_seed(0)
    )

    assert probability == pytest.approx([0.2, 0.8][chosen], abs=1e-6)


@pytest.mark.parametrize("prompt", ["", PROMPT * 40])
def test_a_prompt_that_is_empty_or_longer_than_the_context_is_refused(model, small_corpus, prompt):
    with pytest.raises(UserError, match="Write a few words" if not prompt else "reads at most 256"):
        write(model, small_corpus, prompt=prompt)


def test_more_new_tokens_than_fit_are_refused_with_the_number_that_does(model, small_corpus):
    length = len(small_corpus.tokenizer.encode(PROMPT))

    with pytest.raises(UserError, match=f"at most {256 - length}"):
        write(model, small_corpus, max_new_tokens=256)


def traced(model, corpus) -> tuple[Trace, Written]:
    database = Database(corpus, load_retriever(corpus))
    written = write(model, corpus, database)[-1]
    return trace(model, corpus.tokenizer, written, database, {"seed": 7}), written


def test_a_trace_holds_weights_of_every_layer_head_token_neighbor_and_neighbor_token(model, small_corpus):
    kept, written = traced(model, small_corpus)

    chunks = (len(written.tokens) - 1) // CHUNK
    assert kept.weights.shape == (2, chunks, 2, CHUNK, 2, 2 * CHUNK)
    assert kept.layers == [2, 4]
    assert len(kept.tokens) == len(written.tokens)
    assert all(len(n["tokens"]) == 2 * CHUNK for found in kept.neighbors for n in found)
    torch.testing.assert_close(kept.weights.sum(dim=(-1, -2)), torch.ones(2, chunks, 2, CHUNK))


def test_padding_of_a_neighbor_gets_no_attention(model, small_corpus):
    last = np.flatnonzero(~small_corpus.chunks.has_continuation(np.arange(len(small_corpus.chunks))))[0]
    tokens = torch.from_numpy(small_corpus.chunks.with_continuation(np.array([[[last, 0]]])))
    text = torch.randint(2, 300, (1, CHUNK + 3))

    weights = model.attention(text, tokens)

    assert weights[..., 0, CHUNK:].abs().max() == 0
    assert weights[..., 1, CHUNK:].max() > 0


def test_the_trace_of_the_finished_text_equals_what_each_step_attended_to(model, small_corpus):
    from retro_demo.models.layers import record_attention
    from retro_demo.models.retro import DecodeCache

    tokens = torch.randint(2, 300, (1, 2 * CHUNK + 1))
    ids = np.array([[3, 4], [5, 6]])
    neighbors = torch.from_numpy(small_corpus.chunks.with_continuation(ids))[None]
    cache, steps = DecodeCache(), []
    with torch.inference_mode(), record_attention(model) as seen:
        for position in range(tokens.shape[1]):
            found = neighbors[:, position // CHUNK] if (position + 1) % CHUNK == 0 else None
            model.extend(tokens[:, position : position + 1], cache, found)
            if position >= CHUNK - 1:
                steps.append(seen["layers.1.retrieve"][0, :, 0])

    whole = model.attention(tokens, neighbors)[0].flatten(-2)  # (L, H, C, K * R)

    by_position = whole.transpose(1, 2).flatten(0, 1)[: len(steps)]
    torch.testing.assert_close(by_position, torch.stack(steps), atol=1e-5, rtol=0)


def test_a_trace_is_read_back_as_it_was_saved(tmp_path, model, small_corpus):
    kept, _ = traced(model, small_corpus)

    kept.save(tmp_path / "trace")

    again = Trace.load(tmp_path / "trace")
    assert again is not None
    torch.testing.assert_close(again.weights, kept.weights, atol=1e-3, rtol=0)
    assert again.neighbors == kept.neighbors
    assert again.tokens == kept.tokens


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_gpu_is_waited_for_once_a_token_which_is_the_one_of_the_cpu(temperature):
    logits, config = torch.randn(500), GenerateConfig(temperature=temperature, top_k=40)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
        there = next_token(logits.cuda(), config, torch.Generator().manual_seed(3))
    copies = sum(event.count for event in seen.key_averages() if "Memcpy DtoH" in event.key)

    assert copies == 1
    assert there == pytest.approx(next_token(logits, config, torch.Generator().manual_seed(3)))
