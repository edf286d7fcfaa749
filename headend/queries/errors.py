"""What the desk refuses before it looks, each with a stable code."""

from __future__ import annotations


class QueryRefused(Exception):
    """A question that cannot be answered as it was asked."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
