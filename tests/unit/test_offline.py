"""Licences and logs of stations without a line: what is signed cannot be changed, left out or put in."""

from __future__ import annotations

from dataclasses import replace

import pytest

from vending.coupons import serial_of
from vending.offline import (
    Finding,
    Judged,
    Known,
    Licence,
    LicenceWrong,
    LogBroken,
    LogForked,
    LogGap,
    LoggedSale,
    SerialRange,
    SignedSale,
    first_digest,
    judge_upload,
    public_key,
    read_licence,
    read_revocations,
    sign_licence,
    sign_revocations,
    sign_sale,
    sold_at_ms,
)

UTILITY, STATION = bytes(range(32)), bytes(range(50, 82))
LICENCE = Licence(
    number=4,
    station="hill-3",
    vendor_id=2,
    station_key=public_key(STATION).hex(),
    valid_from_ms=1_000_000,
    valid_until_ms=9_000_000,
    limit_minor=500,
    ranges=(SerialRange(first=serial_of(1, 3), last=serial_of(1, 9)),),
)
NOTHING = Known(seq=0, digest=first_digest(LICENCE), latest_ms=0)


def chain(*instants_ms: int) -> list[SignedSale]:
    """Return a station's log with sales at some instants."""
    log: list[SignedSale] = []
    for number, at_ms in enumerate(instants_ms, start=1):
        sale = LoggedSale(
            licence=4,
            seq=number,
            serial=serial_of(1, 2 + number),
            amount_minor=100,
            sold_at_ms=at_ms,
            previous=log[-1].sale.digest if log else NOTHING.digest,
        )
        log.append(sign_sale(STATION, sale))
    return log


def upload(entries: list[SignedSale], known: Known = NOTHING, digests: dict[int, str] | None = None) -> list[Judged]:
    """Judge an upload at some instant of the licence."""
    return judge_upload(LICENCE, known, digests or {}, entries, now_ms=5_000_000)


def test_licence_comes_back_as_it_was_signed_and_no_altered_one_does() -> None:
    """Every field is under the signature; another utility's licence is none."""
    signed = sign_licence(UTILITY, LICENCE)
    assert read_licence(signed, public_key(UTILITY)) == LICENCE
    assert LICENCE.holds(serial_of(1, 3))
    assert not LICENCE.holds(serial_of(1, 10))
    assert not LICENCE.holds(serial_of(2, 3))
    for name in signed["licence"]:
        altered = signed | {"licence": signed["licence"] | {name: "9"}}
        with pytest.raises(LicenceWrong):
            read_licence(altered, public_key(UTILITY))
    for wrong in ({}, {"licence": {}}, signed | {"signature": "00" * 64}, sign_licence(STATION, LICENCE)):
        with pytest.raises(LicenceWrong):
            read_licence(wrong, public_key(UTILITY))


def test_revocations_are_signed() -> None:
    """A station believes nobody but the utility."""
    signed = sign_revocations(UTILITY, [7, 4], at_ms=5)
    assert read_revocations(signed, public_key(UTILITY)) == (frozenset({4, 7}), 5)
    with pytest.raises(LicenceWrong):
        read_revocations(signed | {"revocations": {"revoked": [], "at_ms": 5}}, public_key(UTILITY))


def test_upload_of_known_and_new_entries_returns_the_new_ones() -> None:
    """A station may send what it sent before; what is new follows upon it."""
    log = chain(2_000_000, 2_000_001, 2_000_002)
    assert [each.signed for each in upload(log)] == log
    assert all(each.findings == () for each in upload(log))
    known = Known(seq=2, digest=log[1].sale.digest, latest_ms=2_000_001)
    digests = {each.sale.seq: each.sale.digest for each in log[:2]}
    assert [each.signed for each in upload(log, known, digests)] == log[2:]
    assert upload(log[:2], known, digests) == []


@pytest.mark.parametrize("left_out", [0, 1])
def test_upload_with_a_hole_is_refused_with_the_number_to_send(left_out: int) -> None:
    """Neither the first entry nor one in between can be left out."""
    log = chain(2_000_000, 2_000_001, 2_000_002)
    with pytest.raises(LogGap) as gap:
        upload(log[:left_out] + log[left_out + 1 :])
    assert gap.value.expected_seq == left_out + 1


def test_entry_that_was_altered_signed_by_another_or_follows_upon_another_is_refused() -> None:
    """Each field is under the station's signature, and each entry names the one before it."""
    log = chain(2_000_000, 2_000_001)
    for name in ("seq", "serial", "amount_minor", "sold_at_ms", "previous", "licence"):
        value = "0" if isinstance(getattr(log[0].sale, name), str) else 9
        altered = replace(log[0].sale, **{name: value})
        with pytest.raises(LogBroken):
            upload([SignedSale(sale=altered, signature=log[0].signature)])
    with pytest.raises(LogBroken):
        upload([sign_sale(UTILITY, log[0].sale)])
    other = chain(2_000_005, 2_000_006)
    with pytest.raises(LogForked):
        upload([log[0], other[1]])
    known = Known(seq=1, digest=log[0].sale.digest, latest_ms=2_000_000)
    with pytest.raises(LogForked):
        upload(other, known, {1: log[0].sale.digest})


@pytest.mark.parametrize(
    ("instants_ms", "findings", "counts_as_ms"),
    [
        ((2_000_000, 1_999_999), (Finding.CLOCK_SET_BACK,), 5_000_000),
        ((5_300_001,), (Finding.CLOCK_AHEAD,), 5_000_000),
        ((999_999,), (Finding.OUTSIDE_LICENCE,), 5_000_000),
        ((9_000_000,), (Finding.CLOCK_AHEAD, Finding.OUTSIDE_LICENCE), 5_000_000),
        ((5_300_000,), (), 5_300_000),
        ((2_000_000, 2_000_000), (), 2_000_000),
    ],
)
def test_clock_of_a_station_is_judged_and_the_buyer_gets_the_later_day(
    instants_ms: tuple[int, ...], findings: tuple[Finding, ...], counts_as_ms: int
) -> None:
    """Set back, ahead or outside the licence is found; such a sale counts as made as late as it can have been."""
    judged = upload(chain(*instants_ms))[-1]
    assert judged.findings == findings
    assert sold_at_ms(LICENCE, judged, now_ms=5_000_000) == counts_as_ms
