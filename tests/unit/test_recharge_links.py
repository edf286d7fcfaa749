"""Recharge links: signed, of one account, until an instant."""

from __future__ import annotations

import re

from vending.recharge_links import LINK_PATTERN, make_link, read_link

SECRET = b"l" * 32


def test_link_opens_its_account_until_it_expires() -> None:
    """A second later, and under another secret, it opens nothing."""
    link = make_link(SECRET, 4_711, expires_s=1_000)
    assert re.fullmatch(LINK_PATTERN, link)
    assert read_link(SECRET, link, now_s=999) == 4_711
    assert read_link(SECRET, link, now_s=1_000) is None
    assert read_link(b"m" * 32, link, now_s=999) is None


def test_link_with_any_bit_changed_opens_nothing() -> None:
    """Nobody turns a link to one account into one to another, or makes it last."""
    link = make_link(SECRET, 4_711, expires_s=1_000)
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    for place, mark in enumerate(link):
        for bit in (1, 2, 4, 8, 16, 32):
            changed = link[:place] + alphabet[alphabet.index(mark) ^ bit] + link[place + 1 :]
            assert read_link(SECRET, changed, now_s=0) in (None, 4_711 if place == len(link) - 1 else None)
    assert read_link(SECRET, "", now_s=0) is None
    assert read_link(SECRET, link + "A", now_s=0) is None
