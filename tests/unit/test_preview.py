"""Bills of recorded profiles: preview, day-by-day journals and the oracle agree under every tariff that ships."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import date, timedelta
from functools import cache
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from billing.assigning import AssignmentRefused
from billing.calendar import LocalCalendar, from_ms, next_period
from billing.rating import Lines, added
from billing.running import Point, close_days, opening
from billing.tariff import TariffError
from billing.tariff_document import builtin_documents, builtin_tariff
from billing.terms import Terms, one_assignment
from meter_sim.recorded import Profile, parse_profile
from prepaid.preview import curve_of, demands_of, preview, preview_curve, tariff_of
from tests.properties import oracle

KOLKATA = LocalCalendar(ZoneInfo("Asia/Kolkata"))
SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
RECORDED = (
    "uci_household_power_2007-02-01_02.txt",
    "uk-electricity-hdd-only-hourly-sample-0.csv.gz",
    "uk-electricity-hdd-only-hourly-sample-1.csv.gz",
)
MINUTE_MS, HALF_HOUR_MS, HOUR_MS, DAY_MS = 60_000, 1_800_000, 3_600_000, 86_400_000
STEPS_MS = {"minute": MINUTE_MS, "hour": HOUR_MS, "day": DAY_MS}
# Records are moved to begin here, so that dated adjustments, seasons and holidays of the orders fall into them.
MOVED_TO = date(2026, 5, 20)
# Load, area, and whether the meter is the licensee's: the first exceeds its load, the second pays no rent.
HOMES = ((700, "urban", True), (8_000, "rural", False))


@cache
def recorded_curve(name: str) -> tuple[Point, ...]:
    """Return a recorded file as a meter's curve, moved by whole days."""
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"{name} is not beside the repository")
    points = curve_of(parse_profile(name, path.read_bytes()))
    shift_ms = (MOVED_TO - from_ms(points[0].at_ms).date()).days * DAY_MS
    return tuple(Point(at_ms=point.at_ms + shift_ms, energy_wh=point.energy_wh) for point in points)


def thinned(points: tuple[Point, ...], step_ms: int) -> list[Point]:
    """Keep the points at whole steps, the installation and the last one."""
    return [point for point in points if point.at_ms % step_ms == 0 or point in (points[0], points[-1])]


def delivered(readings: list[Point], chance: random.Random) -> Iterator[list[Point]]:
    """Deliver readings some days at a time, within them in any order and 30 % of them again."""
    first = 0
    while first < len(readings):
        many = chance.randrange(1, 400)
        block = readings[first : first + many]
        block += chance.sample(block, len(block) * 3 // 10)
        chance.shuffle(block)
        yield block
        first += many


def debits_by_month(points: list[Point], terms: Terms, chance: random.Random) -> dict[date, tuple[int, Lines]]:
    """Return energy and lines of the day journals of each month, days closed while readings come."""
    state = opening(terms, posted_minor=0, at=points[0])
    stored = {points[0].at_ms: points[0].energy_wh}
    debits: dict[date, tuple[int, Lines]] = {}

    def close(until: date) -> None:
        nonlocal state, stored
        known = [Point(at_ms=at_ms, energy_wh=wh) for at_ms, wh in sorted(stored.items())]
        ahead = [state.anchor, *(point for point in known if point.at_ms > state.anchor.at_ms)]
        # The installation is no reading.
        demands_w = demands_of([point for point in known if point != points[0]], KOLKATA)
        for usage, after in close_days(state, terms, ahead, until=until, calendar=KOLKATA, demands_w=demands_w):
            state = after
            month = usage.day.replace(day=1)
            energy_wh, lines = debits.get(month, (0, {}))
            debits[month] = energy_wh + usage.to_wh - usage.from_wh, added(lines, usage.lines)
        # What lies behind the anchor cannot matter any more.
        stored = {at_ms: wh for at_ms, wh in stored.items() if at_ms >= state.anchor.at_ms}

    for block in delivered(points[1:], chance):
        for point in block:
            assert stored.setdefault(point.at_ms, point.energy_wh) == point.energy_wh
        # A day is closed when a reading of a later one is there.
        close(KOLKATA.day_of(max(stored)) - timedelta(days=1))
    close(KOLKATA.day_of(points[-1].at_ms - 1))
    return debits


def oracle_by_month(points: list[Point], tariff_id: str, terms: Terms, last_day: date) -> dict[date, tuple[int, Lines]]:
    """Return the months' bills as the words of the document give them, lines of 0 left out."""
    held = terms.assignments[0]
    assigned = oracle.Assigned(
        from_day=held.from_day,
        text=builtin_documents()[tariff_id],
        load_w=held.load_w,
        area=held.area,
        meter_rent=held.meter_rent,
    )
    seen = [(from_ms(point.at_ms), point.energy_wh) for point in points]
    parts = oracle.bill(
        seen[0],
        seen[1:],
        assigned=[assigned],
        zone_name="Asia/Kolkata",
        accrued_to=last_day,
        demands_w=demands_of(points[1:], KOLKATA),
    )
    return {month: (bill.energy_wh, bill.lines) for month, bill in oracle.by_month(parts).items() if month <= last_day}


def without_zeros(lines: Lines) -> Lines:
    return {name: amount for name, amount in lines.items() if amount}


# Only one record has a reading a minute: thinned to minutes the hourly ones are what they are thinned to hours.
THINNED = [(name, step) for name in RECORDED for step in STEPS_MS if step != "minute" or name.startswith("uci")]


@pytest.mark.parametrize(("name", "step"), THINNED)
@pytest.mark.parametrize("tariff_id", sorted(builtin_documents()))
def test_recorded_file_is_debited_as_previewed_and_as_the_oracle_says(tariff_id: str, name: str, step: str) -> None:
    """Thinned, shuffled and with 30 % repeated: each month's debits are its bill, line by line, to the paisa."""
    points = thinned(recorded_curve(name), STEPS_MS[step])
    last_day = KOLKATA.day_of(points[-1].at_ms - 1)
    for load_w, area, meter_rent in HOMES:
        terms = one_assignment(
            builtin_tariff(tariff_id),
            load_w=load_w,
            opened_on=KOLKATA.day_of(points[0].at_ms),
            area=area,
            meter_rent=meter_rent,
        )
        previewed = {
            bill.period: (bill.energy_wh, without_zeros(bill.lines)) for bill in preview_curve(points, terms, KOLKATA)
        }
        debits = debits_by_month(points, terms, random.Random(f"{tariff_id} {name} {step}"))
        assert {month: (wh, without_zeros(lines)) for month, (wh, lines) in debits.items()} == previewed
        assert sum(wh for wh, _ in previewed.values()) == points[-1].energy_wh - points[0].energy_wh
        assert oracle_by_month(points, tariff_id, terms, last_day) == previewed


@pytest.mark.parametrize("name", RECORDED)
@pytest.mark.parametrize("tariff_id", sorted(builtin_documents()))
def test_lost_readings_change_only_what_lay_around_an_edge(tariff_id: str, name: str) -> None:
    """With 10 % lost, debits are those of the readings that came; a month between read edges is the complete one."""
    points = recorded_curve(name)
    chance = random.Random(f"{tariff_id} {name}")
    came = [point for point in points if point in (points[0], points[-1]) or chance.random() >= 0.1]
    last_day = KOLKATA.day_of(points[-1].at_ms - 1)
    terms = one_assignment(builtin_tariff(tariff_id), load_w=700, opened_on=KOLKATA.day_of(points[0].at_ms))
    debits = {month: (wh, without_zeros(lines)) for month, (wh, lines) in debits_by_month(came, terms, chance).items()}
    assert debits == oracle_by_month(came, tariff_id, terms, last_day)
    if terms.part_at(terms.opened_on).zone_count:
        return
    whole = oracle_by_month(list(points), tariff_id, terms, last_day)
    read = {point.at_ms for point in came}
    for month, bill in whole.items():
        edges = [KOLKATA.midnight_ms(month), KOLKATA.midnight_ms(next_period(month))]
        inside = [edge for edge in edges if points[0].at_ms < edge < points[-1].at_ms]
        if read.issuperset(inside) and not demands_of(list(points), KOLKATA):
            assert debits[month] == bill


def profile_of(energy_wh: list[int], *, step_ms: int, start_ms: int = 0) -> Profile:
    """Make a profile without gaps."""
    starts = [start_ms + number * step_ms for number in range(len(energy_wh))]
    return Profile(
        step_ms=step_ms,
        start_ms=starts,
        end_ms=[start + step_ms for start in starts],
        energy_wh=energy_wh,
        voltage_mv=[None] * len(starts),
        current_ma=[None] * len(starts),
        power_w=[None] * len(starts),
        missing_rows=0,
        duplicate_rows=0,
    )


def test_demand_is_the_greatest_half_hour_whose_both_ends_were_read() -> None:
    """500 Wh in half an hour are 1,000 W, on the day in which it begins; an hour without its middle is none."""
    midnight_ms = KOLKATA.midnight_ms(date(2026, 6, 3))
    curve = [
        Point(at_ms=midnight_ms - 2 * HALF_HOUR_MS, energy_wh=0),
        Point(at_ms=midnight_ms - HALF_HOUR_MS, energy_wh=400),
        Point(at_ms=midnight_ms, energy_wh=900),
        Point(at_ms=midnight_ms + 5 * MINUTE_MS, energy_wh=1_000),
        Point(at_ms=midnight_ms + HALF_HOUR_MS, energy_wh=1_200),
        Point(at_ms=midnight_ms + 3 * HALF_HOUR_MS, energy_wh=9_000),
    ]
    assert demands_of(curve, KOLKATA) == {date(2026, 6, 2): 1_000, date(2026, 6, 3): 600}
    assert demands_of([curve[0], curve[2], curve[5]], KOLKATA) == {}


def test_preview_charges_demand_only_where_half_hours_are_recorded() -> None:
    """The installation itself is no reading: the first half hour has no demand."""
    start_ms = KOLKATA.midnight_ms(date(2026, 6, 3))
    tariff = builtin_tariff("punjab-tod-commercial-2026-27")
    halves = profile_of([5_000, 1_000, 1_000], step_ms=HALF_HOUR_MS, start_ms=start_ms)
    lines = preview(halves, tariff, load_w=1_000, calendar=KOLKATA)[0].lines
    # 2 kVA on 1 kVA: 750 of one day in thirty.
    assert lines["demand"] == 2_500
    hours = profile_of([6_000, 1_000], step_ms=HOUR_MS, start_ms=start_ms)
    assert preview(hours, tariff, load_w=1_000, calendar=KOLKATA)[0].lines["demand"] == 0


def test_preview_of_an_own_meter_has_no_rent_and_of_a_village_no_town_levies() -> None:
    """Ownership and area are part of what is asked."""
    profile = profile_of([1_000] * 24, step_ms=HOUR_MS, start_ms=KOLKATA.midnight_ms(date(2026, 6, 3)))
    tariff = builtin_tariff("punjab-tod-commercial-2026-27")
    town = preview(profile, tariff, load_w=9_000, calendar=KOLKATA)[0].lines
    village = preview(profile, tariff, load_w=9_000, calendar=KOLKATA, area="rural", meter_rent=False)[0].lines
    assert {"meter_rent", "municipal", "infrastructure"} <= town.keys()
    assert not {"meter_rent", "municipal", "infrastructure"} & village.keys()
    with pytest.raises(AssignmentRefused, match="area_type: expected one of rural, urban"):
        preview(profile, tariff, load_w=9_000, calendar=KOLKATA, area="hill")


def test_tariff_of_a_preview_is_a_built_in_or_a_file(tmp_path: Path) -> None:
    """A name that ships wins; a file is read with the rules of all documents; anything else names what there is."""
    text = builtin_documents()["punjab-ds-2026-27"]
    file = tmp_path / "mine.toml"
    file.write_text(text.replace('"punjab-ds-2026-27"', '"mine"'))
    assert tariff_of(str(file)).id == "mine"
    assert tariff_of("punjab-ds-2026-27").id == "punjab-ds-2026-27"
    file.write_text(text.replace("= 385_000", "= -1", 1))
    with pytest.raises(TariffError, match="line 18"):
        tariff_of(str(file))
    with pytest.raises(TariffError, match=r"expected one of kenya.*, got 'nowhere'"):
        tariff_of("nowhere")
