"""Facts into words: the text of a notice in one language, for one channel.

Stage: when a notice is shown or sent. Takes facts, account and calendar; returns subject and body. The same facts give
the same text, so that what is sent twice is the same message.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from enum import StrEnum

from billing.calendar import LocalCalendar
from billing.notices.facts import Facts, fact_types
from billing.notices.formats import format_day, format_instant, format_kw, format_rupees
from billing.notices.kinds import Channel, Language
from billing.notices.sms import SmsLength, sms_length
from billing.notices.templates import ACCOUNT, Phrases, phrases_of, placeholder_of
from billing.statement import format_kwh


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendered:
    """A notice in words; `length` is that of an SMS, None on other channels."""

    subject: str
    body: str
    length: SmsLength | None = None


def render(facts: Facts, *, language: Language, channel: Channel, account: str, calendar: LocalCalendar) -> Rendered:
    """Put facts into words. `account` is the account's number."""
    phrases = phrases_of(language)
    template = phrases.templates[facts.kind]
    words = {**fact_words(facts, phrases, channel, calendar), ACCOUNT: account}
    subject = template.subject.format_map(words)
    sentences = {**words, **_optional_sentences(template.given, template.missing, words)}
    match channel:
        case Channel.SMS:
            body = template.sms.format_map(sentences)
            return Rendered(subject=subject, body=body, length=sms_length(body))
        case Channel.EMAIL:
            footer = phrases.footer.format(account=account)
            return Rendered(subject=subject, body=f"{template.text.format_map(sentences)}\n\n{footer}\n")
        case Channel.APP:
            return Rendered(subject=subject, body=template.text.format_map(sentences))


def render_written(body: str, *, language: Language, channel: Channel, account: str) -> Rendered:
    """Return a notice that was written as a sentence, in English, before facts were stored."""
    footer = f"\n\n{phrases_of(language).footer.format(account=account)}\n" if channel is Channel.EMAIL else ""
    length = sms_length(body) if channel is Channel.SMS else None
    return Rendered(subject=f"Account {account}", body=body + footer, length=length)


def fact_words(facts: Facts, phrases: Phrases, channel: Channel, calendar: LocalCalendar) -> dict[str, str]:
    """Return each fact that is given as it is written in a language, by its placeholder."""
    written = ((name, getattr(facts, name)) for name in fact_types(type(facts)))
    return {
        placeholder_of(name): _word(name, value, phrases, channel, calendar)
        for name, value in written
        if value is not None
    }


def _optional_sentences(
    given: Mapping[str, str], missing: Mapping[str, str], words: Mapping[str, str]
) -> dict[str, str]:
    return {
        name: sentence.format_map(words) if name in words else missing.get(name, "") for name, sentence in given.items()
    }


def _word(name: str, value: object, phrases: Phrases, channel: Channel, calendar: LocalCalendar) -> str:
    # Names of months make a message longer by a third of a segment each.
    months = None if channel is Channel.SMS else phrases.months
    if isinstance(value, StrEnum):
        return phrases.words[value.value]
    if isinstance(value, date):
        return format_day(value, months)
    if not isinstance(value, int):
        return str(value)
    if name.endswith("_minor"):
        return format_rupees(value, sign=phrases.rupee_sms if channel is Channel.SMS else phrases.rupee)
    if name.endswith("_ms"):
        return format_instant(value, calendar, months)
    if name.endswith("_wh"):
        return phrases.kwh.format(format_kwh(value))
    return phrases.kw.format(format_kw(value)) if name.endswith("_w") else str(value)
