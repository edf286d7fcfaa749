"""The templates of notices: one TOML document a language, checked against the facts of every kind when it is read.

Stage: between data files and rendering. Leaves templates whose every placeholder is a fact of its kind, and that leave
no fact out. Never a value.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from importlib import resources
from string import Formatter
from typing import Any

from billing.notices.facts import FACTS, Facts, fact_types
from billing.notices.kinds import Language, NoticeError, NoticeKind

ACCOUNT = "account"
_UNITS = ("_minor", "_ms", "_wh", "_w")
_MONTHS = 12


class Command(StrEnum):
    """What can be asked for by SMS."""

    BALANCE = "balance"
    USE = "use"
    TOKEN = "token"
    STOP = "stop"
    START = "start"
    REDEEM = "redeem"


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """The texts of one kind in one language.

    Invariants: `sms` and `text` name every fact, `sms` also the account; `given` has the sentence of each fact that may
    be absent, `missing` what is said instead of some of them.
    """

    subject: str
    sms: str
    text: str
    given: Mapping[str, str]
    missing: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Phrases:
    """Everything that is written in one language; `kwh` and `kw` have a place for the number."""

    language: Language
    months: tuple[str, ...]
    rupee_sms: str
    rupee: str
    kwh: str
    kw: str
    footer: str
    words: Mapping[str, str]
    commands: Mapping[Command, tuple[str, ...]]
    templates: Mapping[NoticeKind, Template]


@cache
def phrases_of(language: Language) -> Phrases:
    """Return the texts of a language.

    Raises: NoticeError naming language, kind and rule.
    """
    file = resources.files("billing.notices").joinpath("templates", f"{language.value}.toml")
    return parse_phrases(language, file.read_text(encoding="utf-8"))


def parse_phrases(language: Language, text: str) -> Phrases:
    """Read the document of a language.

    Raises: NoticeError naming language, kind and rule.
    """
    document = tomllib.loads(text)
    kinds = {name for name in document if name in set(NoticeKind)}
    if kinds != set(NoticeKind):
        raise NoticeError(f"{language}: expected every kind, got none of {', '.join(sorted(set(NoticeKind) - kinds))}")
    try:
        phrases = Phrases(
            language=language,
            months=tuple(document["months"]),
            rupee_sms=document["rupee_sms"],
            rupee=document["rupee"],
            kwh=document["kwh"],
            kw=document["kw"],
            footer=document["footer"],
            words=document["words"],
            commands={command: tuple(document["commands"][command]) for command in Command},
            templates={kind: _template(language, kind, document[kind]) for kind in NoticeKind},
        )
    except KeyError as error:
        raise NoticeError(f"{language}: expected {error}, got none") from None
    if len(phrases.months) != _MONTHS:
        raise NoticeError(f"{language}: expected {_MONTHS} months, got {len(phrases.months)}")
    _require_words(phrases)
    return phrases


def placeholder_of(fact: str) -> str:
    """Return how templates name a fact: without the unit, e.g. `balance` for `balance_minor`."""
    return next((fact.removesuffix(unit) for unit in _UNITS if fact.endswith(unit)), fact)


def _template(language: Language, kind: NoticeKind, table: Mapping[str, Any]) -> Template:
    # TOML values: texts, or they do not format.
    template = Template(
        subject=table["subject"],
        sms=table["sms"],
        text=table["text"],
        given=table.get("given", {}),
        missing=table.get("missing", {}),
    )
    where = f"{language}, {kind}"
    types = fact_types(FACTS[kind])
    every = {placeholder_of(name) for name in types}
    optional = {placeholder_of(name) for name, fact in types.items() if fact.optional}
    _require_places(f"{where}, subject", template.subject, within=(every - optional) | {ACCOUNT})
    _require_places(f"{where}, sms", template.sms, within=every | {ACCOUNT}, all_of=every | {ACCOUNT})
    _require_places(f"{where}, text", template.text, within=every | {ACCOUNT}, all_of=every)
    if set(template.given) != optional or not set(template.missing) <= optional:
        raise NoticeError(f"{where}: expected a sentence for each of {sorted(optional)} that may be absent")
    for name, sentence in template.given.items():
        _require_places(f"{where}, given {name}", sentence, within={name}, all_of={name})
    for name, sentence in template.missing.items():
        _require_places(f"{where}, missing {name}", sentence, within=set())
    return template


def _require_places(
    where: str, text: str, *, within: set[str], all_of: set[str] | frozenset[str] = frozenset()
) -> None:
    try:
        places = {name for _, name, _, _ in Formatter().parse(text) if name is not None}
    except ValueError as error:
        raise NoticeError(f"{where}: expected a text with names in braces: {error}") from None
    if not places <= within:
        raise NoticeError(f"{where}: expected {', '.join(sorted(within))}, got {', '.join(sorted(places - within))}")
    if not places >= all_of:
        raise NoticeError(f"{where}: expected every fact, got none of {', '.join(sorted(all_of - places))}")


def _require_words(phrases: Phrases) -> None:
    """Every value that a fact of a closed set can have is a word in the language."""
    for facts in FACTS.values():
        for value in _closed_values(facts):
            if value not in phrases.words:
                raise NoticeError(f"{phrases.language}: expected a word for {value}, got none")


def _closed_values(facts: type[Facts]) -> set[str]:
    closed = [fact.type for fact in fact_types(facts).values() if issubclass(fact.type, StrEnum)]
    return {value.value for each in closed for value in each}
