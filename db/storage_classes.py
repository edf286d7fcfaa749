"""What is kept for how long: classes of data, their defaults, and what is the least that may be set.

Stage: settings and the daily drop go by it. Values only. The least is what the rules of supply ask back for: an account
may be overhauled for twelve months before a complaint (R-20), the complaint itself with its paired meter and tests
takes months more, and demand is reviewed by financial year (R-7): two years of readings. Ledgers, vends, tokens,
corrections and what was done by whom are no class: they are kept for ever.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Final


class RetentionError(ValueError):
    """A text that is no retention; the message is one line."""


class DataClass(StrEnum):
    """A class of data that is dropped by age; the value is its name in settings and reports."""

    READINGS = "readings"
    HOURS = "rollup_hours"
    DAYS = "rollup_days"
    QUARANTINE = "quarantine"
    FLAGS = "reading_flags"
    EVENTS = "meter_events"
    NOTICES = "notices"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassRule:
    """How long a class is kept unless told otherwise, the least that may be told, and what it is. Units: days."""

    days: int
    days_least: int
    holds: str


# Three years of readings show the same season twice beside this one. Rollups take a fraction: five and ten years.
RULES: Final[Mapping[DataClass, ClassRule]] = {
    DataClass.READINGS: ClassRule(days=1_096, days_least=730, holds="readings as they came"),
    DataClass.HOURS: ClassRule(days=1_827, days_least=730, holds="readings by hour"),
    DataClass.DAYS: ClassRule(days=3_653, days_least=730, holds="readings by day; months are kept for ever"),
    DataClass.QUARANTINE: ClassRule(days=1_096, days_least=366, holds="quarantine that was decided on"),
    DataClass.FLAGS: ClassRule(days=1_096, days_least=366, holds="what rules noted of readings"),
    DataClass.EVENTS: ClassRule(days=1_096, days_least=366, holds="events of meters"),
    DataClass.NOTICES: ClassRule(days=1_096, days_least=366, holds="notices to consumers, with their deliveries"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """How many days each class is kept."""

    days: Mapping[DataClass, int]

    def age(self, kind: DataClass) -> timedelta:
        """Return how old a class gets."""
        return timedelta(days=self.days[kind])


BUILT_IN: Final = Retention(days={kind: rule.days for kind, rule in RULES.items()})


def parse_retention(text: str) -> Retention:
    """Read `readings=1461,notices=730` over the defaults; empty text is the defaults.

    Units: days. Raises: RetentionError for an unknown class, no number, or one below the least.
    """
    days = dict(BUILT_IN.days)
    for part in filter(None, (each.strip() for each in text.split(","))):
        name, _, figure = (each.strip() for each in part.partition("="))
        if name not in list(DataClass) or not figure.isascii() or not figure.isdecimal():
            raise RetentionError(f"retention: expected CLASS=DAYS with a class of {', '.join(DataClass)}, got {part!r}")
        kind, least = DataClass(name), RULES[DataClass(name)].days_least
        if not least <= int(figure) <= 36_525:
            raise RetentionError(f"retention of {name}: expected {least} to 36525 days, got {figure}")
        days[kind] = int(figure)
    # A day is made from its hours again when late data comes.
    if days[DataClass.HOURS] > days[DataClass.DAYS]:
        raise RetentionError("retention: expected rollup_days to be kept at least as long as rollup_hours")
    return Retention(days=days)
