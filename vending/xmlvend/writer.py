"""Elements as bytes: the one way in which an XMLVend answer is written.

Stage: the last step of an answer. Enters: elements with the fixed prefixes. Leaves: one document in UTF-8. Never: a
text that is not escaped, or a character that XML does not have.

Standard: XML 1.0, SOAP 1.1.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from xml.sax.saxutils import escape, quoteattr

from vending.xmlvend.names import BASE, METER, REVENUE, SOAP, XSI

_PREFIXES = {"soap": SOAP, "xsi": XSI, "b": BASE, "r": REVENUE, "m": METER}
# What XML 1.0 has no way to write.
_UNWRITABLE = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One element: `tag` with its prefix, `kind` the value of `xsi:type` with its prefix, or empty."""

    tag: str
    kind: str = ""
    attributes: Mapping[str, str] = field(default_factory=dict)
    text: str = ""
    children: Sequence[Node] = ()


def node(tag: str, *children: Node | None, kind: str = "", text: str = "", **attributes: str) -> Node:
    """Return an element; children that are None are left out."""
    present = tuple(child for child in children if child is not None)
    return Node(tag=tag, kind=kind, attributes=attributes, text=text, children=present)


def document(*body: Node) -> bytes:
    """Write a SOAP 1.1 message with its declaration."""
    named = "".join(f" xmlns:{prefix}={quoteattr(namespace)}" for prefix, namespace in _PREFIXES.items())
    inside = "".join(_written(each) for each in body)
    text = (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<soap:Envelope{named}><soap:Body>{inside}</soap:Body></soap:Envelope>'
    )
    return text.encode()


def _written(element: Node) -> str:
    attributes = {"xsi:type": element.kind, **element.attributes} if element.kind else element.attributes
    head = element.tag + "".join(f" {name}={quoteattr(_clean(value))}" for name, value in attributes.items())
    inside = escape(_clean(element.text)) + "".join(_written(child) for child in element.children)
    return f"<{head}>{inside}</{element.tag}>" if inside else f"<{head}/>"


def _clean(text: str) -> str:
    return _UNWRITABLE.sub("?", text)
