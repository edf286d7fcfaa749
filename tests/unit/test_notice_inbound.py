"""What people ask by SMS, as it is understood."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.notices import Language
from billing.notices.inbound import Inbound, read_inbound, word_of
from billing.notices.templates import Command, phrases_of


@pytest.mark.parametrize("text", ["BAL", "bal", " Bal. ", "BALANCE?", "Bal\n", "ＢＡＬ", "BAL please"])
def test_english_word_is_understood_in_any_spelling(text: str) -> None:
    """People write as they like; English words leave the language to the contact."""
    asked = read_inbound(text)
    assert (asked.command, asked.language) == (Command.BALANCE, None)


@pytest.mark.parametrize("language", Language)
@pytest.mark.parametrize("command", Command)
def test_every_word_of_every_language_is_understood(language: Language, command: Command) -> None:
    """The answer comes in the language of the word, however its letters were composed."""
    for word in phrases_of(language).commands[command]:
        for form in ("NFC", "NFD"):
            asked = read_inbound(f"{unicodedata.normalize(form, word)}। 100200300")  # type: ignore[arg-type]  # A form.
            spoken = None if language is Language.ENGLISH else language
            if command is Command.REDEEM:
                assert asked == Inbound(command=command, language=spoken, rest=("100200300",))
            else:
                assert asked == Inbound(command=command, account="100200300", language=spoken)


def test_words_after_a_coupon_are_kept_as_they_were_sent() -> None:
    """A meter's serial may have capitals; what is worth money shows in no text of ours."""
    asked = read_inbound("redeem: 4821-0937 5566 1208, PB-77.")
    assert asked.rest == ("4821-0937", "5566", "1208", "PB-77")
    assert "4821" not in repr(asked)


def test_second_word_names_the_account() -> None:
    """In small letters, as it is compared."""
    assert read_inbound("TOKEN PB-77") == Inbound(command=Command.TOKEN, account="pb-77")
    assert read_inbound("TOKEN: PB-77, thanks").account == "pb-77"
    assert read_inbound("USE ੧੨੩").account is None
    assert read_inbound("BAL").account is None


@pytest.mark.parametrize("text", ["", "   ", "...", "hello", "BALL", "my balance", "\x00", "।"])
def test_other_text_is_no_command(text: str) -> None:
    """What is not understood is answered with what can be asked."""
    assert read_inbound(text) == Inbound(command=None)


@given(st.text())
def test_any_text_is_read_without_a_fault(text: str) -> None:
    """A message is from outside: nothing in it is an accident."""
    asked = read_inbound(text)
    assert asked.account is None or len(asked.account) <= 32


def test_invisible_joiners_do_not_matter() -> None:
    """Telephones put zero-width joiners between letters of our scripts."""
    assert read_inbound("बै\u200dलें\u200cस").command is Command.BALANCE
    assert word_of(Command.USE, Language.PUNJABI) == "ਖਪਤ"
