"""The bytes of a message as a tree of elements, within bounds.

Stage: the first step of an XMLVend request. Enters: a body as it came. Leaves: elements with their namespaces, or a
refusal. Never: a document type, an entity, a processing instruction, anything fetched from elsewhere; more of a message
than the bounds below.

Standard: XML 1.0, Namespaces in XML.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NoReturn
from xml.parsers import expat

from vending.xmlvend.errors import NotAMessage

# As the edge takes bodies; the longest XMLVend request is some 3 kB.
BYTES_MAX = 64 * 1024
# A fault report, the deepest request, has 8 levels with its envelope.
DEPTH_MAX = 16
# A request has some 20 elements, a cheque's 15 more.
ELEMENTS_MAX = 200
# An element of XMLVend has at most 6.
ATTRIBUTES_MAX = 16

_XSI = "http://www.w3.org/2001/XMLSchema-instance"
_SEPARATOR = " "
_TYPE = f"{_XSI}{_SEPARATOR}type"


@dataclass(frozen=True, slots=True, kw_only=True)
class Element:
    """One element; `kind` is the name of its `xsi:type` without prefix, empty where it has none.

    Invariants: `attributes` are those without a namespace; `text` is what stands before, between and after the
    children, without white space at both ends.
    """

    namespace: str
    name: str
    kind: str = ""
    attributes: Mapping[str, str] = field(default_factory=dict)
    text: str = ""
    children: tuple[Element, ...] = ()


@dataclass(slots=True, kw_only=True)
class _Open:
    """An element that has begun."""

    namespace: str
    name: str
    attributes: dict[str, str]
    text: list[str] = field(default_factory=list)
    children: list[Element] = field(default_factory=list)


class _Builder:
    """Takes what the parser meets; the first thing that no message has ends it."""

    def __init__(self) -> None:
        self.root: Element | None = None
        self._open: list[_Open] = []
        self._elements = 0

    def start(self, name: str, attributes: dict[str, str]) -> None:
        self._elements += 1
        if self._elements > ELEMENTS_MAX or len(self._open) >= DEPTH_MAX or len(attributes) > ATTRIBUTES_MAX:
            raise NotAMessage(
                f"message: expected at most {ELEMENTS_MAX} elements, {DEPTH_MAX} deep, with {ATTRIBUTES_MAX} "
                "attributes each, got more"
            )
        namespace, _, local = name.rpartition(_SEPARATOR)
        self._open.append(_Open(namespace=namespace, name=local, attributes=attributes))

    def text(self, data: str) -> None:
        if self._open:
            self._open[-1].text.append(data)

    def end(self, _: str) -> None:
        done = self._open.pop()
        element = Element(
            namespace=done.namespace,
            name=done.name,
            kind=done.attributes.get(_TYPE, "").strip().rpartition(":")[2],
            attributes={name: value for name, value in done.attributes.items() if _SEPARATOR not in name},
            text="".join(done.text).strip(),
            children=tuple(done.children),
        )
        if self._open:
            self._open[-1].children.append(element)
        else:
            self.root = element

    def refuse(self, *_: object) -> NoReturn:
        raise NotAMessage("message: expected plain XML, got a document type, an entity or a processing instruction")


def read_tree(body: bytes) -> Element:
    """Read a message.

    Raises: NotAMessage for what is not well-formed, too large or too deep, and for document types, entities and
        processing instructions, which XMLVend and SOAP 1.1 have no use for.
    """
    if len(body) > BYTES_MAX:
        raise NotAMessage(f"message: expected at most {BYTES_MAX} bytes, got {len(body)}")
    builder = _Builder()
    parser = expat.ParserCreate(namespace_separator=_SEPARATOR)
    parser.buffer_text = True
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.text
    # Without a document type nothing can be declared, so nothing can be expanded or fetched; the others stand guard.
    parser.StartDoctypeDeclHandler = builder.refuse
    parser.EntityDeclHandler = builder.refuse
    parser.ExternalEntityRefHandler = builder.refuse
    parser.ProcessingInstructionHandler = builder.refuse
    try:
        parser.Parse(body, True)
    except expat.ExpatError as error:
        raise NotAMessage(f"message: expected well-formed XML, got an error in line {error.lineno}") from None
    except (LookupError, ValueError):
        raise NotAMessage("message: expected UTF-8 or another encoding that is known, got none") from None
    assert builder.root is not None, "a well-formed document has a root"
    return builder.root
