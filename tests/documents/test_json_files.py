"""Records in .jsonl: ids of any kind, keys that stand twice, files that are JSON of another form."""

from __future__ import annotations

import json

import pytest
from places import TESTS
from uploads import jsonl, read, refusal, texts, write

CASES = TESTS / "data" / "cases"


def test_a_key_that_stands_twice_is_refused_where_it_is_read(tmp_path):
    assert "Line 1 of duplicate_keys.jsonl has the key text more than once" in refusal(
        CASES / "duplicate_keys.jsonl"
    )
    path = write(tmp_path / "r.jsonl", '{"text": "a", "note": 1, "note": 2}\n' + jsonl({"text": "b"}))
    assert list(texts(read(path)).values()) == ["a", "b"]


def test_ids_that_are_no_names_are_refused_with_all_their_lines():
    message = refusal(CASES / "bool_nan_ids.jsonl")
    assert "Line 1 of bool_nan_ids.jsonl has true as its id" in message
    assert "cannot be read either: 2" in message


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("1.0", "1"),
        ("1.5", "1.5"),
        ("-0.0", "0"),
        ("1e300", "1e+300"),
        (str(10**30), str(10**30)),
        ("null", "r#1"),
    ],
)
def test_a_whole_number_is_the_same_id_however_it_is_written(tmp_path, value, expected):
    path = write(tmp_path / "r", f'{{"id": {value}, "text": "a"}}\n' + jsonl({"id": 2, "text": "b"}))
    path = path.rename(tmp_path / "r.jsonl")
    assert list(texts(read(path))) == [expected.replace("r#1", "r.jsonl#1"), "2"]


def test_ids_that_mean_the_same_number_are_renamed_with_a_warning(tmp_path):
    reading = read(write(tmp_path / "r.jsonl", jsonl({"id": 1, "text": "a"}, {"id": 1.0, "text": "b"})))
    assert list(texts(reading)) == ["1", "1~2"]
    assert "1 -> 1~2" in reading.warnings[0]


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "true"])
@pytest.mark.parametrize("field", ["id", "title", "text"])
def test_values_that_are_no_words_are_named(tmp_path, field, value):
    record = {"id": "1", "text": "a", "title": "t"}
    line = json.dumps(record | {field: "?"}).replace('"?"', value)
    message = refusal(write(tmp_path / "r.jsonl", line))
    assert f"Line 1 of r.jsonl has {value} as its {field}" in message


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (json.dumps({"text": "a"}, indent=1), "ends within a JSON value"),
        (json.dumps([{"text": "a"}], indent=1), "name it .json"),
        ('[{"text": "a"}]', "name the file .json"),
        ('{"text": {"body": "a"}}', "has an object as its text"),
        ('{"text": "a"}{"text": "b"}', "is not valid JSON"),
    ],
)
def test_json_of_another_form_is_told_apart(tmp_path, content, expected):
    message = refusal(write(tmp_path / "r.jsonl", content))
    assert message.startswith("Line 1 of r.jsonl ")
    assert expected in message


def test_all_bad_lines_of_a_file_are_numbered_at_once(tmp_path):
    lines = ["no", '{"text": "a"}', "3", '{"text": 1}', ""]
    message = refusal(write(tmp_path / "r.jsonl", "\r\n".join(lines)))
    assert message.startswith("Line 1 of r.jsonl is not valid JSON")
    assert "cannot be read either: 3, 4" in message


def test_keys_in_another_case_are_taken_and_told(tmp_path):
    reading = read(write(tmp_path / "r.jsonl", jsonl({"ID": 1, "Text": "a"}, {"id": 2, "text": "b"})))
    assert texts(reading) == {"1": "a", "2": "b"}
    (warning,) = reading.warnings
    assert "Text as text in r.jsonl" in warning
