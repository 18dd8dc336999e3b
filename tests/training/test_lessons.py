"""Each kind of lesson shows what its name says, and nothing of what it must not show."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import PLACES
from reader_helpers import CHUNK, LENGTH, QUERY, TITLE, countries, make_base, make_lessons, read_corpus

from retro_demo.corpus.store import Corpus
from retro_demo.errors import UserError
from retro_demo.models.llama import Llama, LlamaConfig
from retro_demo.models.reader import Reader
from retro_demo.models.reader_config import ReaderConfig
from retro_demo.training import lessons as lessons_module
from retro_demo.training.lessons import (
    SHARES,
    SHARES_OF_EDITIONS,
    Lesson,
    Lessons,
    ReaderBatches,
    Texts,
    fields_of,
    other_number,
)

MANY = 120


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return make_base(tmp_path_factory.mktemp("base") / "base")


@pytest.fixture(scope="module")
def corpora(tmp_path_factory, base) -> tuple[Corpus, Corpus]:
    folder = tmp_path_factory.mktemp("corpora")
    rows = countries()
    rows[3]["use"], rows[4]["use"] = "database", "held-out"
    return read_corpus(folder / "one", rows, base), read_corpus(folder / "other", countries(1), base)


@pytest.fixture(scope="module")
def teaching(corpora) -> Lessons:
    return make_lessons(*corpora)


@pytest.fixture(scope="module")
def drawn(teaching) -> dict[str, list[Lesson]]:
    """Lessons by their kind."""
    found: dict[str, list[Lesson]] = {kind: [] for kind in SHARES_OF_EDITIONS}
    for number in range(MANY):
        lesson = teaching.lesson(number)
        found[lesson.kind].append(lesson)
    return found


def words(corpus: Corpus, tokens: np.ndarray) -> str:
    return corpus.tokenizer.decode(tokens[tokens != 0].tolist())


def text_of(corpus: Corpus, document: int) -> str:
    return words(corpus, corpus.chunks.tokens[corpus.chunks.document == document].reshape(-1))


def shown(corpus: Corpus, lesson: Lesson) -> list[str]:
    """The neighbors of a lesson as text, without their titles."""
    rows = lesson.neighbors.reshape(-1, TITLE + 2 * CHUNK)
    return [words(corpus, row[TITLE:]) for row in rows if row.any()]


def shows_its_own(corpus: Corpus, lesson: Lesson) -> bool:
    """Whether a neighbor, as the corpus has it, is of the lesson's document."""
    own = np.flatnonzero(corpus.chunks.document == lesson.document)
    rows = {tuple(row) for row in corpus.chunks.with_continuation(own).tolist()}
    return any(tuple(row[TITLE:]) in rows for row in lesson.neighbors.reshape(-1, TITLE + 2 * CHUNK).tolist())


def test_all_kinds_come_about_as_often_as_their_shares_say(drawn):
    for kind, share in SHARES_OF_EDITIONS.items():
        assert abs(len(drawn[kind]) / MANY - share) < 0.15
    assert abs(sum(SHARES.values()) - 1) < 1e-9
    assert abs(sum(SHARES_OF_EDITIONS.values()) - 1) < 1e-9


def test_a_corpus_without_another_edition_has_the_other_kinds(corpora):
    alone = make_lessons(corpora[0])

    assert {alone.lesson(number).kind for number in range(120)} == set(SHARES)


def test_an_edition_of_other_documents_is_none(corpora, tmp_path, base):
    strangers = [row | {"title": "Land of " + row["id"]} for row in countries(1)]

    assert make_lessons(corpora[0], read_corpus(tmp_path / "far", strangers, base)).shares == SHARES


def test_a_lesson_is_a_function_of_seed_and_number(corpora, teaching, drawn):
    again = make_lessons(*corpora)

    for number in (7, 3, 7):
        one, two = teaching.lesson(number), again.lesson(number)
        assert one.kind == two.kind
        for part in ("tokens", "title", "neighbors", "weights"):
            assert (getattr(one, part) == getattr(two, part)).all()
    other = make_lessons(*corpora, seed=1)
    assert any((other.lesson(n).tokens != teaching.lesson(n).tokens).any() for n in range(5))


def test_no_text_that_is_held_out_or_in_the_database_only_is_taught(corpora, drawn):
    corpus = corpora[0]
    kept_out = set(np.flatnonzero(corpus.held_out | corpus.database_only).tolist())

    assert len(kept_out) >= 2
    assert corpus.database_only.any()
    assert not {lesson.document for some in drawn.values() for lesson in some} & kept_out


def test_lessons_of_others_show_no_chunk_of_their_own_document(corpora, drawn):
    corpus = corpora[0]
    found = 0
    for lesson in drawn["others"]:
        assert not shows_its_own(corpus, lesson)
        found += len(shown(corpus, lesson))
    assert found


def test_lessons_of_the_oracle_find_their_own_document_word_for_word(corpora, drawn):
    corpus = corpora[0]
    for lesson in drawn["oracle"]:
        assert words(corpus, lesson.tokens) in text_of(corpus, lesson.document)
        assert shows_its_own(corpus, lesson)


def test_shuffled_lessons_show_nothing_of_their_own_document(corpora, drawn):
    corpus = corpora[0]
    found = 0
    for lesson in drawn["shuffled"]:
        assert words(corpus, lesson.tokens) in text_of(corpus, lesson.document)
        assert not shows_its_own(corpus, lesson)
        found += len(shown(corpus, lesson))
    assert found


def test_counterfactual_lessons_change_values_and_keep_all_other_words(corpora, drawn):
    corpus = corpora[0]
    changed = 0
    for lesson in drawn["counterfactual"]:
        text = words(corpus, lesson.tokens)
        changed += text not in text_of(corpus, lesson.document)
    assert changed > len(drawn["counterfactual"]) / 2


def test_what_a_counterfactual_neighbor_of_the_own_document_says_is_what_the_text_says(
    corpora, teaching, monkeypatch
):
    corpus = corpora[0]
    monkeypatch.setattr(lessons_module, "MOST_OVERWRITTEN", 0.0)
    seen = 0
    for number in range(MANY):
        lesson = teaching.lesson(number)
        if lesson.kind != "counterfactual":
            continue
        title = corpus.title_rows(TITLE)[lesson.document]
        # the window's next words stand in a neighbor, changed as they are
        for look in range(LENGTH // CHUNK - 1):
            coming = lesson.tokens[(look + 1) * CHUNK : (look + 1) * CHUNK + 6].tolist()
            for row in lesson.neighbors[look]:
                own = (row[:TITLE] == title).all() and row.any()
                content = row[TITLE:].tolist()
                held = any(content[i : i + 6] == coming for i in range(len(content)))
                seen += bool(own and held)
    assert seen > 30


def test_overwritten_neighbors_differ_in_some_tokens_and_stay_where_nothing_is(teaching):
    content = np.full((3, 2, 2 * CHUNK), 9)
    content[1, 1] = 0
    kept = np.zeros(content.shape, bool)
    kept[2] = True

    teaching._overwrite(content, kept, np.random.default_rng(0))

    assert not content[1, 1].any()
    assert (content[2] == 9).all()
    struck = (content[:2] != 9).mean()
    assert 0.02 < struck < 0.5


@pytest.mark.parametrize("turned", [False, True], ids=["as the other", "as its own"])
def test_an_edition_lesson_has_the_words_of_one_edition_and_the_values_of_the_other(teaching, turned):
    sides = teaching.own, teaching.other
    source, database = sides[::-1] if turned else sides
    for pair in teaching.twins[:4]:
        document, twin = pair[::-1] if turned else pair
        edited = lessons_module._with_values_of(source, document, database, twin)
        data = source.corpus.tokenizer.decode(edited.tokens.tolist()).encode()
        theirs, told = database.texts.data(twin), fields_of(data)
        for field, (a, b) in fields_of(theirs).items():
            c, d = told[field]
            assert data[c:d] == theirs[a:b]
        assert data != source.texts.data(document)
        assert database.corpus.documents[twin].title == source.corpus.documents[document].title


def test_an_edition_lesson_finds_its_neighbors_in_the_other_edition(corpora, drawn):
    assert {lesson.of_own for lesson in drawn["edition"]} == {False, True}
    for lesson in drawn["edition"]:
        read = corpora[1] if lesson.of_own else corpora[0]
        whole = [text_of(read, document) for document in range(len(read.documents))]
        assert shown(read, lesson)
        assert all(any(text in there for there in whole) for text in shown(read, lesson))


def test_windows_begin_so_that_many_values_come_right_after_a_look(teaching, drawn):
    at_look = other = 0
    for lesson in drawn["counterfactual"] + drawn["edition"]:
        begun = np.flatnonzero(np.diff(lesson.weights, prepend=1.0) > 1)
        at_look += int((((begun + 1) % CHUNK) == 0).sum())
        other += len(begun)
    assert at_look / other > 1.5 / CHUNK  # by chance one in CHUNK


def test_values_weigh_more_and_what_cannot_read_weighs_nothing(drawn):
    for lesson in drawn["edition"]:
        assert not lesson.weights[: CHUNK - 1].any()
        assert set(np.unique(lesson.weights)) <= {0.0, 1.0, lessons_module.VALUE_WEIGHT}
    assert any((lesson.weights == lessons_module.VALUE_WEIGHT).any() for lesson in drawn["edition"])
    assert all(lesson.weights.max() == 1.0 for lesson in drawn["others"])


def test_padding_behind_a_short_document_weighs_nothing(tmp_path, base):
    rows = [
        {
            "id": str(n),
            "title": f"T{n}",
            "text": f"Area: {n}{n}{n} km.\n{name} is far from the sea. Nobody knows.",
        }
        for n, name in enumerate(PLACES[:9])
    ]
    teaching = make_lessons(read_corpus(tmp_path / "short", rows, base))

    for number in range(12):
        lesson = teaching.lesson(number)
        length = int((lesson.tokens != 0).sum())
        assert 2 * CHUNK < length < LENGTH
        assert not lesson.weights[length:].any()
        assert not lesson.neighbors[length // CHUNK + 1 :].any() or lesson.kind == "shuffled"


def test_a_single_document_to_learn_from_is_never_shown_as_if_of_another(corpora):
    corpus = corpora[0]
    held_out = np.ones_like(corpus.held_out)
    held_out[0] = False
    teaching = make_lessons(replace(corpus, held_out=held_out))

    seen = set()
    for lesson in map(teaching.lesson, range(60)):
        seen.add(lesson.kind)
        assert lesson.document == 0
        if lesson.kind in ("others", "shuffled"):
            assert not shows_its_own(corpus, lesson)
    assert seen == set(SHARES)


def test_one_text_cut_into_sections_teaches_with_what_is_not_near(tmp_path, base):
    text = "\n\n".join(row["text"] for row in countries() + countries(1))
    corpus = read_corpus(tmp_path / "one", [{"id": "a", "title": "All", "text": text}], base)
    teaching = make_lessons(corpus)

    assert corpus.sections
    for lesson in map(teaching.lesson, range(12)):
        assert lesson.tokens.any()
        if lesson.kind == "others":
            assert not shows_its_own(corpus, lesson)


def test_documents_that_are_too_short_to_teach_are_refused(tmp_path, base):
    rows = [{"id": str(n), "title": f"T{n}", "text": f"Area {n}."} for n in range(4)]

    with pytest.raises(UserError, match="longer documents"):
        make_lessons(read_corpus(tmp_path / "tiny", rows, base))


@pytest.mark.parametrize(
    "text",
    [
        "面積: {} 平方キロ\n人口: {}万人、うち東京に89万人。\n",
        "Площадь: {} км\nЛидер: Анна Берг, Ёж {},5\n",
        "Fläche: {} km²½ 7° Österreich's Größe №{} Ελλάς42δ\n",
    ],
)
def test_texts_of_other_scripts_stay_whole_letters_whatever_is_changed(tmp_path, base, text):
    draw = np.random.default_rng(0)
    texts = ["".join(text.format(*draw.integers(10, 9999, 2)) for _ in range(3)) for _ in range(6)]
    rows = [{"id": str(n), "title": "", "text": one} for n, one in enumerate(texts)]
    corpus = read_corpus(tmp_path / "scripts", rows, base)
    teaching = make_lessons(corpus)
    document, rng = int(teaching.documents[0]), np.random.default_rng(0)

    for _ in range(10):
        after = corpus.tokenizer.decode(teaching._counterfactual(document, rng).tokens.tolist())
        assert "\ufffd" not in after
    assert any(teaching.lesson(number).neighbors.any() for number in range(6))


def test_other_digits_keep_their_number_and_their_points():
    rng = np.random.default_rng(0)
    for number in (b"1,234.5", b"7", b"2015", b"0.05"):
        drawn = [other_number(number, rng) for _ in range(20)]
        assert all(len(one) == len(number) for one in drawn)
        assert all(
            one[i : i + 1] == number[i : i + 1]
            for one in drawn
            for i in range(len(one))
            if number[i : i + 1] in b",."
        )
        assert all(one[:1] != b"0" or number[:1] == b"0" for one in drawn)
        assert len(set(drawn)) > 3


def test_a_field_is_its_name_with_its_header_or_alone_where_it_stands_under_one():
    data = b"Area: 5\nland:\ntotal: 7\nwater:\ntotal: 8 (2015)\nborder: 1\nborder: 2\n"

    assert {key: data[a:b] for key, (a, b) in fields_of(data).items()} == {
        b"/area": b"5",
        b"area": b"5",
        b"land/total": b"7",
        b"water/total": b"8 (2015)",
        b"water/border": b"1",  # the first of several lines
        b"border": b"1",
    }


def test_what_is_edited_tells_where_each_token_went(corpora):
    texts = Texts(corpora[0])
    document = next(iter(texts.tokens))
    data = texts.data(document)
    at = data.index(b"Area: ") + len(b"Area: ")
    end = data.index(b" ", at)

    edited = texts.edited(document, [(at, end, b"123456789")])

    assert (
        corpora[0].tokenizer.decode(edited.tokens.tolist()).encode() == data[:at] + b"123456789" + data[end:]
    )
    assert corpora[0].tokenizer.decode(edited.tokens[edited.values].tolist()) == "123456789"
    assert edited.moved[-1] == len(edited.tokens)
    assert (np.diff(edited.moved) >= 0).all()
    before, after = texts.tokens[document], edited.tokens
    kept = ~np.isin(edited.moved[:-1], np.flatnonzero(edited.values))
    assert (after[edited.moved[:-1][kept]] == before[kept]).all()


def test_changes_that_overlap_or_change_nothing_leave_the_text_whole(corpora):
    texts = Texts(corpora[0])
    document = next(iter(texts.tokens))
    data = texts.data(document)

    assert (texts.edited(document, []).tokens == texts.tokens[document]).all()
    twice = texts.edited(document, [(0, 8, b"Kingdom"), (4, 8, b"x")])
    assert corpora[0].tokenizer.decode(twice.tokens.tolist()).encode() == b"Kingdom" + data[8:]


def reader() -> Reader:
    torch.manual_seed(0)
    shape = {"vocab_size": 300, "dim": 32, "depth": 3}
    base = Llama(LlamaConfig(**shape, num_heads=4, num_kv_heads=2, head_dim=8, ff_dim=48))
    config = ReaderConfig(
        **shape, chunk_len=CHUNK, title_len=TITLE, match_layers=(1, 2), write_layers=(2,), match_dim=16
    )
    return Reader(config).attach(base)


def same(one, two) -> bool:
    parts = zip((*one[:4], *one.ahead), (*two[:4], *two.ahead), strict=True)
    return all(torch.equal(a, b) for a, b in parts)


def test_a_batch_is_the_same_whatever_was_kept_before(teaching):
    model = reader()
    fresh = ReaderBatches(teaching, model, count=4, batch_size=3, room=0)
    warm = ReaderBatches(teaching, model, count=4, batch_size=3, room=10**9)
    for number in (3, 1, 0, 2):
        assert warm.keep(number)
        assert not fresh.keep(number)

    assert all(same(fresh.train_batch(step), warm.train_batch(step)) for step in (0, 1, 5))


def test_each_time_around_has_each_lesson_once_in_another_order(teaching):
    batches = ReaderBatches(teaching, reader(), count=6, batch_size=2, room=0)
    orders = [[n for step in range(3 * a, 3 * a + 3) for n in batches._numbers(step)] for a in range(4)]

    assert all(sorted(order) == list(range(6)) for order in orders)
    assert len({tuple(order) for order in orders}) > 1
    assert batches.lessons_of(range(2)) == orders[0][:4]


def test_a_batch_of_several_lessons_costs_what_they_cost_alone(teaching):
    model = reader()
    batches = ReaderBatches(teaching, model, count=4, batch_size=2, room=0)
    one, two = (batches.one(number) for number in batches._numbers(0))

    together, _ = model.loss(batches.train_batch(0))
    alone = [model.loss(part)[0] * part.weights.sum() for part in (one, two)]

    total = one.weights.sum() + two.weights.sum()
    torch.testing.assert_close(together, sum(alone) / total, atol=1e-4, rtol=1e-4)


def test_queries_are_the_last_tokens_of_the_text_up_to_the_look(teaching, monkeypatch):
    asked = []
    whole = teaching.own.retriever.search
    monkeypatch.setattr(
        teaching.own.retriever,
        "search",
        lambda tokens, *a, **how: asked.append(tokens) or whole(tokens, *a, **how),
    )
    number = next(n for n in range(MANY) if teaching.lesson(n).kind == "oracle")
    asked.clear()
    lesson = teaching.lesson(number)

    assert asked[0].shape[1] == QUERY
    for look, query in enumerate(asked[0][1:], start=1):
        end = (look + 1) * CHUNK
        assert (query == lesson.tokens[end - QUERY : end]).all()
