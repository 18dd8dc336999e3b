"""What .docx and .epub share: XML parts of a zip, parsed without trusting them.

No entity is expanded, nothing outside the file is opened, and what is made into a tree is small.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from typing import Protocol
from urllib.parse import unquote

from lxml import etree  # pyright: ignore[reportAttributeAccessIssue]

from retro_demo.documents.archives import Parts
from retro_demo.errors import UserError

TREE_BYTES = 4_000_000  # of a table of contents, a list of relations, a set of styles
BLOCK_BYTES = 1 << 16
SAFE = {"resolve_entities": False, "no_network": True, "load_dtd": False, "huge_tree": False}


class Element(Protocol):
    """What is asked of an element of a tree."""

    tag: object

    def get(self, name: str, default: str = "", /) -> str: ...
    def items(self) -> list[tuple[str, str]]: ...
    def iter(self) -> Iterator[Element]: ...
    def itertext(self) -> Iterator[str]: ...


class Target(Protocol):
    """What is told of a part, as it is parsed. Names are those of lxml: "{namespace}name"."""

    def start(self, tag: str, attributes: dict[str, str], /) -> None: ...
    def end(self, tag: str, /) -> None: ...
    def data(self, data: str, /) -> None: ...
    def doctype(self, *about: str | None) -> None: ...
    def close(self) -> None: ...


def local(tag: str) -> str:
    """`"{namespace}name"` -> `"name"`: a format has several namespaces for one thing."""
    return tag.rpartition("}")[2]


def feed(parts: Parts, name: str, label: str, target: Target) -> None:
    """Parse a part of any length into `target`, block by block. Raises UserError."""
    parser = etree.XMLParser(target=target, **SAFE)
    with parts.open(name) as stream:
        try:
            while block := stream.read(BLOCK_BYTES):
                parser.feed(block)
            parser.close()
        except etree.LxmlError as error:
            raise _no_xml(name, label, error) from error


def tree(parts: Parts, name: str, label: str) -> Element:
    """A small part as a tree. Raises UserError."""
    with parts.open(name) as stream:
        data = stream.read(TREE_BYTES + 1)
    if len(data) > TREE_BYTES:
        raise UserError(f"{name} in {label} has more than {TREE_BYTES:,} bytes, which no such file has.")
    try:
        root = etree.fromstring(data, etree.XMLParser(remove_comments=True, remove_pis=True, **SAFE))
    except etree.LxmlError as error:
        raise _no_xml(name, label, error) from error
    if root is None:
        raise _no_xml(name, label, None)
    return root


def named(root: Element, name: str) -> Iterator[Element]:
    """All elements below of that local name."""
    return (element for element in root.iter() if isinstance(element.tag, str) and local(element.tag) == name)


def first_text(root: Element, name: str) -> str:
    """The text of the first element of that local name that has any; "" if there is none."""
    texts = ("".join(element.itertext()).strip() for element in named(root, name))
    return next(filter(None, texts), "")


def place_of(target: str, beside: str) -> str:
    """The name of the part that `target` means where it stands in the part `beside`."""
    path = unquote(target.partition("#")[0])
    return posixpath.normpath(posixpath.join(posixpath.dirname(beside), path)).lstrip("/")


def _no_xml(name: str, label: str, error: Exception | None) -> UserError:
    return UserError(
        f"{label} is broken: {name} in it is not XML that can be read ({error or 'it is empty'})."
    )
