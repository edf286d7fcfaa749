"""Validation rules documents: TOML text to `ValidationRules`, every field checked, errors that name line and field.

Stage: where the utility's own rules enter. A document changes severity, action and limits of built-in rules for all
meters, or for a make and model; the form is described in docs/validation.md. It is refused as a whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from types import MappingProxyType

from billing.money import BillingError
from billing.toml_table import Table, read_document
from headend.rules import RULES, Change, Changes, Reason, RuleSet, Severity, ValidationRules, rule_set

_HEAD = ("id", "title", "effective_from", "rule", "model")
_MODEL = ("make", "model", "rule")


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
    name, top = read_document(text, "validation rules", ValidationRulesError)
    top.require_known(_HEAD)
    effective_from = top.effective_from()
    changes = _changes(top)
    models: dict[tuple[str, str], RuleSet] = {}
    makes: dict[str, Changes] = {}
    tables = top.rows("model", _MODEL)
    # A make's own changes come before those of its models, wherever they stand.
    for table in sorted(tables, key=lambda each: "model" in each.fields):
        make = table.text("make").casefold()
        model = table.text("model").casefold() if "model" in table.fields else ""
        if (make, model) in models:
            table.refuse(f"expected each make and model once, got {make} {model} again")
        own = _changes(table)
        if not model:
            makes[make] = own
        models[make, model] = rule_set(changes, makes.get(make, {}), own)
    rules = ValidationRules(id=name, default=rule_set(changes), models=MappingProxyType(models))
    return RuleDocument(effective_from=effective_from, title=top.text("title"), rules=rules)


def _changes(table: Table) -> Changes:
    """Read the `[rule.<name>]` tables of a document or a model."""
    rules = table.table("rule")
    rules.require_known([reason.value for reason in RULES])
    return {Reason(name): _change(rules.table(name), Reason(name)) for name in rules.fields}


def _change(table: Table, reason: Reason) -> Change:
    rule = RULES[reason]
    limits = {limit.name: limit for limit in rule.limits}
    table.require_known(("severity", "action", *limits))
    return Change(
        severity=table.choice("severity", tuple(Severity)) if "severity" in table.fields else None,
        action=table.choice("action", rule.actions) if "action" in table.fields else None,
        limits={
            name: table.whole(name, limit.most, least=limit.least)
            for name, limit in limits.items()
            if name in table.fields
        },
    )
