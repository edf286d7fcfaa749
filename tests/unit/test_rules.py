"""The table of validation rules, the page that shows it, and documents that change it."""

from pathlib import Path

import pytest

from db.quarantine import NOT_RELEASED, RESET_REASONS
from headend.release import FALLS
from headend.rule_document import ValidationRulesError, parse_rule_document, parse_validation_rules
from headend.rules import NEVER, RULES, Action, Reason, Severity
from headend.validate import REJECTED

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "validation.md"
HEAD = 'id = "x"\ntitle = "y"\neffective_from = 2026-01-01\n'


def rule_table() -> str:
    """Write the table of the built-in rules as the page shows it."""
    lines = ["| rule | catches | severity | action | may also | limits |", "|---|---|---|---|---|---|"]
    for reason, rule in RULES.items():
        others = ", ".join(f"`{each}`" for each in rule.actions if each is not rule.action)
        limits = ", ".join(f"`{limit.name}` {limit.value}" for limit in rule.limits)
        lines.append(f"| `{reason}` | {rule.catches} | {rule.severity} | `{rule.action}` | {others} | {limits} |")
    return "\n".join(lines)


def test_page_shows_the_rules_as_they_are() -> None:
    """The table of docs/validation.md is that of the code, word for word."""
    shown = PAGE.read_text("utf-8").split("<!-- rules -->\n")[1].split("\n<!-- /rules -->")[0]
    assert shown == rule_table()


def test_every_rule_has_a_row_whose_action_may_be_chosen() -> None:
    """No name without a rule, no rule whose own action is not among those allowed, no limit out of its bounds."""
    assert set(RULES) == set(Reason)
    for rule in RULES.values():
        assert rule.action in rule.actions
        assert all(limit.least <= limit.value <= limit.most for limit in rule.limits)
    assert all(RULES[reason].actions == (Action.REJECT,) for reason in REJECTED)


def test_desk_knows_the_rules_by_their_names() -> None:
    """What the desk refuses, and what it may release as a reset, are names of rules that hold readings."""
    assert set(NOT_RELEASED) < {reason.value for reason in Reason}
    assert set(RESET_REASONS) == {reason.value for reason in FALLS}


def test_document_changes_all_meters_a_make_and_a_model() -> None:
    """A model has what all have, changed by its make, changed by itself, in whatever order they stand."""
    text = (
        HEAD
        + '[rule.gap]\nlonger_than_s = 600\nseverity = "alarm"\n'
        + '[[model]]\nmake = "Acme"\nmodel = "X1"\nrule.wrong_interval = { action = "accept_and_flag", step_s = 900 }\n'
        + '[[model]]\nmake = "Acme"\nrule.gap.action = "accept"\nrule.jump.action = "reject"\n'
    )
    rules = parse_validation_rules(text)
    assert parse_validation_rules(text) is rules
    assert rules.default.gap_ms == 600_000
    assert rules.default.severities[Reason.GAP] is Severity.ALARM
    assert rules.default.step_ms is None
    model = rules.of("acme", "x1")
    assert (model.gap_ms, model.step_ms, model.actions[Reason.JUMP]) == (NEVER, 900_000, Action.REJECT)
    assert rules.of("acme", "other").step_ms is None
    assert rules.of("acme", "other").actions[Reason.JUMP] is Action.REJECT


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "validation rules document, line 1: id: expected a-z"),
        (
            HEAD.replace("2026-01-01", "2026-01-01T00:00:00Z"),
            "validation rules x, line 3, the document: effective_from: expected a date",
        ),
        (HEAD.replace('"x"', '"X y"'), "line 1: id: expected a-z"),
        (HEAD + "[rule.spike]\n", "line 4, [rule]: expected only before_installation, "),
        (
            HEAD + '[rule.jump]\naction = "accept"\n',
            "line 5, [rule.jump]: action: expected one of quarantine, reject, accept_and_flag",
        ),
        (
            HEAD + '[rule.jump]\nseverity = "grave"\n',
            "line 5, [rule.jump]: severity: expected one of info, warning, alarm",
        ),
        (
            HEAD + "[rule.gap]\nlonger_than_s = 59\n",
            "line 5, [rule.gap]: longer_than_s: expected a whole number from 60",
        ),
        (HEAD + "[rule.gap]\nlonger_than_s = true\n", "line 5, [rule.gap]: longer_than_s: expected a whole number"),
        (
            HEAD + "[rule.jump]\nlonger_than_s = 60\n",
            "line 5, [rule.jump]: expected only action, severity, got longer_than_s",
        ),
        (HEAD + "[[model]]\n", "line 4, [[model]] 1: make: expected one line of text"),
        (
            HEAD + '[[model]]\nmake = "A"\n[[model]]\nmake = "a"\n',
            "line 6, [[model]] 2: expected each make and model once",
        ),
        (HEAD + "rule = 1\n", "line 4, the document: rule: expected a table"),
        (HEAD + "x =", "expected TOML"),
        ("a = " + "[" * 20_000, "expected TOML"),
        ("#" * 1_000_001, "at most 1000000 characters"),
    ],
)
def test_wrong_document_is_refused_with_its_line(text: str, told: str) -> None:
    """The first thing that is wrong is named where it stands; nothing is guessed."""
    with pytest.raises(ValidationRulesError, match="validation rules") as refused:
        parse_rule_document(text)
    assert told in str(refused.value)
