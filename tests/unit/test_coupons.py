"""Rules of coupons: serials, three calendar months, PINs, and the wait of a guesser."""

from __future__ import annotations

from calendar import monthrange
from datetime import date, timedelta
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vending.coupon_pins import coupon_keys, draw_pin, pin_digest, read_pin
from vending.coupons import (
    CALLER_LIMIT,
    BadCoupon,
    Coupon,
    CouponChannel,
    CouponFault,
    CouponState,
    Redeemable,
    Redeemer,
    Refused,
    Tries,
    grouped,
    judge_redemption,
    one_more,
    read_serial,
    serial_of,
    serials_between,
    valid_until,
    wait_of,
)
from vending.sts.errors import InvalidKey

STATION = Redeemer(channel=CouponChannel.STATION, who="vendor:1", guesser="vendor:k1")
SERIAL = serial_of(1, 1)


@pytest.mark.parametrize(
    ("sold_on", "until"),
    [
        (date(2026, 11, 30), date(2027, 2, 28)),
        (date(2027, 11, 30), date(2028, 2, 29)),
        (date(2026, 11, 28), date(2027, 2, 28)),
        (date(2026, 1, 31), date(2026, 4, 30)),
        (date(2026, 10, 1), date(2027, 1, 1)),
        (date(2026, 12, 31), date(2027, 3, 31)),
    ],
)
def test_validity_ends_on_the_same_day_or_the_last_of_a_shorter_month(sold_on: date, until: date) -> None:
    """Three calendar months; where the month has no such day, its last one."""
    assert valid_until(sold_on) == until


@given(st.dates(min_value=date(2000, 1, 1), max_value=date(2100, 12, 31)))
def test_validity_is_never_shorter_for_a_later_day(sold_on: date) -> None:
    """A day later never ends earlier, and the end lies in the third month after."""
    until = valid_until(sold_on)
    assert until <= valid_until(sold_on + timedelta(days=1))
    assert (until.year * 12 + until.month) - (sold_on.year * 12 + sold_on.month) == 3
    assert until.day == min(sold_on.day, monthrange(until.year, until.month)[1])


@given(st.integers(1, 99_999), st.integers(1, 999_999), st.integers(0, 11), st.integers(1, 9))
def test_serial_and_pin_with_one_wrong_digit_are_refused(batch: int, number: int, place: int, off: int) -> None:
    """A slip of one digit is seen before anything is looked up; blanks and dashes are no matter."""
    for digits, read in ((serial_of(batch, number), read_serial), (draw_pin(Random(number).randrange), read_pin)):
        assert read(grouped(digits)) == digits == read(f"{digits[:4]}-{digits[4:]}")
        wrong = f"{digits[:place]}{(int(digits[place]) + off) % 10}{digits[place + 1 :]}"
        with pytest.raises(BadCoupon):
            read(wrong)
        with pytest.raises(BadCoupon, match=f"got {len(digits) - 1} characters"):
            read(digits[:-1])


def test_refusals_of_pins_repeat_no_digit() -> None:
    """What was typed may be somebody's money but for one digit."""
    with pytest.raises(BadCoupon) as mistyped:
        read_pin("4821093755661200")
    assert not any(mark.isdigit() for mark in str(mistyped.value))


def test_digest_of_a_pin_depends_on_the_master_key() -> None:
    """Without the key nobody can try PINs against stolen rows; keys show in no text."""
    keys, others = coupon_keys(bytes(32)), coupon_keys(bytes([1]) * 32)
    assert pin_digest(keys, "4821093755661208") != pin_digest(others, "4821093755661208")
    assert keys.pin_key != keys.licence_seed
    assert repr(keys) == "CouponKeys()"
    with pytest.raises(InvalidKey):
        coupon_keys(bytes(31))


def test_range_is_of_one_batch_and_rising() -> None:
    """Serials of two batches, or from a later one to an earlier, are no range."""
    assert serials_between(serial_of(7, 3), serial_of(7, 12)) == 10
    for first, last in ((serial_of(7, 3), serial_of(8, 4)), (serial_of(7, 4), serial_of(7, 3))):
        with pytest.raises(BadCoupon):
            serials_between(first, last)


def judged(coupon: Coupon, *, day: date = date(2027, 2, 28), meter_id: int | None = 5) -> Redeemable | CouponFault:
    """Return what becomes of a coupon at a station."""
    told = judge_redemption(coupon, STATION, meter_id=meter_id, today=day)
    return told.fault if isinstance(told, Refused) else told


def test_redemption_depends_on_state_day_redeemer_and_meter() -> None:
    """The table of a coupon's states."""
    until = date(2027, 2, 28)

    def coupon(state: CouponState, **more: object) -> Coupon:
        return Coupon(serial=SERIAL, state=state, amount_minor=1, **more)  # type: ignore[arg-type]  # Fields by name.

    sold, reserved = coupon(CouponState.SOLD, valid_until=until), coupon(CouponState.RESERVED, valid_until=until)
    licensed = coupon(CouponState.RESERVED, valid_until=until, may_draw=True)
    ours = coupon(CouponState.REDEEMED, redeemed_by="vendor:1", meter_id=5)
    theirs = coupon(CouponState.REDEEMED, redeemed_by="vendor:2", meter_id=5)
    assert judged(sold) is Redeemable.NOW
    assert judged(sold, day=date(2027, 3, 1)) is CouponFault.LAPSED
    assert judged(licensed) is Redeemable.NOW
    assert judged(licensed, day=date(2027, 3, 1)) is CouponFault.LAPSED
    assert judged(reserved) is CouponFault.ON_HOLD
    assert judged(ours) is Redeemable.AGAIN
    assert judged(ours, meter_id=6) is judged(ours, meter_id=None) is judged(theirs) is CouponFault.REDEEMED
    assert judged(coupon(CouponState.ISSUED)) is CouponFault.NOT_SOLD
    assert judged(coupon(CouponState.VOID)) is CouponFault.VOID


def test_wait_doubles_up_to_its_most_and_is_forgotten_after_rest() -> None:
    """Free tries, then a minute, two, four and so on; after two quiet days all is good again."""
    tries: Tries | None = None
    waits = []
    now_ms = 0
    for _ in range(20):
        tries = one_more(tries, CALLER_LIMIT, now_ms)
        waits.append(wait_of(tries, CALLER_LIMIT, now_ms))
        now_ms += waits[-1] * 1_000
        assert wait_of(tries, CALLER_LIMIT, now_ms) == 0
    assert waits[:7] == [0, 0, 0, 0, 60, 120, 240]
    assert waits[-1] == 86_400
    assert one_more(tries, CALLER_LIMIT, now_ms + 172_800_001).wrong == 1
