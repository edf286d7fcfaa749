"""What a person has asked by SMS, in any of our languages.

Stage: where a message comes in. Takes its text; returns the command, the account's number if it names one, and the
language of its word. Never an account or a balance.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache

from billing.notices.kinds import Language
from billing.notices.templates import Command, phrases_of

TEXT_LENGTH_MAX = 1_600
_ACCOUNT = re.compile(r"[A-Za-z0-9_-]{1,32}", re.ASCII)
# Marks between a word and a number that people or telephones add.
_EDGES = " \t\r\n.,:;!?#'\"।"


@dataclass(frozen=True, slots=True, kw_only=True)
class Inbound:
    """A message as understood: no command where its first word is none.

    Invariants: `language` is None for an English word, which people of every language send. `rest` are the words after
    a coupon's command, as they were sent: they may be worth money, and show in no `repr`.
    """

    command: Command | None
    account: str | None = None
    language: Language | None = None
    rest: tuple[str, ...] = field(default=(), repr=False)


def read_inbound(text: str) -> Inbound:
    """Read the first word of a message as a command, the second as an account's number."""
    sent = [word for each in _composed(text[:TEXT_LENGTH_MAX]).split() if (word := each.strip(_EDGES))]
    words = [word.casefold() for word in sent]
    found = _commands().get(words[0]) if words else None
    if found is None:
        return Inbound(command=None)
    command, language = found
    if command is Command.REDEEM:
        return Inbound(command=command, language=language, rest=tuple(sent[1:]))
    account = words[1] if len(words) > 1 and _ACCOUNT.fullmatch(words[1]) else None
    return Inbound(command=command, account=account, language=language)


def word_of(command: Command, language: Language) -> str:
    """Return the word that a command is written as in a language."""
    return phrases_of(language).commands[command][0]


@cache
def _commands() -> Mapping[str, tuple[Command, Language | None]]:
    found: dict[str, tuple[Command, Language | None]] = {}
    for language in Language:
        for command, words in phrases_of(language).commands.items():
            for word in words:
                spoken = None if language is Language.ENGLISH else language
                earlier = found.setdefault(_plain(word), (command, spoken))
                assert earlier == (command, spoken), f"{word}: expected one command in all languages, got two"
    return found


def _plain(text: str) -> str:
    """Return a text in one spelling: composed alike, small letters, without the invisible joiners of scripts."""
    return _composed(text).casefold()


def _composed(text: str) -> str:
    composed = unicodedata.normalize("NFKC", text)
    return "".join(mark for mark in composed if unicodedata.category(mark) != "Cf")
