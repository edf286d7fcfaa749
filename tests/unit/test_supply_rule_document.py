"""Supply rules documents: what they may say, and refusals that name document, line, table and rule."""

from __future__ import annotations

import re
from datetime import date, timedelta
from pathlib import Path

import pytest

from billing.supply_policy import ANY_TIME
from billing.supply_rule_document import (
    BUILTIN_SUPPLY_RULES,
    SupplyRulesError,
    builtin_supply_documents,
    parse_supply_rules,
)
from billing.toml_table import DOCUMENT_CHARACTERS_MAX

WHOLE = """\
id = "my-utility"
title = "Supply rules"
source = "order of 1 April 2026"
effective_from = 2026-12-01
default = "day"

[category]
GOVT = "office"
"Water Works" = "never"

[scheme.day]
title = "By day"
source = "order"
emergency_days = 2
limit_w = 500

[[scheme.day.window]]
days = ["monday", "tuesday"]
from = "08:00"
to = "12:00"

[[scheme.day.window]]
days = ["monday"]
from = "14:00"
to = "24:00"

[scheme.office]
title = "Office hours"
source = "order"
not_on_holidays = true
not_on_saturdays = [2, 4]

[scheme.never]
title = "Never"
source = "order"
exempt = true

[[holiday]]
name = "Republic Day"
each_year = "01-26"

[[holiday]]
name = "Diwali"
day = 2027-10-29
"""


SATURDAYS = "window = [{ days = ['saturday'], from = '10:00', to = '11:00' }]"
DIWALI = '[[holiday]]\nname = "Diwali"'


def changed(old: str, new: str) -> str:
    """Return the document with one place changed."""
    assert old in WHOLE
    return WHOLE.replace(old, new, 1)


def line_of(text: str) -> int:
    """Return the line of the document on which a text first stands."""
    return WHOLE[: WHOLE.index(text)].count("\n") + 1


def test_document_gives_schemes_categories_and_holidays() -> None:
    """Every field of the document is in the value."""
    rules = parse_supply_rules(WHOLE)
    assert (rules.id, rules.title, rules.source) == ("my-utility", "Supply rules", "order of 1 April 2026")
    assert rules.effective_from == date(2026, 12, 1)
    assert [scheme.name for scheme in rules.schemes] == ["day", "office", "never"]
    day, office, never = rules.schemes
    assert rules.default is day
    assert day.windows == (((480, 720), (840, 1440)), ((480, 720),), (), (), (), (), ())
    assert (day.emergency_days, day.limit_w, day.exempt) == (2, 500, False)
    # Only a scheme that does not cut on holidays has them.
    assert (day.holidays, day.yearly_holidays) == (frozenset(), frozenset())
    assert (office.holidays, office.yearly_holidays) == (frozenset({date(2027, 10, 29)}), frozenset({(1, 26)}))
    assert (office.windows, office.not_on_saturdays) == (ANY_TIME, (2, 4))
    assert never.exempt
    assert [holiday.name for holiday in rules.holidays] == ["Republic Day", "Diwali"]
    assert rules.last_holiday == date(2027, 10, 29)


def test_category_has_its_scheme_and_an_unnamed_one_the_default() -> None:
    """The document names the exceptions only."""
    rules = parse_supply_rules(WHOLE)
    assert [rules.of(each).name for each in ("GOVT", "Water Works", "DS", "")] == ["office", "never", "day", "day"]


def test_document_with_windows_line_ends_reads_the_same() -> None:
    """How an editor ends its lines changes nothing, not even the line of a refusal."""
    assert parse_supply_rules(WHOLE.replace("\n", "\r\n")) == parse_supply_rules(WHOLE)
    with pytest.raises(SupplyRulesError, match=f"line {line_of('emergency_days')},"):
        parse_supply_rules(changed("emergency_days = 2", "emergency_days = 0").replace("\n", "\r\n"))


@pytest.mark.parametrize(
    ("old", "new", "place", "rule"),
    [
        ('default = "day"', 'default = "night"', 'default = "day"', "the document: default: expected one of"),
        ('default = "day"\n', "", "", "default: expected one of the schemes day, office, never, got none"),
        ("effective_from = 2026-12-01", "effective_from = 2026", "effective_from", "expected a date such as"),
        ("effective_from = 2026-12-01", "effective_from = 9999-12-31", "effective_from", "a year from 2000 to 2199"),
        ('title = "Supply rules"', 'title = ""', "title", "title: expected one line of text"),
        ('title = "Supply rules"', "headline = 1", "title", "expected only category, default"),
        ('GOVT = "office"', 'GOVT = "offices"', "GOVT", "[category]: GOVT: expected one of the schemes day,"),
        ('"Water Works" =', '"" =', '"Water Works"', "[category]: expected the name of a category"),
        ("[scheme.never]", "[scheme.Never]", "[scheme.never]", "[scheme]: expected a name of a-z"),
        ("exempt = true", "exempt = 1", "exempt = true", "[scheme.never]: exempt: expected true or false, got 1"),
        ("exempt = true", "limit_w = 5\nexempt = true", "exempt = true", "[scheme.never]: expected only exempt,"),
        ("emergency_days = 2", "emergency_days = 31", "emergency_days", "expected a whole number from 1 to 30, got 31"),
        ("emergency_days = 2", "emergency_days = true", "emergency_days", "expected a whole number from 1 to 30"),
        ("limit_w = 500", "limit_w = 0", "limit_w", "[scheme.day]: limit_w: expected a whole number from 1"),
        ("limit_w = 500", "free = true", "limit_w", "[scheme.day]: expected only emergency_days, exempt, limit_w"),
        ('["monday", "tuesday"]', '["monday", "funday"]', '["monday", "tue', "days: expected weekdays out of monday"),
        ('["monday", "tuesday"]', '["monday", "monday"]', '["monday", "tue', "each once, got 'monday'"),
        ('["monday", "tuesday"]', "[]", '["monday", "tue', "days: expected a list of weekdays"),
        ('from = "08:00"', 'from = "8:00"', 'from = "08', "from: expected a time from 00:00 to 24:00, got '8:00'"),
        ('from = "08:00"', 'from = "08:60"', 'from = "08', "from: expected a time from 00:00 to 24:00"),
        ('from = "08:00"\n', "", "[[scheme.day.window]]", "[[scheme.day.window]] 1: from: expected a time"),
        ('to = "24:00"', 'to = "24:01"', 'to = "24', "[[scheme.day.window]] 2: to: expected a time from 00:00"),
        ('to = "12:00"', 'to = "08:00"', 'to = "12', "to: expected a time after 08:00, got 08:00; past midnight"),
        ('to = "12:00"', 'to = "07:00"', 'to = "12', "to: expected a time after 08:00, got 07:00"),
        ('from = "14:00"', 'from = "11:59"', '[[scheme.day.window]]\ndays = ["monday"]', "no overlap on monday"),
        ('from = "14:00"', 'at = "14:00"', 'from = "14:00"', "[[scheme.day.window]] 2: expected only days, from, to"),
        ("not_on_holidays = true", 'not_on_holidays = "yes"', "not_on_holidays", "expected true or false"),
        ("not_on_saturdays = [2, 4]", "not_on_saturdays = [0]", "not_on_saturdays", "Saturdays of a month from 1 to 5"),
        ("not_on_saturdays = [2, 4]", "not_on_saturdays = [2, 2]", "not_on_saturdays", "each once, got 2"),
        ("not_on_saturdays = [2, 4]", "not_on_saturdays = [true]", "not_on_saturdays", "each once, got true"),
        ("not_on_saturdays = [2, 4]", "not_on_saturdays = 2", "not_on_saturdays", "expected a list of Saturdays"),
        ('each_year = "01-26"', 'each_year = "02-30"', "each_year", "[[holiday]] 1: each_year: expected a month"),
        ('each_year = "01-26"', "each_year = 2026-01-26", "each_year", "expected a month and day such as 04-01"),
        ("day = 2027-10-29", 'each_year = "01-26"', DIWALI, "expected each holiday once, got Diwali"),
        ("day = 2027-10-29", "day = 2028-01-26", DIWALI, "Diwali on the day of Republic Day"),
        ("day = 2027-10-29", "day = 2033-01-01", "day = 2027", "[[holiday]] 2: day: expected 2031-12-05 or before"),
        ("day = 2027-10-29", "day = 2027-10-29T00:00:00", "day = 2027", "day: expected a date such as"),
        ("day = 2027-10-29\n", "", DIWALI, "[[holiday]] 2: expected either day or each_year"),
        ("day = 2027-10-29", 'day = 2027-10-29\neach_year = "10-29"', DIWALI, "either day or"),
    ],
)  # fmt: skip
def test_broken_document_is_refused_by_line_table_and_rule(old: str, new: str, place: str, rule: str) -> None:
    """The message names the document, the line of the field or table, and the rule."""
    line = line_of(place) if place else 1
    with pytest.raises(SupplyRulesError, match=re.escape(rule)) as refused:
        parse_supply_rules(changed(old, new))
    assert str(refused.value).startswith(f"supply rules my-utility, line {line}, ")


@pytest.mark.parametrize(
    "new",
    [
        "window = []",
        # Saturdays only, and none of them; or the fifth one, which December 2026 does not have.
        f"not_on_saturdays = [1, 2, 3, 4, 5]\n{SATURDAYS}",
        f"not_on_saturdays = [1, 2, 3, 4]\n{SATURDAYS}",
    ],
)
def test_scheme_that_could_not_cut_for_sixty_days_is_refused(new: str) -> None:
    """Who is never to be cut is exempt by word, not by an accident of windows."""
    rule = r"\[scheme\.office\]: expected a day to cut in any 60, or exempt = true, got none from 2026-12-01 on"
    with pytest.raises(SupplyRulesError, match=rule):
        parse_supply_rules(changed("not_on_saturdays = [2, 4]", new))


def test_scheme_that_a_long_list_of_holidays_closes_is_refused() -> None:
    """Two months of holidays in a row are a slip, also years ahead."""
    days = [date(2029, 3, 1) + timedelta(days=number) for number in range(60)]
    rows = "".join(f'[[holiday]]\nname = "Holiday {day}"\nday = {day}\n' for day in days)
    with pytest.raises(SupplyRulesError, match=r"\[scheme\.office\]: .* got none from 2029-03-01 on"):
        parse_supply_rules(WHOLE + rows)
    assert parse_supply_rules(WHOLE + rows[: rows.rindex("[[holiday]]")]).last_holiday == date(2029, 4, 28)


def test_not_on_holidays_without_a_calendar_is_refused() -> None:
    """A promise of holidays needs days."""
    text = WHOLE[: WHOLE.index("[[holiday]]")]
    with pytest.raises(SupplyRulesError, match=r"\[scheme\.office\]: not_on_holidays: expected \[\[holiday\]\] tables"):
        parse_supply_rules(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "supply rules document, line 1: id: expected a-z, 0-9, dots and dashes, at most 64, got none"),
        ('title = 1\nid = "My Utility"', "supply rules document, line 2: id: expected a-z"),
        ("id = ", "supply rules document: expected TOML"),
        ("x = " + "9" * 5000, "supply rules document: expected TOML"),
        ("x = " + "[" * 100_000, "supply rules document: expected TOML"),
        ("#" * (DOCUMENT_CHARACTERS_MAX + 1), "expected at most 1000000 characters, got 1000001"),
        ('id = "x"\neffective_from = 2026-01-01\nscheme = 1', "line 3, the document: scheme: expected a table, got 1"),
        ('id = "x"\neffective_from = 2026-01-01\n[scheme]\na = 1', "line 4, [scheme]: a: expected a table, got 1"),
        ('id = "x"\neffective_from = 2026-01-01\nholiday = [1]', "line 3, the document: holiday: expected [[holiday]]"),
        (
            'id = "x"\neffective_from = 2026-01-01\ntitle = "t"\nsource = "s"',
            "line 1, the document: default: expected one of the schemes , got none",
        ),
    ],
)
def test_text_that_is_no_document_is_refused(text: str, message: str) -> None:
    """What cannot be read is one error of this module, never another."""
    with pytest.raises(SupplyRulesError, match=re.escape(message)):
        parse_supply_rules(text)


@pytest.mark.parametrize("name", sorted(builtin_supply_documents()))
def test_builtin_document_is_named_like_its_file_and_illustrative(name: str) -> None:
    """Each ships under its id, says that it is illustrative, and exempts hospitals and the like."""
    rules = parse_supply_rules(builtin_supply_documents()[name])
    assert rules.id == name
    assert "illustrative" in rules.title
    for category in ("HOSPITAL", "WATER_WORKS", "STREET_LIGHT", "JAIL", "POLICE"):
        assert rules.of(category).exempt
    assert all(scheme.source for scheme in rules.schemes)


def test_builtin_documents_are_those_of_punjab_bihar_and_uttar_pradesh() -> None:
    """Punjab's hold before a utility has its own: at any time, government connections from 10:00 to 13:00."""
    assert sorted(builtin_supply_documents()) == ["bihar", "punjab", "uttar-pradesh"]
    punjab = parse_supply_rules(builtin_supply_documents()[BUILTIN_SUPPLY_RULES])
    assert punjab.effective_from == date(2024, 11, 14)
    assert punjab.of("DS").windows == ANY_TIME
    assert punjab.of("GOVT").windows == (*(((600, 780),),) * 5, (), ())
    assert punjab.of("GOVT").yearly_holidays == {(1, 26), (8, 15), (10, 2)}
    # Without a dated list the calendar never runs out.
    assert punjab.last_holiday is None


def test_builtin_happy_hours_and_emergency_days_are_as_read() -> None:
    """Bihar: 11:00 to 17:30 on weekdays and Saturdays. Uttar Pradesh: three days, by day, no second Saturdays."""
    bihar = parse_supply_rules(builtin_supply_documents()["bihar"]).default
    assert bihar.windows == (*(((660, 1050),),) * 6, ())
    uttar_pradesh = parse_supply_rules(builtin_supply_documents()["uttar-pradesh"]).default
    assert uttar_pradesh.windows == (*(((480, 1080),),) * 6, ())
    assert (uttar_pradesh.emergency_days, uttar_pradesh.not_on_saturdays) == (3, (2,))
    assert uttar_pradesh.yearly_holidays


def test_document_of_the_manual_is_good_and_its_refusal_as_printed() -> None:
    """What docs/supply-policy.md shows can be copied; the message it quotes is the one that is given."""
    manual = (Path(__file__).parents[2] / "docs" / "supply-policy.md").read_text(encoding="utf-8")
    text = manual.split("```toml\n")[1].split("```")[0]
    assert parse_supply_rules(text).of("HOSPITAL").exempt
    turned = text.replace('from = "08:00"\nto = "18:00"', 'from = "18:00"\nto = "08:00"')
    with pytest.raises(SupplyRulesError) as refused:
        parse_supply_rules(turned)
    assert f"`{refused.value}`" in manual.replace("\n", " ")
