"""Addresses of contacts in their one form."""

from __future__ import annotations

import pytest

from billing.notices import Channel
from billing.notices.addresses import BadAddress, mask_address, read_address, read_email, read_phone, stored_phone


@pytest.mark.parametrize(
    "text",
    ["+919876543210", "919876543210", "9876543210", "09876543210", "+91 98765 43210", "98765-43210", "0091 9876543210"],
)
def test_number_has_one_form_however_it_was_written(text: str) -> None:
    """The same telephone is one contact, and found when it sends a message."""
    assert read_phone(text) == "+919876543210"


def test_number_of_another_country_needs_its_code() -> None:
    """Without plus and code only an Indian mobile number is understood."""
    assert read_phone("+49 (30) 901820") == "+4930901820"
    assert read_phone("0049 30 901820") == "+4930901820"
    for text in ("", "12345", "5876543210", "+0123456789", "+12345678901234567", "98765 4321O", "+91", "९८७६५४३२१०"):
        with pytest.raises(BadAddress, match="phone: expected"):
            read_phone(text)


def test_number_no_message_can_reach_is_kept_as_it_is() -> None:
    """A register may hold a landline; it is kept, without blanks."""
    assert stored_phone("98765 43210") == "+919876543210"
    assert stored_phone("0172 270 0000") == "01722700000"


def test_email_keeps_its_local_part_and_lowers_its_domain() -> None:
    """RFC 5321: only the domain is without case."""
    assert read_email(" Gurpreet.Singh+x@Example.IN ") == "Gurpreet.Singh+x@example.in"
    for text in ("", "a", "a@b", "a b@c.in", "a@c.in\r\nBcc: d@e.in", "ਗੁਰ@c.in", "a@-.", f"{'a' * 65}@b.in", "a@b..in"):
        with pytest.raises(BadAddress, match="e-mail: expected"):
            read_email(text)


def test_address_belongs_to_a_channel_that_delivers() -> None:
    """The app's list needs no address."""
    assert read_address(Channel.SMS, "98765 43210") == "+919876543210"
    assert read_address(Channel.EMAIL, "a@b.in") == "a@b.in"
    with pytest.raises(BadAddress, match="got app"):
        read_address(Channel.APP, "a@b.in")


def test_masked_address_can_be_told_but_not_used() -> None:
    """The end of a number, the first letter of a name."""
    assert mask_address("+919876543210") == "*********3210"
    assert mask_address("gurpreet@example.in") == "g***@example.in"
