"""Detects the encoding of a text that is not UTF-8, or says that it cannot be detected.

chardet ranks the encodings by how usual their pairs of letters are in some fifty languages. Three in four
of its errors put characters where no writer puts them (a capital after a small letter, a Greek letter
within a Latin word, a sign within a word). Candidates with such places are dropped here, and a candidate
that is not clearly the best is no answer: a wrong guess costs more than a refusal. How often the answer is
right on texts of fifty languages stands in docs/formats.md, measured by benchmarks/encodings.py.
"""

from __future__ import annotations

import codecs
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

SAMPLE_BYTES = 1 << 18
ENCODINGS = {
    "cp1252": "Windows-1252",
    "cp1250": "Windows-1250",
    "cp1251": "Windows-1251",
    "cp1253": "Windows-1253",
    "cp1254": "Windows-1254",
    "cp1255": "Windows-1255",
    "cp1256": "Windows-1256",
    "cp1257": "Windows-1257",
    "cp1258": "Windows-1258",
    "cp874": "Windows-874",
    "cp932": "Shift-JIS",
    "euc_jp": "EUC-JP",
    "gb18030": "GBK",
    "big5hkscs": "Big5",
    "cp949": "EUC-KR",
    "koi8-r": "KOI8-R",
    "koi8-u": "KOI8-U",
    "iso8859-1": "ISO-8859-1",
    "iso8859-2": "ISO-8859-2",
    "iso8859-5": "ISO-8859-5",
    "iso8859-6": "ISO-8859-6",
    "iso8859-7": "ISO-8859-7",
    "iso8859-8": "ISO-8859-8",
    "iso8859-9": "ISO-8859-9",
    "iso8859-13": "ISO-8859-13",
    "iso8859-15": "ISO-8859-15",
    "kz1048": "KZ-1048",
    "ptcp154": "PT154",
    "cp437": "code page 437",
    "cp737": "code page 737",
    "cp775": "code page 775",
    "cp850": "code page 850",
    "cp852": "code page 852",
    "cp857": "code page 857",
    "cp862": "code page 862",
    "cp866": "code page 866",
    "cp1125": "code page 1125",
    "mac-roman": "Mac Roman",
    "mac-latin2": "Mac Latin 2",
    "mac-cyrillic": "Mac Cyrillic",
    "mac-greek": "Mac Greek",
}
"""The encodings that are read -> how they are called; of two that read a text alike the first is named."""
WIDER = {
    "shift_jis": "cp932",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "big5": "big5hkscs",
    "cp950": "big5hkscs",
    "euc_kr": "cp949",
    "tis-620": "cp874",
    "iso8859-11": "cp874",
}
"""Codecs of Python -> those that read their texts as well, and more that is written under their names."""
BROWSERS = WIDER | {"ascii": "cp1252", "iso8859-1": "cp1252", "iso8859-9": "cp1254"}
"""What browsers read where a page names one of these (WHATWG, Encoding Standard)."""
ON_PAGES = ("iso2022_jp", "utf-8")  # what a page may say beside ENCODINGS
OF_NAMES = (
    *("cp437", "cp850", "cp852", "cp866", "cp737", "cp857", "cp862"),
    *("cp932", "gb18030", "big5hkscs", "cp949", "cp874"),
    *("cp1252", "cp1250", "cp1251", "cp1253", "cp1254", "cp1255", "cp1256"),
)
"""What programs write the names of files in."""
AHEAD = 0.02  # how much more confident another encoding than the usual one must be
WIDE = ("utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be")
ESCAPED = ("iso2022_jp", "iso2022_kr")
ESCAPE = b"\x1b$"  # what the first other letter of these begins with: they are ASCII otherwise

LEAST_OTHER = 3  # letters outside ASCII: from fewer nothing is concluded
LEAST_CONFIDENCE = 0.15  # chardet's: right texts have less of it in languages that it does not know
LEAST_ALONE = 0.01  # where no other encoding gives a text without odd places
MARGIN = 0.005  # between the best reading and another one
MOST_ODD = 0.02  # share of the letters outside ASCII
RARE = re.compile("[\u1400-\u167f\u2e80-\u2fff\u3100-\u4dff\ua000-\uabff\ufb50-\ufdff]")
JUDGED = 1_000  # of these letters at most are looked at
NO_CHARACTER = ("Cc", "Cn", "Co", "Cs", "Cf")
ANYWHERE = frozenset("’‘ʼ–—-·•…\u00ad\u200b\u200c\u200d\u200e\u200f")
NO_SCRIPT = "µªº"
MIXED_SCRIPTS = ("HIRAGANA", "KATAKANA", "CJK", "HANGUL", "BOPOMOFO", "HALFWIDTH", "FULLWIDTH", "IDEOGRAPHIC")

# Windows' typographic signs among English words: their bytes are letters in other encodings, which would
# stand oddly there. Other languages have them too, so this decides only where there is no other byte.
TYPOGRAPHIC = re.compile(
    rb"""(?<=[A-Za-z])\x92(?=(?:s|t|d|m|re|ve|ll)\b)           # the keeper's
    |(?<=s)\x92(?=[\s.,;:)])                                    # the keepers'
    |(?:(?<=[\s(\[>=-])|^)[\x91\x93](?=[A-Za-z0-9\[(<$\x91\x93])
    |(?<=[A-Za-z0-9.,!?;:)\]%>\x85])[\x92\x94](?=[\s.,;:!?)\]\x97<-]|$)
    |(?<=[\s(>])\xa9(?=[\s\d])
    |(?<![A-Za-z\x80-\xff])[\x80\xa3](?=\s?\d)|(?<=\d)\s?\x80(?![A-Za-z\x80-\xff])  # euros, pounds
    |(?<=\d)\s?\xb0(?=[\s.,;)CF])                                 # degrees""",
    re.VERBOSE | re.MULTILINE,
)
# What may stand beside them, but would be a letter elsewhere as well.
BESIDE = re.compile(
    rb"""(?<=[\s0-9])[\x96\x97](?=[\s0-9])|(?<=[a-z])\x97(?=[a-z])
    |(?<=[A-Za-z0-9.,!?)])\x85(?=[\s.)\x94]|$)
    |(?<=[\s0-9.,;:])\xa0|(?<=[\s(>A-Za-z])\xae(?=[\s,.)<])
    |\xa7(?=\s?\d)|(?<=\d)\s?\xa3(?![A-Za-z\x80-\xff])|(?<![\w\x80-\xff])[\xa1\xbf](?=[A-Z\xc0-\xde])
    |(?<![\w\x80-\xff])\xab(?=\s?[\w\xc0-\xff])|(?<=[A-Za-z0-9.,!?;:\s\xc0-\xff])\xbb(?![\w\x80-\xff])""",
    re.VERBOSE | re.MULTILINE,
)
# Letters of Western Europe with an accent; the bytes of most are the same letters in Windows-1250 and -1254.
ACCENTED = re.escape("áâäçéëíîóôöúüßàèìòùêñåæøãõïûÁÂÄÇÉËÍÎÓÔÖÚÜÀÈÌÒÙÊÑÅÆØÃÏÛ".encode("cp1252"))
LATIN_WORD = re.compile(rb"[A-Za-z]*[\x80-\xff][A-Za-z\x80-\xff]*")
ACCENTED_WORD = re.compile(rb"[A-Za-z]*(?:[%b][A-Za-z]+)*[%b]?" % (ACCENTED, ACCENTED))
MOST_ACCENTED = 1 / 3  # of the letters of a word that has more than one


@dataclass(frozen=True)
class Guess:
    """encoding: a codec, "" = it cannot be told; could_be: how the likeliest encodings are called, if any."""

    encoding: str
    could_be: tuple[str, ...] = ()


def name_of(encoding: str) -> str:
    """How people call a codec."""
    return ENCODINGS.get(encoding, encoding.upper().replace("_", "-").replace("ISO2022", "ISO-2022"))


def browsers_codec(name: str) -> str:
    """The codec that browsers take for an encoding that a page names, "" where it is none of text."""
    try:
        codec = codecs.lookup(name.lower().removeprefix("x-").replace("windows-", "cp")).name
    except LookupError:
        return ""
    codec = BROWSERS.get(codec, codec)
    return codec if codec in ENCODINGS or codec in ON_PAGES or codec.startswith("iso8859") else ""


def guess(sample: bytes) -> Guess:
    """The encoding of a text that is not UTF-8, from its first SAMPLE_BYTES or fewer.

    Of a text that was cut off the sample should end with a line or a word.
    """
    ranked = _ranked(sample)
    # chardet knows wide text by its zeros and line ends; Chinese may have none of them
    unlike_others = [one for one in ranked or WIDE if one in WIDE or (one in ESCAPED and ESCAPE in sample)]
    read = [one for one in unlike_others if _is_text(_decoded(sample, one))]
    if len(read) == 1 or (read and ranked):
        return Guess(read[0])
    if _typographic(sample):
        return Guess("cp1252")
    best = Guess("")
    if len(sample) - len(sample.translate(None, bytes(range(128, 256)))) >= LEAST_OTHER:
        best = _best_reading(sample, ranked)
        if best.encoding:
            return best
        # lines of ASCII say little of the encoding, and many of them make chardet unsure
        telling = b"\n".join(line for line in sample.split(b"\n") if not line.isascii())
        best = _best_reading(telling, _ranked(telling))
    if not best.encoding and _western(sample):
        return Guess("cp1252")
    return best


def guess_of_names(names: Sequence[bytes], usual: str) -> str:
    """The encoding of a few short names of one origin, `usual` where no other one reads them better.

    Names are too short for `guess`, but here something has to be chosen.
    """
    sample = b"\n".join(names)
    ranked = _ranked(sample)
    fit = [one for one in OF_NAMES if (text := _decoded(sample, one)) and not _odd_share(text)]
    return max(fit, key=lambda one: ranked.get(one, 0.0) + AHEAD * (one == usual), default=usual)


def _is_text(text: str) -> bool:
    """Whether wide characters make a text: read in the wrong order of bytes they are rare ones, and what is
    no text at all may be a few of them many times over."""
    begin = text[:JUDGED]
    usual = len(RARE.findall(text)) <= MOST_ODD * len(text) and _odd_share(text) <= MOST_ODD
    return usual and len(set(begin)) > min(len(begin) // 10, 4)


def _ranked(sample: bytes) -> dict[str, float]:
    """What chardet finds: codec -> confidence, the most confident first, each by its name in ENCODINGS."""
    import chardet  # takes 0.05 s, and most have no use for it

    ranked: dict[str, float] = {}
    for found in chardet.detect_all(sample, max_bytes=max(len(sample), 1), ignore_threshold=True):
        try:
            codec = codecs.lookup(found["encoding"] or "").name
        except LookupError:
            continue
        ranked.setdefault(WIDER.get(codec, codec), found["confidence"])
    return ranked


def _best_reading(sample: bytes, ranked: dict[str, float]) -> Guess:
    """The reading without odd places that is clearly ahead of the other ones."""
    order = list(ENCODINGS)
    known = _known(ranked)
    could_be = tuple(ENCODINGS[one] for one in known[:2])
    best, alone = 0.0, True
    near: list[tuple[float, str, str]] = []  # (share of odd places, text, encoding)
    for encoding in known:
        if near and ranked[encoding] <= best - MARGIN and (best >= LEAST_CONFIDENCE or not alone):
            break
        text = _decoded(sample, encoding)
        odd = _odd_share(text) if text else 1.0
        if odd > MOST_ODD:
            continue
        if not near:
            best = ranked[encoding]
        elif text != near[0][1]:
            alone = False
        if ranked[encoding] > best - MARGIN:
            near.append((odd, text, encoding))
    stranger = max((ranked[one] for one in ranked if one not in ENCODINGS), default=0.0)
    least = LEAST_ALONE if alone else LEAST_CONFIDENCE
    if not near or best < least or stranger > best + MARGIN:
        return Guess("", could_be)
    fewest = min(odd for odd, _, _ in near)
    readings = [(text, encoding) for odd, text, encoding in near if odd == fewest]
    if any(text != readings[0][0] for text, _ in readings):
        return Guess("", could_be)
    return Guess(min((encoding for _, encoding in readings), key=order.index))


def _typographic(sample: bytes) -> bool:
    """Whether all that is not ASCII are Windows' quotation marks, dashes and the like, where they belong."""
    rest, found = TYPOGRAPHIC.subn(b"", sample)
    return found > 0 and BESIDE.sub(b"", rest).isascii()


def _western(sample: bytes) -> bool:
    """Whether a text of few other letters is one in Windows-1252: these are accented ones within Latin words,
    and the likeliest reading of them without odd places is that very text."""
    letters = BESIDE.sub(b"", TYPOGRAPHIC.sub(b"", sample))
    for word in LATIN_WORD.findall(letters):
        accented = len(word) - len(word.translate(None, bytes(range(128, 256))))
        if not ACCENTED_WORD.fullmatch(word) or (accented > 1 and accented > MOST_ACCENTED * len(word)):
            return False
    text = _decoded(letters, "cp1252")
    if letters.isascii() or _odd_share(text):
        return False
    readings = (_decoded(letters, one) for one in _known(_ranked(letters)))
    return next((one for one in readings if one and _odd_share(one) <= MOST_ODD), "") == text


def _known(ranked: Mapping[str, float]) -> list[str]:
    """Those of the encodings that are read, the most confident first."""
    order = list(ENCODINGS)
    return sorted(set(ranked) & set(order), key=lambda one: (-ranked[one], order.index(one)))


def _decoded(sample: bytes, encoding: str) -> str:
    """The text, but for a character that the sample cuts in two; "" where the bytes are of no such text."""
    try:
        return codecs.getincrementaldecoder(encoding)("strict").decode(sample)
    except UnicodeDecodeError:
        return ""


def _odd_share(text: str) -> float:
    """How many of the characters outside ASCII stand where no writer puts them; above 1 = this is no text."""
    others = odd = 0
    for match in re.finditer(r"[^\x00-\x7f]|[\x00-\x08\x0e-\x19\x1c-\x1f]", text):
        others += 1
        if others > JUDGED:
            break
        at = match.start()
        odd += _oddness(text[at - 1 : at] if at else " ", match[0], text[at + 1 : at + 2] or " ")
    return odd / others if others else 0.0


@lru_cache(maxsize=1 << 16)
def _oddness(before: str, character: str, after: str) -> int:
    """Whether a character stands oddly between its neighbors: 0, 1, or a lot where it is none at all."""
    category = unicodedata.category(character)
    if character in ANYWHERE or "\u3000" <= character < "\u3040":
        return 0
    if category in NO_CHARACTER:
        return JUDGED
    if category[0] == "L":
        scripts = {_script(one) for one in (before, character, after) if one.isalpha()} - {""}
        if len(scripts) > 1 and _script(character):
            return 1
        if not _script(character) and character not in NO_SCRIPT:  # an ideograph within a word
            return int(before.isascii() and before.islower() and after.isascii() and after.islower())
        within = before.isupper() and after.isupper()
        return int(
            (category == "Lu" and before.islower()) or (category == "Ll" and (after.isupper() or within))
        )
    if category[0] == "M":
        return int(not (before.isalpha() or unicodedata.category(before)[0] == "M"))
    if character == "„":
        return int(before.isalpha())
    letters = [one.isalpha() and _script(one) != "" for one in (before, after)]
    if "\u2500" <= character < "\u25a0":  # lines and blocks
        return int(before.isalnum() or after.isalnum())
    return int(all(letters) or (category[0] == "S" and before.isascii() and before.islower()))


@lru_cache(maxsize=1 << 14)
def _script(letter: str) -> str:
    """The first word of a letter's name, which is its script; "" for those that stand beside any other."""
    first = unicodedata.name(letter, "").split(" ")[0].split("-")[0]
    return "" if letter in NO_SCRIPT or first in MIXED_SCRIPTS else first
