"""Segments of text messages."""

from __future__ import annotations

import pytest

from billing.notices.sms import sms_length


@pytest.mark.parametrize(
    ("text", "ucs2", "units", "segments"),
    [
        ("", False, 0, 1),
        ("a" * 160, False, 160, 1),
        ("a" * 161, False, 161, 2),
        ("a" * 306, False, 306, 2),
        ("a" * 307, False, 307, 3),
        ("€" * 80, False, 160, 1),
        ("€" * 81, False, 162, 2),
        ("ਅ" * 70, True, 70, 1),
        ("ਅ" * 71, True, 71, 2),
        ("ਅ" * 134, True, 134, 2),
        ("ਅ" * 201, True, 201, 3),
        ("a" * 69 + "₹", True, 70, 1),
        ("😀" * 36, True, 72, 2),
    ],
)
def test_segments_are_counted_by_alphabet(text: str, ucs2: bool, units: int, segments: int) -> None:
    """160 or 153 septets, 70 or 67 units; one mark outside the default alphabet changes all."""
    length = sms_length(text)
    assert (length.ucs2, length.units, length.segments) == (ucs2, units, segments)


def test_rule_on_the_most_segments_depends_on_the_alphabet() -> None:
    """Two in the default alphabet, three in another script."""
    assert sms_length("a" * 306).fits
    assert not sms_length("a" * 307).fits
    assert sms_length("ਅ" * 201).fits
    assert not sms_length("ਅ" * 202).fits
