"""Tables as spreadsheets and people write them: delimiters, headers, ends of files, uneven rows."""

from __future__ import annotations

import pytest
from places import TESTS
from uploads import read, refusal, texts, write

CASES = TESTS / "data" / "cases"


@pytest.mark.parametrize(
    ("name", "fields", "expected"),
    [
        ("sep_line.csv", "", ["0", "1"]),
        (
            "header_commas_in_quotes.csv",
            "",
            ["header_commas_in_quotes.csv#1", "header_commas_in_quotes.csv#2"],
        ),
        ("column_name_with_comma.csv", 'text="Body, English"', ["0", "1", "2"]),
        ("trailing_blank_line.csv", "", ["1", "2"]),
        ("trailing_ctrlz.csv", "", ["1", "2"]),
    ],
)
def test_tables_that_0_5_0_refused_are_read(name, fields, expected):
    reading = read(CASES / name, fields=fields)
    assert list(texts(reading)) == expected
    assert reading.warnings == []


@pytest.mark.parametrize(
    "content",
    [
        "\ufeffsep=|\r\nid|text\r\na|one, two; three\r\nb|four\r\n",
        '"sep=\t"\nid\ttext\na\t"one, two; three"\nb\tfour',
        '"note, long";"text";"id"\nx;one, two; three;a\n'.replace("one, two; three", '"one, two; three"')
        + "y;four;b\n",
        'id, "text"\na, "one, two; three"\nb, "four"\n',
        'id,text,,\na,"one, two; three",,\nb,four,,\n,,,\n'.replace("\n,,,\n", "\n"),
        'text|"a name\nof two lines"|id\n"one, two; three"|1,2,3|a\nfour|4,5,6|b\n',
        "\n \nid\ttext\na\tone, two; three\nb\tfour\n \n\t\n\x1a".replace("\n\t\n", "\n"),
    ],
)
def test_the_delimiter_is_what_parts_all_rows_alike(tmp_path, content):
    reading = read(write(tmp_path / "t.csv", content))
    assert texts(reading) == {"a": "one, two; three", "b": "four"}
    assert reading.warnings == []


def test_a_table_of_one_column_may_hold_commas(tmp_path):
    path = write(tmp_path / "t.csv", "text\nOne, two\nthree, four, five\n")
    assert list(texts(read(path)).values()) == ["One, two", "three, four, five"]


def test_rows_of_another_width_are_named_with_their_number(tmp_path):
    path = write(tmp_path / "t.csv", "sep=,\nid,text\n1,a\n2,b,c\n3,c,d\n4,d,,\n")
    message = refusal(path)
    assert "Row 2 of t.csv (line 4) has 3 columns where the header has 2" in message
    assert "1 more row" in message


@pytest.mark.parametrize(
    ("name", "content", "expected", "told"),
    [
        # as most programs write tabs: without quoting
        ("t.tsv", 'id\ttext\na\t"Yes" she said\nb\tone\n', ['"Yes" she said', "one"], "(line 2)"),
        ("t.tsv", 'id\ttext\na\t"Yes\nb\tone\nc\tno"\nd\ttwo', ['"Yes', "one", 'no"', "two"], "(line 2)"),
        ("t.tsv", 'id\ttext\na\t"Yes" so\nb\t"one"\n', ['"Yes" so', '"one"'], "(2, the first in line 2)"),
        ("t.csv", 'id\ttext\na\t"Yes\nb\tone\n', ['"Yes', "one"], "(line 2)"),
        # a stray quote at the start of a cell
        ("t.csv", 'id,text\na,"Yes\nb,one\n', ['"Yes', "one"], "(line 2)"),
        (
            "t.csv",
            'id,text\na,"Yes\nb,"one, two"\nc,"x\n',
            ['"Yes', "one, two", '"x'],
            "(2, the first in line 2)",
        ),
        ("t.csv", 'id;text\n\na;"Yes\nb;"one" x\n', ['"Yes', '"one" x'], "(2, the first in line 3)"),
        # quotes within quotes that are not doubled
        (
            "t.csv",
            'id,text\na,"He said "yes, so" to me"\nb,one',
            ['He said "yes, so" to me', "one"],
            "(line 2)",
        ),
        ("t.csv", 'id,text\na,"Yes, so" \nb,one\n', ["Yes, so", "one"], "(line 2)"),
        # in the header
        ("t.csv", 'id,"text\na,Yes\nb,one\n', ["Yes", "one"], "(line 1)"),
        ("t.csv", 'id,"text\na,Yes"\nb,one\n', ['Yes"', "one"], "(line 1)"),
        ("t.csv", 'id,text"\na,Yes\nb,one\n', ["Yes", "one"], ""),
    ],
)
def test_odd_quotes_are_letters_and_swallow_no_rows(tmp_path, name, content, expected, told):
    reading = read(write(tmp_path / name, content))
    assert list(texts(reading).values()) == expected
    assert (
        any("as letters" in warning and f"{name} {told}" in warning for warning in reading.warnings)
        or not told
    )


def test_a_row_that_is_too_wide_by_its_odd_quotes_is_refused_with_that_reason(tmp_path):
    message = refusal(write(tmp_path / "t.csv", 'id,text\na,"Yes, he said\nb,one\n'))
    assert "Row 1 of t.csv (line 2) has 3 columns where the header has 2, and quotes" in message


def test_odd_quotes_late_in_a_long_table_are_found_in_little_time(tmp_path):
    rows = [f"{number},plain text {number}" for number in range(20_000)]
    rows[5_000], rows[9_000], rows[19_000] = 'a,"stray', 'b,"one, two"', 'c,"stray again'
    reading = read(write(tmp_path / "t.csv", "id,text\n" + "\n".join(rows)))
    assert len(reading.documents) == 20_000
    assert [texts(reading)[name] for name in "abc"] == ['"stray', "one, two", '"stray again']
    assert "(2, the first in line 5,002)" in reading.warnings[0]


def test_a_cell_of_lines_that_could_be_rows_is_told(tmp_path):
    reading = read(write(tmp_path / "t.csv", 'id,text\na,"Yes\nb,one\nc,no"\nd,two\n'))
    assert texts(reading) == {"a": "Yes\nb,one\nc,no", "d": "two"}
    (warning,) = reading.warnings
    assert "rows of their own" in warning
    assert "t.csv (line 4)" in warning
    quoted = write(tmp_path / "q.csv", 'id,text\na,"Yes, so\nit is.\n\nOr no"\nb,two\n')
    assert read(quoted).warnings == []


def test_rows_may_end_before_the_header_and_those_without_their_text_are_counted(tmp_path):
    path = write(tmp_path / "t.csv", "id,text,lang,note\na,one\nb,two,de\nc\nd\n")
    reading = read(path)
    assert [(d.id, d.text, d.lang) for d in reading.documents] == [("a", "one", ""), ("b", "two", "de")]
    (warning,) = reading.warnings
    assert "end before their text" in warning
    assert "t.csv (2, the first in line 4)" in warning
    assert "empty" not in refusal(write(tmp_path / "u.csv", "id,text\na\n"))


@pytest.mark.parametrize(
    "content",
    [
        "1,The keeper wrote a letter\n2,He sent it\n",
        "A long first text that nobody would take for the name of a column, " * 400 + "\nanother\n",
        "".join(f'"{word} stands in a first row of many cells",' for word in range(1_000)) + "\n",
    ],
)
def test_a_table_without_a_header_is_refused_briefly(tmp_path, content):
    message = refusal(write(tmp_path / "t.csv", content))
    assert "t.csv has no field 'text'" in message
    assert "looks like data" in message
    assert len(message) < 1_200


@pytest.mark.parametrize(
    ("content", "fields", "expected"),
    [
        ("text,id,text\na,1,b\n", "", "2 columns named text"),
        ("body,body\na,b\n", "text=body", "2 columns named body"),
        ("text,Note,Note,\na,1,2,\nb,3,4,\n", "", ""),
        ("text,Text,TEXT\na,1,2\nb,3,4\n", "", ""),
    ],
)
def test_only_columns_that_are_read_must_have_a_name_of_their_own(tmp_path, content, fields, expected):
    path = write(tmp_path / "t.csv", content)
    if expected:
        assert expected in refusal(path, fields=fields)
    else:
        assert list(texts(read(path)).values()) == ["a", "b"]


@pytest.mark.parametrize("header", ["ID,TEXT", " Id ,Text", '"id"," text "'])
def test_names_in_another_case_are_taken_and_told(tmp_path, header):
    reading = read(write(tmp_path / "t.csv", f"{header}\na,one\nb,two\n"))
    assert texts(reading) == {"a": "one", "b": "two"}
    told = ["case" in warning and "in t.csv" in warning for warning in reading.warnings]
    assert told == ([] if header == '"id"," text "' else [True])


def test_a_name_that_is_nearly_right_is_offered(tmp_path):
    message = refusal(write(tmp_path / "t.csv", "id,body_text\n1,a\n"), fields="text=bodytext")
    assert "Do you mean 'body_text'?" in message


def test_errors_of_a_table_speak_of_its_own_delimiter(tmp_path):
    message = refusal(write(tmp_path / "a.tsv", "id\ttext\n1\ta\tb\n"))
    assert "values that hold tabs" in message
    assert "commas" not in message
    message = refusal(write(tmp_path / "b.tsv", "id,text\n1,a\n"))
    assert "b.tsv is parted by commas" in message
    assert "Do you mean" not in message


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_a_header_with_a_control_character_is_read(tmp_path, name):
    delimiter = {"a.csv": ",", "a.tsv": "\t"}[name]
    path = write(tmp_path / name, f"id{delimiter}text\x1a\n1{delimiter}a\n2{delimiter}b\n")
    assert texts(read(path)) == {"1": "a", "2": "b"}
