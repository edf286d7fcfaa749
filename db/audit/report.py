"""What an audit finds: counts and examples by check, and the first account that breaks one.

Stage: filled while the checks run, read by whoever asked. What is reported does not depend on the order in which
chunks were read: examples are those of the lowest ids.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field

EXAMPLES_MAX = 5
# An account that breaks everything breaks some twenty checks; its journals are shown by name up to so many.
BREAKS_MAX, JOURNALS_MAX = 20, 5
# Sorts after every id: what belongs to the whole ledger.
LAST_KEY = sys.maxsize

CHECKS = (
    ("I1", "journals and whole ledger sum to zero; usage is booked by its lines, alone or by its batch", "journals"),
    ("I2", "checkpoints equal the sum of their journals, posted balances that of their legs", "accounts"),
    ("days", "no local day is missing between opening and last closed day", "accounts"),
    ("I3", "no reading is older than its meter's installation", "readings"),
    ("I3-batches", "received = stored + duplicate + rejected + quarantined", "batches"),
    ("I3-rows", "stored counts equal rows", "readings"),
    ("I4", "energy to date only rises", "readings"),
    ("I4-charged", "energy charged = last reading - installation; what is assessed has its correction", "accounts"),
    ("I5", "from-scratch rating equals what journals booked", "periods"),
    ("I6", "an accepted vend has one journal and one token of its amount, a refused one none", "vends"),
    ("I6-tokens", "a token was sold or asked for; its TID is its meter's own in its era", "tokens"),
    ("I6-records", "one version of a meter's record is in force, the others join, a pending one has tokens", "meters"),
    ("I7", "entries of floats have their journals and follow each other; no sale passed a limit", "entries"),
    ("I7-floats", "a float is what its last entry left; all of them are the ledger vendor_clearing", "vendors"),
    ("I7-batches", "batches of vendors join without gap or overlap", "batches"),
    ("coupons", "sold and not redeemed, with what licences hold, is the ledger coupons; redeemed is vended", "coupons"),
    (
        "payments",
        "online money is one vend of its order; what went back was taken back; ledger gateway_clearing",
        "orders",
    ),
    ("I8", "desired supply follows the balance, and the meter has it or was ordered to", "accounts"),
    ("I8-orders", "one open supply order a meter, rising epochs, no cut-off of a postpaid account", "orders"),
    ("I9", "one alarm per level and arm, none missing", "accounts"),
    ("I13", "an account's journals rise in booked time and day, none is of a day after it was booked", "journals"),
    ("I13-clock", "booked times follow the journals' sequence, none is ahead of the database's clock", "journals"),
    ("dues", "arrears, deposits, absences and reversals agree with the journals", "dues"),
    ("rechecks", "waiting for a look, not judged by their balance", "accounts"),
)


@dataclass(slots=True, kw_only=True)
class Check:
    """One invariant: how many things were checked, how many break it, and a few of these by name."""

    id: str
    title: str
    unit: str
    checked: int = 0
    broken: int = 0
    found: list[tuple[int, str]] = field(default_factory=list)

    @property
    def examples(self) -> list[str]:
        """The breaks of the lowest ids."""
        return [text for _, text in self.found]

    def add(self, key: int, example: str, number: int) -> None:
        """Count what is broken and keep it as an example while there are few of lower ids."""
        self.broken += number
        self.found = sorted([*self.found, (key, example)])[:EXAMPLES_MAX]

    def line(self) -> str:
        """Return the finding as a line for a person."""
        checked = f"{self.id:<10} {self.title}: {self.checked:,} {self.unit}, "
        return checked + (f"{self.broken:,} BROKEN: {'; '.join(self.examples)}" if self.broken else "ok")

    def to_json(self) -> dict[str, object]:
        """Return the finding as the `--json` output shows it."""
        return {
            "id": self.id,
            "title": self.title,
            "checked": self.checked,
            "broken": self.broken,
            "examples": self.examples,
        }


@dataclass(slots=True, kw_only=True)
class Offence:
    """What the account of the lowest id breaks: checks and texts, and the journals they name."""

    account_id: int
    breaks: list[tuple[str, str]] = field(default_factory=list)
    journal_ids: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditReport:
    """What an audit found, one check per invariant.

    `scope` says what was looked at; `first_offender` shows the broken account of the lowest id in full, None when no
    break is an account's.
    """

    checks: tuple[Check, ...]
    scope: str = "whole database"
    first_offender: Mapping[str, object] | None = None

    @property
    def clean(self) -> bool:
        """Tell whether no invariant is broken."""
        return not any(check.broken for check in self.checks)

    def lines(self) -> list[str]:
        """Return one plain line per check."""
        return [check.line() for check in self.checks]

    def to_json(self) -> dict[str, object]:
        """Return the report as the `--json` output shows it."""
        return {
            "clean": self.clean,
            "scope": self.scope,
            "checks": [check.to_json() for check in self.checks],
            "first_offender": self.first_offender,
        }


class Book:
    """The checks of one audit by id, and its first offender so far."""

    def __init__(self) -> None:
        self._checks = {name: Check(id=name, title=title, unit=unit) for name, title, unit in CHECKS}
        self.offence: Offence | None = None

    def count(self, check_id: str, number: int = 1) -> None:
        """Add to what a check has looked at."""
        self._checks[check_id].checked += number

    def counted(self, check_id: str) -> int:
        """Return what a check has looked at so far."""
        return self._checks[check_id].checked

    def add_broken(self, check_id: str, number: int) -> None:
        """Count what is broken beyond what was reported by name."""
        self._checks[check_id].broken += number

    def fail(
        self,
        check_id: str,
        example: str,
        *,
        key: int,
        number: int = 1,
        account_id: int | None = None,
        journal_id: int | None = None,
    ) -> None:
        """Report a break. `key` is the id by which examples are ordered."""
        self._checks[check_id].add(key, example, number)
        if account_id is None or (self.offence is not None and self.offence.account_id < account_id):
            return
        if self.offence is None or self.offence.account_id > account_id:
            self.offence = Offence(account_id=account_id)
        if len(self.offence.breaks) < BREAKS_MAX:
            self.offence.breaks.append((check_id, example))
        if journal_id is not None and len(self.offence.journal_ids) < JOURNALS_MAX:
            self.offence.journal_ids.append(journal_id)

    def report(self, scope: str, first_offender: Mapping[str, object] | None) -> AuditReport:
        """Return what was found."""
        return AuditReport(checks=tuple(self._checks.values()), scope=scope, first_offender=first_offender)
