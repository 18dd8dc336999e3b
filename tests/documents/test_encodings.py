"""Text in any encoding: read right with one warning, or refused in a sentence, never read wrong."""

from __future__ import annotations

import codecs

import pytest
from places import TESTS
from uploads import read, refusal, texts, write

from retro_demo.errors import UserError

CASES = TESTS / "data" / "cases"
GERMAN = (
    "Die Brücke über den Fluß wurde im Frühjahr geöffnet, und die Bürger gingen fröhlich über die Straße. "
    "Größere Schiffe müssen draußen ankern, weil der Hafen für sie zu flach ist."
)
FRENCH = (
    "Le gardien du phare écrivait une lettre à sa sœur chaque été. Elle répondait qu'un œuf coûtait déjà "
    "trois € au marché, et que le bœuf était trop cher là-bas. À la fin de l'année, ils se retrouvèrent."
)
POLISH = (
    "Latarnik pisał co zimę jeden list do siostry. Odpowiadała, że w porcie brakuje już śledzi, a łódź ojca "
    "stoi na brzegu. Wiosną spotkali się znów, żeby naprawić sieci i pójść razem na jarmark."
)
RUSSIAN = (
    "Каждую зиму смотритель маяка писал сестре одно письмо. Она отвечала, что в порту уже нет сельди, а "
    "лодка отца стоит на берегу. Весной они снова встретились, чтобы починить сети."
)
GREEK = (
    "Κάθε χειμώνα ο φύλακας του φάρου έγραφε ένα γράμμα στην αδελφή του. Εκείνη απαντούσε ότι στο λιμάνι "
    "δεν υπήρχαν πια ψάρια και ότι η βάρκα του πατέρα στεκόταν στην ακτή."
)
TURKISH = (
    "Fener bekçisi her kış kız kardeşine bir mektup yazardı. O da limanda artık balık kalmadığını, babasının "
    "kayığının kıyıda durduğunu söylerdi. İlkbaharda ağları onarmak için yeniden buluştular."
)
JAPANESE = (
    "灯台守は毎年の冬に、妹へ一通の手紙を書いた。妹は、港にはもう魚がいないこと、父の舟が岸に上げられて"
    "いることを知らせた。春になると、二人は網を直すためにまた会い、一緒に市場へ出かけた。"
)
CHINESE = (
    "每年冬天，守灯塔的人都给妹妹写一封信。妹妹回信说，港口已经没有鱼了，"
    "父亲的船停在岸边。春天他们又见面了，一起修补渔网，然后去集市买盐和面包。"
)
TAIWANESE = (
    "每年冬天，守燈塔的人都給妹妹寫一封信。妹妹回信說，港口已經沒有魚了，"
    "父親的船停在岸邊。春天他們又見面了，一起修補漁網，然後去市集買鹽和麵包。"
)
KOREAN = (
    "등대지기는 겨울마다 누이에게 편지를 한 통 썼다. 누이는 항구에 물고기가 더 이상 없고 아버지의 배가 "
    "바닷가에 놓여 있다고 답했다. 봄이 되자 두 사람은 그물을 고치려고 다시 만났다."
)
WRITTEN = [
    (GERMAN, "cp1252"),
    (GERMAN, "iso8859-1"),
    (GERMAN, "mac-roman"),
    (FRENCH, "iso8859-15"),
    (POLISH, "cp1250"),
    (POLISH, "iso8859-2"),
    (RUSSIAN, "cp1251"),
    (RUSSIAN, "koi8-r"),
    (RUSSIAN, "cp866"),
    (RUSSIAN, "utf-16-le"),
    (GREEK, "cp1253"),
    (TURKISH, "cp1254"),
    (JAPANESE, "shift_jis"),
    (JAPANESE, "euc_jp"),
    (JAPANESE, "iso2022_jp"),
    (JAPANESE, "utf-16-be"),
    (CHINESE, "gbk"),
    (TAIWANESE, "big5"),
    (KOREAN, "euc_kr"),
    (KOREAN, "utf-16-le"),
]


IDS = [f"{text.split()[0][:6]}-{encoding}" for text, encoding in WRITTEN]


@pytest.mark.parametrize(("text", "encoding"), WRITTEN, ids=IDS)
def test_text_in_another_encoding_is_read_right_with_one_warning(tmp_path, text, encoding):
    paths = [write(tmp_path / f"{name}.txt", text.encode(encoding)) for name in "ab"]
    reading = read(*paths)

    assert texts(reading) == {"a.txt": text, "b.txt": text}
    (warning,) = reading.warnings
    assert "Not UTF-8, so read as " in warning
    assert "a.txt, b.txt" in warning


def test_records_and_tables_are_decoded_from_their_first_other_letter_on(tmp_path):
    plain = "".join(f'{{"id": "{number}", "text": "plain"}}\n' for number in range(3_000))
    write(tmp_path / "r.jsonl", (plain + f'{{"id": "last", "text": "{RUSSIAN}"}}\n').encode("cp1251"))
    write(tmp_path / "t.csv", f"id;text\nt1;{RUSSIAN}\n".encode("koi8-r"))
    reading = read(tmp_path)
    assert texts(reading)["last"] == texts(reading)["t1"] == RUSSIAN
    assert [warning.split(": ")[1] for warning in reading.warnings] == ["r.jsonl.", "t.csv."]


def test_two_hundred_files_in_another_encoding_give_one_warning_with_their_number(tmp_path):
    for number in range(200):
        write(tmp_path / f"{number:03}.txt", f"{number}. {GERMAN}".encode("cp1252"))
    reading = read(tmp_path)
    assert all(GERMAN in document.text for document in reading.documents)
    (warning,) = reading.warnings
    assert warning.startswith("Not UTF-8, so read as Windows-1252: 000.txt, 001.txt")
    assert "(200 in all)" in warning


def test_the_german_case_keeps_its_umlauts(tmp_path):
    reading = read(CASES / "cp1252_german.txt", write(tmp_path / "b.txt", "b"))
    text = reading.documents[0].text
    assert text.startswith("Die Brücke über den Fluss wurde im Frühjahr geöffnet")
    assert "\ufffd" not in text


ALBANIAN = "Rojtari i fenerit i shkruante motrës një letër çdo dimër, dhe ajo përgjigjej. " * 9


@pytest.mark.parametrize(("text", "encoding"), [(ALBANIAN, "cp850"), (GERMAN, "cp500")])
def test_what_cannot_be_told_is_refused_rather_than_guessed(tmp_path, text, encoding):
    message = refusal(write(tmp_path / "a.txt", text.encode(encoding)))
    assert "The encoding of a.txt cannot be told" in message
    assert "save it in UTF-8" in message


@pytest.mark.parametrize(
    "text",
    [
        "name;stadt;text\nJörg;Köln;Das Haus am See\n",
        "Tickets cost £5 each, or £20 for five.",
        "Zwölf Stück kosten 20 £ oder 24 €.",
        "Señor Núñez vive aquí. ¿Qué pasó?",
        "« Le café est fermé », dit-elle.",
        "A naïve façade at 20 °C – “quoted”",
        "Æblet er rødt og grønt på træet",
    ],
)
def test_small_texts_of_western_europe_are_read_as_windows_1252(tmp_path, text):
    name = "a.csv" if ";" in text else "a.txt"
    write(tmp_path / name, text.encode("cp1252"))
    reading = read(tmp_path, write(tmp_path.parent / "plain" / "b.txt", "b"))
    assert "".join(document.text for document in reading.documents)[:-1] in text
    assert reading.warnings == [f"Not UTF-8, so read as Windows-1252: {name}."]


@pytest.mark.parametrize(
    ("text", "encoding"),
    [("Zażółć gęślą jaźń.", "cp1250"), ("Маяк.", "cp1251"), ("Größe", "cp850"), ("mājas ēka", "cp1257")],
)
def test_small_texts_of_others_are_not_taken_for_windows_1252(tmp_path, text, encoding):
    write(tmp_path / "a.txt", text.encode(encoding))
    write(tmp_path / "b.txt", "b")
    try:
        reading = read(tmp_path)
    except UserError:
        return
    assert not any("Windows-1252" in warning for warning in reading.warnings)


def test_text_in_utf_8_with_a_few_bad_bytes_stays_utf_8(tmp_path):
    content = GREEK.encode() + b" \xff\xe9 " + RUSSIAN.encode()
    reading = read(write(tmp_path / "a.txt", content), write(tmp_path / "b.txt", "b"))
    assert reading.documents[0].text == f"{GREEK} \ufffd\ufffd {RUSSIAN}"
    (warning,) = reading.warnings
    assert "Not clean UTF-8" in warning
    assert "a.txt (2)" in warning


def test_windows_quotation_marks_in_english_are_read(tmp_path):
    text = "“It’s late,” said the keeper’s sister – “the boats are in.”"
    reading = read(write(tmp_path / "a.txt", text.encode("cp1252")), write(tmp_path / "b.txt", "b"))
    assert reading.documents[0].text == text


def test_marks_of_joined_files_and_all_line_ends_are_read(tmp_path):
    joined = codecs.BOM_UTF8 + b"one\r" + codecs.BOM_UTF8 + b"two\r\nthree" + "\x85four\u2028five".encode()
    write(tmp_path / "a.txt", joined + codecs.BOM_UTF8 + b" six")
    write(tmp_path / "t.csv", codecs.BOM_UTF8 + b"id,text\rc,row\r")
    reading = read(tmp_path, CASES / "bom_in_the_middle.jsonl")
    assert texts(reading) == {"a.txt": "one\ntwo\nthree\nfour\nfive six", "c": "row", "1": "a", "2": "b"}
    assert reading.warnings == []


@pytest.mark.parametrize("padding", [b"\x1a", b"\0" * 300_000, b"\r\n\x1a\0\0\r\n"])
def test_what_fills_up_the_end_of_a_file_is_no_text(tmp_path, padding):
    write(tmp_path / "a.txt", b"one" + padding)
    write(tmp_path / "r.jsonl", b'{"id": "r", "text": "two"}\n' + padding)
    write(tmp_path / "t.csv", b"id,text\nt,three" + padding)
    assert texts(read(tmp_path)) == {"a.txt": "one", "r": "two", "t": "three"}


def test_zeros_within_a_text_are_refused(tmp_path):
    path = write(tmp_path / "a.txt", b"one\0" * 20_000 + b"two")
    assert "zero bytes" in refusal(path)


def test_lone_surrogates_are_told(tmp_path):
    reading = read(CASES / "lone_surrogate.jsonl")
    assert reading.documents[0].text == "half \ufffd pair"
    (warning,) = reading.warnings
    assert "lone_surrogate.jsonl#1 (1)" in warning
