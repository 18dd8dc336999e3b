"""What PDFs hold is read in letters and words as searches spell them; what is missing or doubtful is said."""

from __future__ import annotations

import textwrap
import zlib

import pytest
from places import TESTS
from uploads import pdf, read, refusal, texts, write

from benchmarks.small_pdfs import FLATE, FONT, drawn, packed, pages, stream
from retro_demo.documents.archives import ReadingLimits
from retro_demo.documents.pdf_pages import (
    by_columns,
    doubt_of_page,
    join_broken_words,
    ranges,
    read_pages,
    spelled,
)
from retro_demo.documents.sources import follow_reading

DATA = TESTS / "data" / "pdf"
TEXT = (
    "The lighthouse keeper wrote about tides and winter storms in his long book, and he told of ships that "
    "came home late with salt and timber from the north while people of the harbor waited on the quay with "
    "lamps. Another year brought fish, rain and letters; nobody knew who had sent them, or why the miller "
    "never spoke. "
)


def page_texts(content: bytes) -> list[str]:
    return [spelled(page["text"]) for page in read_pages(content, 100) if "text" in page]


@pytest.fixture(scope="module")
def cases():
    """The PDFs of tests/data, read as one folder."""
    return read(DATA)


def test_ligatures_are_folded(cases):
    assert (
        "The office staff finished the first floor with difficulty; affluent fish. 3"
        in texts(cases)["ligatures.pdf"].splitlines()
    )


def test_words_broken_at_line_ends_are_whole(cases):
    first = texts(cases)["hyphen.pdf"].splitlines()[0]
    assert first.startswith("The lighthouse keeper wrote about the understanding of tides and the harbor of")
    assert first.endswith("in winter.")


def test_a_pdf_with_only_an_owner_password_is_read(cases):
    assert "ACME CONFIDENTIAL REPORT\nPage 20 of 20\n" in texts(cases)["enc_aes128_owner.pdf"]


def test_pages_without_text_and_damaged_pages_are_counted_and_named(cases):
    said = " ".join(cases.warnings)

    assert len(cases.warnings) == 2
    assert "8 of 9 pages of mixed_scan.pdf (2-9)" in said
    assert "1 of 20 pages of onepage_damaged.pdf (6)" in said
    assert "Page 5 of 20" in texts(cases)["onepage_damaged.pdf"]
    assert "Page 7 of 20" in texts(cases)["onepage_damaged.pdf"]


def test_a_page_whose_content_breaks_off_is_damaged_and_a_blank_page_is_not():
    line = b" ".join(b"%d barrels of salt" % number for number in range(400))
    whole = zlib.compress(b"BT /F1 10 Tf 50 700 Td (%s) Tj ET" % line)
    broken = whole[: len(whole) // 2] + b"\xff" * 40 + whole[len(whole) // 2 + 40 :]

    *_, last = read_pages(pages(drawn(b"A page"), stream(broken, FLATE), packed(b"q Q")), 100)

    assert last == {"damaged": [2]}


def test_a_blank_page_is_no_scan(tmp_path):
    path = write(tmp_path / "p.pdf", pages(drawn(b"one"), packed(b"0 g 0 0 m 9 9 l S"), drawn(b"three")))
    reading = read(path, write(tmp_path / "o.txt", "other"))
    assert texts(reading)["p.pdf"] == "one\n\nthree"
    assert reading.warnings == []


def test_a_word_of_letters_placed_one_by_one_ends_where_its_gap_is_a_narrow_space():
    widths = {" ": 1.9, "s": 3.89, "h": 5.0, "p": 5.0, "a": 4.44}  # of Times at 10 points; others are 2.78
    x, placed = 50.0, []
    for letter in "ships sail":
        if letter != " ":
            placed.append((x, 700, letter.encode()))
        x += widths.get(letter, 2.78)
    font = FONT.replace(b"Helvetica", b"Times-Roman")

    assert page_texts(pages(drawn(*placed), font=font)) == ["ships sail"]


def test_an_accent_drawn_over_a_letter_makes_one_letter():
    font = FONT.replace(b">>", b"/Encoding/WinAnsiEncoding>>")
    line = drawn((50, 700, b"f"), (53.9, 700, b"\xa8"), (52.8, 700, b"u"), (58.4, 700, b"r die Reise"))

    assert page_texts(pages(line, font=font)) == ["f\u00fcr die Reise"]
    assert page_texts(pages(drawn(b"run `echo` 5 ^ 2"), font=font)) == ["run `echo` 5 ^ 2"]


def test_columns_of_prose_drawn_row_by_row_are_read_one_after_the_other():
    left, right = textwrap.wrap(TEXT, 40), textwrap.wrap(TEXT.upper(), 34)
    rows = [(50.0, 700 - 13 * i, line.encode()) for i, line in enumerate(left)]
    rows += [(310.0, 700 - 13 * i, line.encode()) for i, line in enumerate(right[: len(left)])]
    rows.sort(key=lambda row: (-row[1], row[0]))
    rows.insert(
        0, (50.0, 740.0, b"A heading that runs over both of the columns, from the left to the right one")
    )

    (page,) = page_texts(pages(drawn(*rows)))

    assert page.splitlines()[1 : 1 + len(left)] == left
    assert page.splitlines()[1 + len(left) :] == right[: len(left)]


def test_rows_of_a_table_stay_rows():
    cells = [[(50.0, 700 - 13 * i, b"Salt %d" % i), (310.0, 700 - 13 * i, b"paid in May")] for i in range(20)]
    (page,) = page_texts(pages(drawn(*(cell for row in cells for cell in row))))
    assert page.splitlines() == [f"Salt {i} paid in May" for i in range(20)]


def test_a_line_over_both_columns_ends_them():
    prose = "barrels of salt and of cod from the north"
    row = [(char, 5.0 * i) for i, char in enumerate(prose)]
    other = [(char, 300 + 5.0 * i) for i, char in enumerate(prose.upper())]
    full = [(char, 5.0 * i) for i, char in enumerate(prose * 2)]

    lines = by_columns([*[row + other] * 8, full, row + other], 295.0)

    assert lines == [*[prose] * 8, *[prose.upper()] * 8, prose * 2, prose, prose.upper()]


def test_values_of_a_form_are_read_with_their_labels():
    field = b"<</Type/Annot/Subtype/Widget/Rect[9 9 99 99]%s>>"
    form = [
        field % b"/FT/Tx/T(sailor.name)/TU(Full name)/V(Jane Harbor)",
        field % b"/FT/Ch/Ff 131072/T(port)/Opt[(Bergen)(Oslo)]/V(Bergen)",
        field % b"/FT/Tx/T(empty)",
    ]
    content = pages(drawn(b"Application"), more=dict(enumerate(form, start=5)))
    annotated = content.replace(b"/MediaBox", b"/Annots[5 0 R 6 0 R 7 0 R]/MediaBox").replace(
        b"/Pages 2 0 R", b"/Pages 2 0 R/AcroForm<</Fields[5 0 R 6 0 R 7 0 R]/XFA[(template)]>>"
    )

    head, page, _ = read_pages(annotated, 100)

    assert head == {"pages": 1, "xfa": True}
    assert page["form"] == ["Full name: Jane Harbor", "port: Bergen"]


@pytest.mark.parametrize("algorithm", ["RC4-40", "RC4-128", "AES-128", "AES-256"])
def test_all_ways_of_encryption_are_read_without_a_users_password_and_refused_with_one(algorithm):
    opened = pdf("words of a page", owner="secret", algorithm=algorithm)
    locked = pdf("words of a page", password="secret", algorithm=algorithm)

    assert page_texts(opened) == ["words of a page"]
    assert list(read_pages(locked, 100)) == [{"refused": "password"}]


@pytest.mark.parametrize(
    ("page", "expected"),
    [
        ("\ufb01le \ufb02oor o\ufb03ce \ufb06", "file floor office st"),
        ("di\x1berent o\x0b \x0cle, a\x0fuent", "different off file, affluent"),  # TeX, without a Unicode map
        ("\u2f42\uf900 \ufefb \ufb2a \U0001d465", "\u6587\u8c48 \u0644\u0627 \u05e9\u05c1 x"),
        ("co\u00adop a\u00a0b\u2009c\u200b e\u0301", "coop a b c \u00e9"),
        ("a\x00b\x7f\x9dc", "abc"),
        ("\u00bd 10 \u339e \uff21", "\u00bd 10 \u339e \uff21"),  # signs that mean something as they are
    ],
)
def test_letters_are_spelled_as_searches_spell_them(page, expected):
    assert spelled(page) == expected


@pytest.mark.parametrize(
    ("broken", "elsewhere", "expected"),
    [
        ("under|standing", "", "understanding"),
        ("un|der|stand", "", "understand"),
        ("low|level", "a low-level call", "low-level"),
        ("light|house", "the lighthouse, a light, a house", "lighthouse"),
        ("e|mail", "an e-mail", "e-mail"),
        ("pre|fer", "a pre-war house", "prefer"),
        ("case|by", "in case of case-law by law", "case-by"),
        ("COVID|19", "", "COVID-19"),
        ("Jean|Paul", "", "Jean-Paul"),
        ("HAR|BOR", "", "HARBOR"),
        ("пара|метр", "", "параметр"),
    ],
)
def test_a_hyphen_at_a_line_end_goes_unless_the_document_says_otherwise(broken, elsewhere, expected):
    text = f"{broken} and {elsewhere}".replace("|", "\x02")
    assert join_broken_words(text).split()[0] == expected


def test_other_hyphens_at_line_ends_are_found_and_ranges_and_code_stay():
    page = spelled("har\u2010\nbor a win-\nter in 1995-\n1999 and --no-\n\nx")
    assert join_broken_words(page) == "harbor a winter in 1995-\n1999 and --no-\n\nx"


NATURAL = {
    "english": TEXT,
    "german": "Die Donaudampfschifffahrtsgesellschaft und die Rindfleischetikettierung haben lange Namen, "
    * 3,
    "russian": "Смотритель маяка писал о зимних ветрах в своей длинной книге и о рыбаках с севера. " * 4,
    "chinese": "灯塔看守人在他的长书中写道，冬天的风暴来自北方。" * 20,
    "commands": r"\usecolumnsofproseinrows \drawthemonebyoneinorder " * 20,
    "bullets": "\uf0b7 first point \uf0b7 second point \uf0b7 third point " * 20,
}


@pytest.mark.parametrize("language", NATURAL)
def test_a_good_page_is_not_doubted(language):
    assert doubt_of_page(NATURAL[language], 0.0) == ""
    if NATURAL[language].isascii():  # a guess is good for these
        assert doubt_of_page(NATURAL[language], 0.9) == ""


def shifted(text: str) -> str:
    """As numbers of glyphs read as characters: what a subset of a font gives without its map."""
    return "".join(chr(ord(char) - 29) if char.isalpha() else char for char in text)


@pytest.mark.parametrize(
    ("page", "unmapped", "numbers", "expected"),
    [
        (shifted(TEXT * 2), 0.9, 0.0, "garbled"),
        (NATURAL["russian"].encode("cp1251").decode("latin-1"), 0.0, 0.0, "garbled"),
        (NATURAL["chinese"], 0.9, 0.9, "garbled"),  # as numbers of glyphs look
        ("".join(chr(ord(char) % 27) for char in TEXT), 0.9, 0.0, "garbled"),
        ("the lef\ue000 end of a shi\ue000ed dri\ue000 " * 5, 0.0, 0.0, "garbled"),
        (TEXT.replace(" ", ""), 0.0, 0.0, "glued"),
    ],
)
def test_a_page_of_wrong_letters_or_of_words_without_spaces_is_doubted(page, unmapped, numbers, expected):
    assert doubt_of_page(page, unmapped, numbers) == expected


def test_doubtful_pages_are_named_in_one_sentence_a_kind(tmp_path):
    glued = drawn(*(line.replace(" ", "").encode() for line in textwrap.wrap(TEXT, 70)))
    good = drawn(*(line.encode() for line in textwrap.wrap(TEXT, 70)))
    paths = [
        write(tmp_path / "a.pdf", pages(good, glued, glued)),
        write(tmp_path / "b.pdf", pages(glued, good)),
    ]
    (warning,) = read(*paths).warnings
    assert "2 of 3 pages of a.pdf (2-3), 1 of 2 pages of b.pdf (1)" in warning


def test_of_many_pages_the_first_are_named():
    assert ranges([1, 2, 3, 7, 9, 10]) == "1-3, 7, 9-10"
    assert ranges(range(1, 99, 2)).endswith("15, ...")


ENDLESS = {
    4: stream(b"/X Do /X Do", b"/Type/XObject/Subtype/Form/BBox[0 0 9 9]/Resources<</XObject<</X 4 0 R>>>>")
}


def test_a_pdf_that_crashes_its_reader_or_takes_too_long_ends_in_a_sentence(tmp_path):
    path = write(tmp_path / "loop.pdf", pages(stream(b"/X Do"), more=ENDLESS))

    assert "loop.pdf cannot be read" in refusal(path, limits=ReadingLimits(pdf_memory=100_000_000))
    late = refusal(path, limits=ReadingLimits(pdf_seconds=0, pdf_memory=400_000_000))
    assert "more than 0 seconds" in late


def test_long_readings_tell_how_many_kilobytes_are_read(tmp_path):
    write(tmp_path / "a.pdf", pages(*[drawn(TEXT.encode())] * 6) + b"%" * 400_000)
    write(tmp_path / "b.txt", "words of a text\n" * 20_000)
    total = sum(path.stat().st_size for path in tmp_path.iterdir())

    told = [event.to_json() for event in follow_reading([tmp_path], fields={})]

    assert {(event["stage"], event["total"]) for event in told} == {("read", -(-total // 1000))}
    done = [event["done"] for event in told]
    assert done == sorted(set(done))
    assert sum(count < 400 for count in done) >= 4  # between the pages of the first file
    assert done[-1] == told[-1]["total"]
    assert len(list(follow_reading([write(tmp_path / "c.txt", "few words " * 400)], fields={}))) == 1


def test_text_typed_onto_a_page_is_read_and_comments_are_told(tmp_path):
    note = b"<</Type/Annot/Subtype/%s/Rect[9 9 99 99]/Contents(%s)/F %d>>"
    annotations = [
        note % (b"FreeText", b"typed", 4),
        note % (b"FreeText", b"hidden", 2),
        note % (b"Text", b"a remark", 4),
        note % (b"Highlight", b"", 4),
        note % (b"Link", b"a link", 4),
    ]
    content = pages(drawn(b"first"), drawn(b"second"))
    first = content.replace(b"/MediaBox", b"/Annots[%s]/MediaBox" % b" ".join(annotations), 1)
    path = write(tmp_path / "a.pdf", first)
    reading = read(path, write(tmp_path / "o.txt", "other"))
    assert texts(reading)["a.pdf"] == "first\n\ntyped\n\nsecond"
    (warning,) = reading.warnings
    assert "Comments" in warning
    assert "1 of 2 pages of a.pdf (1)" in warning
