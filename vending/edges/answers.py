"""Answers of the vending interface as plain JSON values, and their one rendering.

Stage: last before bytes leave. Enters: views, receipts, tokens. Leaves: dictionaries of strings, integers, booleans
and nulls, and their bytes. Never: the database, the clock, an HTTP status.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

from billing.calendar import LocalCalendar, from_ms
from billing.prepayment import recharge_to_keep
from billing.rating import total
from billing.running import Point, begin, energy_at, follow
from billing.supply import Supply, restores_with_minor
from billing.terms import ONE_DAY
from db.accounts import AccountView
from db.prepayment import Prepayment
from db.vends import NamedMeter
from vending.engines.port import TokenReading
from vending.receipt import money_to_api
from vending.vends import Declined, VendLimits


@dataclass(frozen=True, slots=True, kw_only=True)
class DayUse:
    """What an account used on the local day of its money time."""

    day: date
    energy_wh: int
    charge_minor: int


def render(answer: Mapping[str, object]) -> bytes:
    """Write an answer as JSON; the same values give the same bytes, whatever order a store returned them in."""
    return json.dumps(answer, sort_keys=True, separators=(",", ":")).encode("ascii")


def error_to_api(code: str, message: str, **more: object) -> dict[str, object]:
    """Return the one form of every refusal and error."""
    return {"error": {"code": code, "message": message, **more}}


def declined_to_api(declined: Declined) -> dict[str, object]:
    """Return a refusal, with the limit that was missed where there is one."""
    limit = {} if declined.limit_minor is None else money_to_api("limit", declined.limit_minor)
    return error_to_api(declined.reason.value, declined.message, **limit)


def without_token(answer: Mapping[str, Any], withheld: str) -> dict[str, Any]:
    """Return a receipt as it is answered before its token may be seen; `withheld` says why it is not."""
    return {
        **answer,
        "tid": None,
        "token": {**answer["token"], "digits": None, "grouped": None},
        "key_change_tokens": [],
        "lines": [line for line in answer["lines"] if line["code"] != "token"],
        "token_withheld": withheld,
    }


def day_use(view: AccountView, around: list[Point], calendar: LocalCalendar) -> DayUse:
    """Return the use of the local day of money time: the latest reading's day, or a later one that is open.

    `around` are the readings on both sides of that day's midnight; they do not matter once the day before is closed.
    """
    checkpoint, last = view.checkpoint, view.points[-1]
    walk = view.walk(calendar)
    day = money_day(view, calendar)
    if day == checkpoint.through:
        # What closing yesterday booked is charged already, wherever a late reading would now put the edge.
        midnight_wh, before_minor = checkpoint.closed_wh, checkpoint.charged_minor
    else:
        near = {point for point in around if view.points[0].at_ms < point.at_ms <= last.at_ms}
        points = sorted(near.union(view.points))
        midnight_ms = calendar.midnight_ms(day)
        midnight_wh, _ = energy_at(points, midnight_ms)
        known = [point for point in points if point.at_ms < midnight_ms]
        midnight = Point(at_ms=midnight_ms, energy_wh=midnight_wh)
        then = follow(begin(checkpoint, view.terms), view.terms, [*known[1:], midnight], calendar)
        before_minor = total(then.lines(day - ONE_DAY)) if then.part.first == walk.part.first else 0
    midnight_wh = max(midnight_wh, walk.start_wh)
    charge_minor = total(walk.lines(day)) - before_minor
    return DayUse(day=day, energy_wh=last.energy_wh - midnight_wh, charge_minor=charge_minor)


def money_day(view: AccountView, calendar: LocalCalendar) -> date:
    """Return the local day of an account's money time."""
    return max(calendar.day_of(view.points[-1].at_ms), view.checkpoint.through)


def account_to_api(
    view: AccountView,
    use: DayUse,
    recharge: tuple[int, datetime] | None,
    prepayment: Prepayment,
    calendar: LocalCalendar,
) -> dict[str, object]:
    """Return the account view of a consumer or engineer."""
    balance_minor = view.balance_minor(calendar)
    money_time_ms = max(view.points[-1].at_ms, calendar.midnight_ms(view.checkpoint.through))
    return {
        "account_number": view.number,
        "meter_serial": view.meter.serial,
        "mode": view.levels.mode.value,
        "currency": view.terms.tariff.currency,
        **money_to_api("balance", balance_minor),
        "money_time": _iso(money_time_ms),
        "latest_reading_at": None if view.mark_ms is None else _iso(view.mark_ms),
        "today": {
            "day": use.day.isoformat(),
            "energy_wh": use.energy_wh,
            **money_to_api("charge", use.charge_minor),
        },
        "supply": supply_to_api(view, prepayment, balance_minor),
        **threshold_to_api(view.levels.threshold_minor),
        "low_alarm": view.levels.low_raised,
        **money_to_api("emergency_credit", view.levels.emergency_credit_minor),
        **money_to_api("earlier_arrears", prepayment.arrears_minor),
        "absent_until": None if prepayment.absent_until is None else prepayment.absent_until.isoformat(),
        "last_recharge": None
        if recharge is None
        else {**money_to_api("amount", recharge[0]), "at": recharge[1].isoformat(timespec="milliseconds")},
    }


def supply_to_api(view: AccountView, prepayment: Prepayment, balance_minor: int) -> dict[str, object]:
    """Return desired and reported supply, and the smallest recharge that restores it after arrears took their share."""
    reported_ms = view.meter.relay_at_ms
    needed_minor = restores_with_minor(view.levels, balance_minor)
    restores_minor = recharge_to_keep(needed_minor, prepayment.arrears_minor, prepayment.rules)
    return {
        "desired": view.levels.desired.value,
        "reported": None if view.meter.relay is None else view.meter.relay.value,
        "reported_at": None if reported_ms is None else _iso(reported_ms),
        **money_to_api("restores_with", restores_minor),
    }


def threshold_to_api(threshold_minor: int | None) -> dict[str, object]:
    """Return a threshold, or two nulls where the consumer chose none."""
    if threshold_minor is None:
        return {"threshold": None, "threshold_minor": None}
    return money_to_api("threshold", threshold_minor)


def meter_to_api(
    meter: NamedMeter,
    view: AccountView,
    consumer: str,
    prepayment: Prepayment,
    refusal: Declined | None,
    *,
    limits: VendLimits,
    calendar: LocalCalendar,
) -> dict[str, object]:
    """Return what a station confirms with the customer before selling; the name is masked, the credit left out."""
    balance_minor = view.balance_minor(calendar)
    rules, arrears_minor = prepayment.rules, prepayment.arrears_minor
    needed_minor = restores_with_minor(view.levels, balance_minor)
    restores_minor = recharge_to_keep(needed_minor, arrears_minor, rules)
    return {
        "meter_serial": meter.serial,
        "drn": meter.drn,
        "make": meter.make,
        "model": meter.model,
        "account_number": view.number,
        "consumer": mask_name(consumer),
        "mode": view.levels.mode.value,
        "currency": view.terms.tariff.currency,
        **money_to_api("arrears", max(0, -balance_minor)),
        **money_to_api("earlier_arrears", arrears_minor),
        "recovery_share_basis_points": rules.recovery_share_basis_points if arrears_minor else 0,
        **money_to_api("recovery_floor", rules.recovery_floor_minor),
        "supply": supply_to_api(view, prepayment, balance_minor),
        **money_to_api("vend_min", limits.min_minor),
        **money_to_api("vend_max", limits.max_minor),
        **money_to_api("cash_max", min(rules.cash_monthly_minor, limits.max_minor)),
        **money_to_api("sell_at_least", max(limits.min_minor, restores_minor)),
        "vendable": refusal is None,
        "refusal": None if refusal is None else {"code": refusal.reason.value, "message": refusal.message},
    }


def mask_name(name: str) -> str:
    """Keep the first letter of each word: enough to confirm who stands there, too little to learn a name from."""
    return " ".join(f"{word[0]}***" for word in name.split())


def token_to_api(meter: NamedMeter, read: TokenReading) -> dict[str, object]:
    """Return what a token says; the digits themselves only masked."""
    return {
        "meter_serial": meter.serial,
        "drn": meter.drn,
        "token": read.masked,
        "class": read.token_class,
        "subclass": read.subclass,
        "amount": None if read.carried is None else read.carried.text,
        "unit": None if read.carried is None else read.carried.unit.value,
        "tid": read.tid,
        "tid_minute": None if read.tid_minute is None else read.tid_minute.isoformat(timespec="minutes"),
    }


def supply_state(view: AccountView) -> Supply:
    """Return what the meter last reported, or what was wanted while it has reported nothing."""
    return view.meter.relay or view.levels.desired


def _iso(at_ms: int) -> str:
    return from_ms(at_ms).isoformat(timespec="milliseconds")
