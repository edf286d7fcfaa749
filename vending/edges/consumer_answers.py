"""Facts of an account for its consumer, as plain JSON values.

Stage: last before bytes leave. Enters: what `db.consumer_facts` read. Leaves: dictionaries of strings, integers,
booleans, lists and nulls. Never: the database, an HTTP status, a whole token that was not asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date, datetime

from billing.calendar import LocalCalendar, from_ms, next_period
from billing.forecast import PresentUse, ThresholdKind
from billing.rating import Lines
from billing.statement import line_title, printing_order
from billing.statement_titles import line_titles
from billing.terms import ONE_DAY, Terms
from billing.use_by_day import ConsumerDay, ConsumerMonth
from db.consumer_facts import (
    ConsumerSummary,
    ConsumerWishes,
    DaysPage,
    MonthsPage,
    Recharge,
    ReportedRelay,
    SupplyOrderRow,
    Wish,
)
from db.notices import ListedNotice
from vending.edges.answers import supply_to_api
from vending.receipt import money_to_api

# Why an order was written, by what was posted then.
_CAUSES: Mapping[str, str] = {
    "reading": "the meter was read",
    "late_usage": "readings came late",
    "close_day": "the use of a day was booked",
    "vend": "a recharge was received",
    "reversal": "a recharge was reversed",
    "refund": "a refund was paid out",
    "adjustment": "the billing office corrected the account",
    "correction": "the billing office corrected the account",
    "subsidy": "a subsidy was credited",
    "interest": "interest was credited",
    "opening": "the account was opened",
    "arrears_opening": "arrears were noted",
    "arrears_recovery": "arrears were paid",
    "security": "the security deposit was moved",
    "security_opening": "the security deposit was noted",
    "absence": "a long absence began or ended",
    "absence_deposit": "a long absence began or ended",
    "write_off": "a debt was written off",
    "conversion": "the account became prepaid",
    "rules": "the prepayment rules changed",
    "threshold": "the warning was changed",
    "reported": "the meter reported another state than it was told",
    "calendar": "protected hours or emergency days ended",
}
_STATES: Mapping[str, str] = {
    "pending": "waits to be sent",
    "held": "waits until the meter is heard again",
    "sent": "sent, not confirmed by the meter yet",
    "confirmed": "confirmed by the meter",
    "superseded": "replaced by a newer order",
    "impossible": "the meter cannot do this",
}
_WAITS: Mapping[str, str] = {
    "hours": "waits for hours at which supply may be cut or limited",
    "transport": "waits for a way to the meter",
    "lane": "waits for the meter's answer to another command",
    "contradicting": "waits to be sent again, since the meter reports otherwise",
    "impossible": "the meter cannot do this",
}


def summary_to_api(found: ConsumerSummary, calendar: LocalCalendar) -> dict[str, object]:
    """Return an account at its money time."""
    view, month = found.view, found.month
    recharge, absent_until = found.last_recharge, found.prepayment.absent_until
    return {
        "account_number": view.number,
        "meter_serial": view.meter.serial,
        "mode": view.levels.mode.value,
        "currency": view.terms.tariff.currency,
        "time_zone": calendar.zone.key,
        **money_to_api("balance", found.balance_minor),
        "money_time": _iso(from_ms(found.money_ms)),
        "latest_reading_at": None if view.mark_ms is None else _iso(from_ms(view.mark_ms)),
        "today": _use_to_api(found.today),
        "yesterday": None if found.yesterday is None else _use_to_api(found.yesterday),
        "month": {
            "month": f"{month.month:%Y-%m}",
            "energy_wh": month.energy_wh,
            "lines": _lines_to_api(month.lines, _titles(view.terms, month.month, found.today.day)),
            **money_to_api("charge", month.charge_minor),
            "earlier_energy_wh": found.earlier_wh,
            **money_to_api("earlier_charge", found.earlier_minor),
            **money_to_api("recharged", month.recharged_minor),
        },
        "average": None if found.use is None else _average_to_api(found.use),
        "forecast": None
        if found.forecast is None
        else {"days_left": found.forecast.days_left, "ends_on": _day_or_null(found.forecast.ends_on)},
        "supply": {
            **supply_to_api(view, found.prepayment, found.balance_minor),
            "why": {
                "code": found.verdict.reason.value,
                "text": found.verdict.reason.for_family,
                "until": None if found.verdict.until_ms is None else _iso(from_ms(found.verdict.until_ms)),
            },
            "waiting": view.open_order is not None,
        },
        "low_alarm": view.levels.low_raised or any(each.raised for each in view.levels.thresholds),
        **money_to_api("emergency_credit", view.levels.emergency_credit_minor),
        **money_to_api("earlier_arrears", found.prepayment.arrears_minor),
        "absent_until": _day_or_null(absent_until),
        "last_recharge": None if recharge is None else {**money_to_api("amount", recharge[0]), "at": _iso(recharge[1])},
    }


def thresholds_to_api(found: ConsumerWishes) -> dict[str, object]:
    """Return when the consumer is warned, and the balance that each wish comes to now."""
    return {
        "account_number": found.view.number,
        "currency": found.view.terms.tariff.currency,
        **money_to_api("balance", found.balance_minor),
        "low_alarm": any(wish.rung for wish in found.wishes),
        "thresholds": [_wish_to_api(wish) for wish in found.wishes],
    }


def days_to_api(page: DaysPage) -> dict[str, object]:
    """Return a page of days, the latest first."""
    return {
        "account_number": page.view.number,
        "currency": page.view.terms.tariff.currency,
        "from": page.first.isoformat(),
        "to": page.last.isoformat(),
        "days": [_day_to_api(used) for used in reversed(page.days)],
        "next": _day_or_null(page.following),
    }


def months_to_api(page: MonthsPage) -> dict[str, object]:
    """Return a page of months, the latest first."""
    terms = page.view.terms
    return {
        "account_number": page.view.number,
        "currency": terms.tariff.currency,
        "from": f"{page.first:%Y-%m}",
        "to": f"{page.last:%Y-%m}",
        "months": [_month_to_api(used, terms) for used in reversed(page.months)],
        "next": None if page.following is None else f"{page.following:%Y-%m}",
    }


def recharges_to_api(
    number: str, recharges: Sequence[Recharge], following: int | None, *, show_tokens: bool
) -> dict[str, object]:
    """Return a page of recharges, their tokens masked unless they are to be shown."""
    return {
        "account_number": number,
        "recharges": [
            {
                "id": sold.id,
                "at": _iso(sold.booked_at),
                **money_to_api("amount", sold.amount_minor),
                **money_to_api("earlier_arrears_paid", sold.recovered_minor),
                "vendor": sold.vendor,
                "message_id": sold.message_id,
                "token": _token(sold.digits, whole=show_tokens),
                "reversed_at": None if sold.reversed_at is None else _iso(sold.reversed_at),
            }
            for sold in recharges
        ],
        "next": following,
    }


def notices_to_api(number: str, notices: Sequence[ListedNotice], following: int | None) -> dict[str, object]:
    """Return a page of notices."""
    return {
        "account_number": number,
        "notices": [
            {"id": told.id, "at": _iso(told.created_at), "kind": told.kind, "subject": told.subject, "text": told.body}
            for told in notices
        ],
        "next": following,
    }


def supply_history_to_api(
    number: str, reported: ReportedRelay | None, orders: Sequence[SupplyOrderRow], following: int | None
) -> dict[str, object]:
    """Return what the meter last said, and a page of the orders it was given."""
    return {
        "account_number": number,
        "reported": None
        if reported is None
        else {
            "meter_serial": reported.serial,
            "supply": reported.relay,
            "since": None if reported.relay_at is None else _iso(reported.relay_at),
        },
        "orders": [
            {
                "id": order.id,
                "ordered_at": _iso(order.created_at),
                "meter_serial": order.meter_serial,
                "supply": order.relay,
                "cause": order.cause,
                "cause_text": _CAUSES.get(order.cause, order.cause.replace("_", " ")),
                **money_to_api("balance", order.balance_minor),
                "state": order.state,
                "state_text": _WAITS.get(order.waits_for or "", _STATES.get(order.state, order.state)),
                "confirmed_at": None if order.confirmed_at is None else _iso(order.confirmed_at),
            }
            for order in orders
        ],
        "next": following,
    }


def _use_to_api(used: ConsumerDay) -> dict[str, object]:
    return {
        "day": used.day.isoformat(),
        "energy_wh": used.energy_wh or 0,
        **money_to_api("charge", used.charge_minor or 0),
    }


def _average_to_api(use: PresentUse) -> dict[str, object]:
    return {"days": use.days, "energy_wh": use.day_energy_wh, **money_to_api("charge", use.day_charge_minor)}


def _day_to_api(used: ConsumerDay) -> dict[str, object]:
    return {
        "day": used.day.isoformat(),
        "energy_wh": used.energy_wh,
        **_money_or_null("charge", used.charge_minor),
        "quality": None if used.quality is None else used.quality.value,
        "posted": used.posted,
        "later_energy_wh": used.later_wh,
        **money_to_api("later_charge", used.later_minor),
        **money_to_api("recharged", used.recharged_minor),
        **money_to_api("other", used.other_minor),
    }


def _month_to_api(used: ConsumerMonth, terms: Terms) -> dict[str, object]:
    titles = _titles(terms, used.month, next_period(used.month) - ONE_DAY)
    return {
        "month": f"{used.month:%Y-%m}",
        "energy_wh": used.energy_wh,
        "lines": _lines_to_api(used.lines, titles),
        **money_to_api("charge", used.charge_minor),
        "open_days": used.open_days,
        **money_to_api("recharged", used.recharged_minor),
        **money_to_api("other", used.other_minor),
    }


def _titles(terms: Terms, first: date, last: date) -> dict[str, str]:
    return line_titles(terms, first=first, last=last)


def _lines_to_api(lines: Lines, titles: Mapping[str, str]) -> list[dict[str, object]]:
    return [
        {"line": name, "title": line_title(name, titles), **money_to_api("amount", lines[name])}
        for name in printing_order(lines, titles)
    ]


def _wish_to_api(wish: Wish) -> dict[str, object]:
    kind, value = wish.threshold.kind, wish.threshold.value
    return {
        "kind": kind.value,
        **_money_or_null("amount", value if kind is ThresholdKind.AMOUNT else None),
        "days": value if kind is ThresholdKind.DAYS else None,
        "percent": value if kind is ThresholdKind.PERCENT else None,
        **_money_or_null("warns_at", wish.warns_at_minor),
        "rung": wish.rung,
    }


def _token(digits: str | None, *, whole: bool) -> str | None:
    if digits is None:
        return None
    return digits if whole else f"...{digits[-4:]}"


def _money_or_null(name: str, amount_minor: int | None) -> dict[str, object]:
    return {name: None, f"{name}_minor": None} if amount_minor is None else money_to_api(name, amount_minor)


def _day_or_null(day: date | None) -> str | None:
    return None if day is None else day.isoformat()


def _iso(at: datetime) -> str:
    return at.isoformat(timespec="milliseconds")
