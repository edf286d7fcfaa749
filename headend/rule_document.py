"""Validation rules documents: TOML text to `ValidationRules`, every field checked, errors that name line and field.

Stage: where the utility's own rules enter. A document changes severity, action and limits of built-in rules for all
meters, or for a make and model; the form is described in docs/validation.md. It is refused as a whole.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from types import MappingProxyType
from typing import Any, NoReturn

from billing.money import BillingError
from billing.toml_lines import Path, lines_by_path
from headend.rules import RULES, Action, Change, Changes, Reason, RuleSet, Severity, ValidationRules, rule_set

# A utility has some dozens of models; nothing a person wrote comes near a megabyte.
DOCUMENT_CHARACTERS_MAX = 1_000_000
TEXT_LENGTH_MAX = 300
_HEAD = ("id", "title", "effective_from", "rule", "model")
_MODEL = ("make", "model", "rule")
_ID = re.compile(r"[a-z0-9][a-z0-9.-]{0,63}", re.ASCII)
_YEARS = range(2000, 2200)


class ValidationRulesError(BillingError):
    """A validation rules document breaks a rule of its form; the message names the line."""

    code = "validation_rules_error"


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleDocument:
    """A document as it is stored: the local day from which it holds, and what it says."""

    effective_from: date
    title: str
    rules: ValidationRules


@lru_cache(maxsize=64)
def parse_validation_rules(text: str) -> ValidationRules:
    """Return the rules that a stored document makes; of the same text the same value.

    Raises: ValidationRulesError.
    """
    return parse_rule_document(text).rules


@lru_cache(maxsize=64)
def parse_rule_document(text: str) -> RuleDocument:
    """Read a document.

    Raises: ValidationRulesError naming the line and what is wrong.
    """
    document, lines = _load(text)
    top = _Table(document, (), lines)
    top.require_known(_HEAD)
    effective_from = document.get("effective_from")
    # A TOML date with a time is read as a datetime, which Python counts among the dates.
    if type(effective_from) is not date or effective_from.year not in _YEARS:
        top.refuse(f"expected a date from 2000 to 2199, got {effective_from!r}", "effective_from")
    changes = _changes(top)
    models: dict[tuple[str, str], RuleSet] = {}
    makes: dict[str, Changes] = {}
    tables = top.tables("model")
    # A make's own changes come before those of its models, wherever they stand.
    for table in sorted(tables, key=lambda each: "model" in each.fields):
        table.require_known(_MODEL)
        make = table.text("make").casefold()
        model = table.text("model").casefold() if "model" in table.fields else ""
        if (make, model) in models:
            table.refuse(f"expected each make and model once, got {make} {model} again")
        own = _changes(table)
        if not model:
            makes[make] = own
        models[make, model] = rule_set(changes, makes.get(make, {}), own)
    rules = ValidationRules(id=_id(top), default=rule_set(changes), models=MappingProxyType(models))
    return RuleDocument(effective_from=effective_from, title=top.text("title"), rules=rules)


def _load(text: str) -> tuple[dict[str, Any], Mapping[Path, int]]:
    """Read TOML; return its value, untyped until each field is read, and the lines of its parts."""
    if len(text) > DOCUMENT_CHARACTERS_MAX:
        raise ValidationRulesError(f"validation rules: expected at most {DOCUMENT_CHARACTERS_MAX} characters")
    # As TOML reads it, and as editors count lines.
    text = text.replace("\r\n", "\n")
    try:
        return tomllib.loads(text), lines_by_path(text)
    except RecursionError:
        raise ValidationRulesError("validation rules: expected TOML, got lists nested without end") from None
    except ValueError as error:
        # A number of thousands of digits is a plain ValueError.
        raise ValidationRulesError(f"validation rules: expected TOML, {error}") from error


class _Table:
    """One table of a document; reads fields and refuses what is wrong, with the line of the field."""

    def __init__(self, fields: dict[str, Any], path: Path, lines: Mapping[Path, int]) -> None:
        self._path = path
        self._lines = lines
        # Untyped until each field is read.
        self.fields = fields

    def refuse(self, what: str, key: str | None = None) -> NoReturn:
        path = self._path if key is None else (*self._path, key)
        while path and path not in self._lines:
            path = path[:-1]
        field = "" if key is None else f"{key}: "
        raise ValidationRulesError(f"validation rules, line {self._lines.get(path, 1)}: {field}{what}")

    def require_known(self, known: Collection[str]) -> None:
        for key in self.fields:
            if key not in known:
                self.refuse(f"expected only {', '.join(known)}", key)

    def text(self, key: str) -> str:
        value = self.fields.get(key)
        if not isinstance(value, str) or not 0 < len(value) <= TEXT_LENGTH_MAX or not value.isprintable():
            self.refuse(f"expected one line of text, at most {TEXT_LENGTH_MAX} long, got {value!r}", key)
        return value

    def table(self, key: str) -> _Table:
        fields = self.fields.get(key, {})
        if not isinstance(fields, dict):
            self.refuse(f"expected a table, got {fields!r}", key)
        return _Table(fields, (*self._path, key), self._lines)

    def tables(self, key: str) -> list[_Table]:
        rows = self.fields.get(key, [])
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            self.refuse(f"expected [[{key}]] tables", key)
        return [_Table(row, (*self._path, key, n), self._lines) for n, row in enumerate(rows)]

    def one_of(self, key: str, allowed: Collection[str]) -> str | None:
        value = self.fields.get(key)
        if value is not None and value not in allowed:
            self.refuse(f"expected one of {', '.join(allowed)}, got {value!r}", key)
        return value

    def whole(self, key: str, least: int, most: int) -> int:
        value = self.fields.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            self.refuse(f"expected a whole number from {least} to {most}, got {value!r}", key)
        return value


def _id(top: _Table) -> str:
    value = top.text("id")
    if not _ID.fullmatch(value):
        top.refuse(f"expected a-z, 0-9, dots and dashes, at most 64, got {value!r}", "id")
    return value


def _changes(table: _Table) -> Changes:
    """Read the `[rule.<name>]` tables of a document or a model."""
    rules = table.table("rule")
    rules.require_known([reason.value for reason in RULES])
    return {Reason(name): _change(rules.table(name), Reason(name)) for name in rules.fields}


def _change(table: _Table, reason: Reason) -> Change:
    rule = RULES[reason]
    limits = {limit.name: limit for limit in rule.limits}
    table.require_known(("severity", "action", *limits))
    severity = table.one_of("severity", [each.value for each in Severity])
    action = table.one_of("action", [each.value for each in rule.actions])
    return Change(
        severity=None if severity is None else Severity(severity),
        action=None if action is None else Action(action),
        limits={
            name: table.whole(name, limit.least, limit.most) for name, limit in limits.items() if name in table.fields
        },
    )
