"""Cursors: where an answer goes on, as a text that is handed out and taken back.

Stage: between a page's last row and the next request. A cursor names the last row that was given, not a number of rows,
so that rows added meanwhile neither shift nor double anything. It checks itself, and belongs to one question: what a
caller changed, or of another question, is refused. It opens nothing that the question does not.
"""

from __future__ import annotations

import hashlib
import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as NotBase64

from headend.queries.errors import QueryRefused

# Ids, instants in milliseconds and journal numbers; above every one of them.
_NUMBER_MAX = 2**62
_ID_MAX = 2**31
_CHECK_BYTES = 9
CURSOR_CHARACTERS_MAX = 200

# The last row that was given: a meter's or account's id, then its place among that one's rows.
Key = tuple[int, ...]


def write_cursor(question: str, key: Key) -> str:
    """Return a cursor behind a row of the answer to a question."""
    body = json.dumps(key, separators=(",", ":")).encode()
    return urlsafe_b64encode(_check(question, body) + body).decode().rstrip("=")


def read_cursor(question: str, text: str, length: int) -> Key:
    """Return the row that a cursor of a question names, a key of so many numbers.

    Raises: QueryRefused.
    """
    refused = QueryRefused(
        "bad_cursor", "cursor: expected `next` of the page before and the same question, got another"
    )
    if len(text) > CURSOR_CHARACTERS_MAX:
        raise refused
    try:
        whole = urlsafe_b64decode(text.encode("ascii") + b"=" * (-len(text) % 4))
    except (NotBase64, ValueError):
        raise refused from None
    check, body = whole[:_CHECK_BYTES], whole[_CHECK_BYTES:]
    if check != _check(question, body):
        raise refused
    try:
        key = tuple(json.loads(body))
    except (ValueError, TypeError):
        raise refused from None
    fits = len(key) == length and all(type(each) is int and abs(each) < _NUMBER_MAX for each in key)
    if not fits or not 0 <= key[0] < _ID_MAX:
        raise refused
    return key


def _check(question: str, body: bytes) -> bytes:
    return hashlib.blake2b(body, key=hashlib.sha256(question.encode()).digest(), digest_size=_CHECK_BYTES).digest()
