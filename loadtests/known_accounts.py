"""What an owner of shards knows of the benchmarks' accounts on the day they open, before their first reading.

Stage: before a benchmark's clock starts. Takes account numbers; makes the states that `headend.edges.cache` would load
one look after the other, from the same figures as `loadtests.seed_accounts` writes them.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from functools import cache

from billing.calendar import LocalCalendar
from billing.running import Point, begin, opening
from billing.supply import Levels, Mode, Supply
from billing.supply_rule_document import builtin_supply_rules
from billing.tariff_document import builtin_tariff
from billing.terms import Terms, one_assignment
from headend.state import AccountState, MeterState, RegisterSegment
from loadtests.population import RATED_W, REGISTER_END_WH, homes, serial_of
from protocols.columns import Int64Column


def known_accounts(
    numbers: Int64Column, *, tariff_id: str, opened_on: date, calendar: LocalCalendar
) -> Iterator[MeterState]:
    """Yield the states of accounts that have opened at midnight and not been read since."""
    opened_ms = calendar.midnight_ms(opened_on)

    @cache
    def terms_of(load_w: int) -> Terms:
        return one_assignment(builtin_tariff(tariff_id), load_w=load_w, opened_on=opened_on)

    scheme = builtin_supply_rules().of("DS")
    made = homes(numbers)
    columns = (made.number, made.shard, made.load_w, made.credit_minor, made.threshold_minor, made.register_wh)
    for number, shard, load_w, credit_minor, threshold_minor, register_wh in zip(
        *(column.tolist() for column in columns), strict=True
    ):
        terms = terms_of(load_w)
        checkpoint = opening(terms, posted_minor=credit_minor, at=Point(at_ms=opened_ms, energy_wh=0))
        yield MeterState(
            serial=serial_of(number),
            shard=shard,
            meter_id=number,
            rated_w=RATED_W,
            register_end_wh=REGISTER_END_WH,
            installed_ms=opened_ms,
            segments=(RegisterSegment(from_ms=opened_ms, offset_wh=-register_wh),),
            mark_ms=opened_ms,
            mark_wh=register_wh,
            relay=None,
            relay_at_ms=None,
            account=AccountState(
                id=number,
                version=1,
                terms=terms,
                checkpoint=checkpoint,
                levels=_levels(None if threshold_minor < 0 else threshold_minor),
                walk=begin(checkpoint, terms),
                silent=False,
                told=None,
                held=False,
                scheme=scheme,
                waits=False,
            ),
        )


@cache
def _levels(threshold_minor: int | None) -> Levels:
    return Levels(
        mode=Mode.PREPAID,
        threshold_minor=threshold_minor,
        emergency_credit_minor=0,
        low_arm=1,
        low_raised=False,
        exhausted_arm=1,
        exhausted_raised=False,
        desired=Supply.ON,
    )
