"""Stations without a line: licences given, revoked and closed, and the logs of what they sold taken in.

Stage: between the command line or a station's upload and the database, one transaction each. What a licence may sell is
taken of its vendor's float when it is given, so that every coupon of it is money from the moment it is sold, known here
or not. Never: a PIN; a decision by a station's clock against a buyer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import Any

from psycopg import AsyncConnection
from pydantic import ValidationError

from billing.calendar import from_ms, to_ms
from billing.journals import JournalKind, money_journal
from billing.money import format_minor
from db import coupon_licences, coupons
from db.coupon_licences import LicenceRow, LicensedCoupon, LogEntry, NewLicence
from db.coupons import CouponEvent
from db.floats import FloatPosted, FloatRefused, post_float_journal
from vending.coupon_pins import CouponKeys
from vending.coupons import CouponState, serials_between, valid_until
from vending.edges.coupon_desk import Office, credit_text, draw_on_licence, in_stock
from vending.edges.coupon_errors import LicenceNotInForce, LicenceUnknown, VendorCredit
from vending.edges.coupon_models import LogBody, LogEntryBody
from vending.offline import (
    FATAL,
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
    sign_licence,
    sign_revocations,
    sold_at_ms,
)


class _LogFile(LogBody):
    """A log without the limit of a request."""

    entries: list[LogEntryBody]


# A station comes to a line once a month at least; what is lost with one is a month's sales at most.
LICENCE_MS_MAX = 31 * 86_400_000
_CLOSED = "closed"


@dataclass(frozen=True, slots=True, kw_only=True)
class LicenceAsked:
    """A licence to be given. Units: instants in UTC milliseconds."""

    vendor_id: int
    station: str
    station_key: bytes
    valid_from_ms: int
    valid_until_ms: int
    limit_minor: int
    ranges: tuple[SerialRange, ...]


async def give_licence(
    conn: AsyncConnection, desk: Office, keys: CouponKeys, asked: LicenceAsked, *, by: str
) -> dict[str, Any]:  # JSON, as its station keeps it.
    """Set coupons aside for a station, hold what it may sell of its vendor's float, and sign its licence.

    Raises: LicenceWrong, BadCoupon, CouponNotForSale, VendorCredit; UnknownVendor.
    """
    async with conn.transaction():
        ids: list[int] = []
        value_minor = 0
        for each in asked.ranges:
            rows = await in_stock(conn, each.first, each.last, serials_between(each.first, each.last))
            ids += [coupon_id for coupon_id, _ in rows]
            value_minor += sum(amount_minor for _, amount_minor in rows)
        _require_sound(asked, value_minor)
        reason = f"licence of station {asked.station}"
        posted = await post_float_journal(
            conn, asked.vendor_id, money_journal(JournalKind.COUPON_SALE, asked.limit_minor, reason)
        )
        if isinstance(posted, FloatRefused):
            raise VendorCredit(credit_text(posted))
        now = from_ms(desk.clock())
        number = await coupon_licences.add_licence(conn, _new_licence(asked, by, to_ms(now)))
        licence = _licence(number, asked)
        signed = sign_licence(keys.licence_seed, licence)
        await coupon_licences.keep_signed(conn, number, signed, log_digest=first_digest(licence))
        await coupon_licences.reserve(conn, number, ids)
        detail = {"limit_minor": asked.limit_minor, "coupons": len(ids), "value_minor": value_minor}
        event = CouponEvent(at=now, event="licensed", by=by, licence_id=number, detail=detail)
        await coupons.add_event(conn, event)
    return signed


async def take_log(
    conn: AsyncConnection,
    desk: Office,
    number: int,
    entries: Sequence[SignedSale],
    *,
    vendor_id: int,
    by: str,
) -> dict[str, Any]:  # JSON.
    """Take in a station's log: what is known is passed over, what is new is booked or found odd.

    Raises: LicenceUnknown, LicenceNotInForce; LogBroken, LogGap, LogForked, which are kept and change nothing else.
    """
    try:
        async with conn.transaction():
            return await _take_log(conn, desk, number, entries, vendor_id=vendor_id, by=by)
    except (LogBroken, LogGap, LogForked) as refused:
        at = from_ms(desk.clock())
        await coupon_licences.add_refusal(conn, number, at=at, code=refused.code, message=str(refused))
        raise


async def revoke_licence(conn: AsyncConnection, desk: Office, number: int, *, reason: str, by: str) -> None:
    """Put a lost station's licence out of force: what it had not sold by now is nobody's money. Twice is once.

    Raises: LicenceUnknown.
    """
    async with conn.transaction():
        licence = await _lock(conn, number)
        now = from_ms(desk.clock())
        if await coupon_licences.revoke(conn, licence.id, now):
            event = CouponEvent(at=now, event="revoked", by=by, reason=reason, licence_id=licence.id)
            await coupons.add_event(conn, event)


async def close_licence(conn: AsyncConnection, desk: Office, number: int, *, reason: str, by: str) -> int:
    """Settle a licence after its last log: its unsold coupons are in stock again, the rest of its money goes back.

    Returns what went back, in minor units; 0 for one that was closed before.
    Raises: LicenceUnknown.
    """
    async with conn.transaction():
        licence = await _lock(conn, number)
        rest_minor = licence.held_minor - licence.drawn_minor
        if licence.state == _CLOSED:
            return 0
        if rest_minor:
            journal = money_journal(JournalKind.COUPON_SALE, -rest_minor, f"licence {licence.id} closed")
            posted = await post_float_journal(conn, licence.vendor_id, journal)
            assert isinstance(posted, FloatPosted), "what is given back is never refused"
        await coupon_licences.close(conn, licence.id)
        detail = {"given_back_minor": rest_minor}
        now = from_ms(desk.clock())
        event = CouponEvent(at=now, event=_CLOSED, by=by, reason=reason, licence_id=licence.id, detail=detail)
        await coupons.add_event(conn, event)
    return rest_minor


async def revocations(conn: AsyncConnection, desk: Office, keys: CouponKeys) -> dict[str, Any]:  # JSON.
    """Return the signed list of revoked licences as of now."""
    return sign_revocations(keys.licence_seed, await coupon_licences.read_revoked(conn), at_ms=desk.clock())


async def _take_log(
    conn: AsyncConnection, desk: Office, number: int, entries: Sequence[SignedSale], *, vendor_id: int, by: str
) -> dict[str, Any]:  # JSON.
    row = await coupon_licences.lock_licence(conn, number)
    if row is None or row.vendor_id != vendor_id:
        raise LicenceUnknown(f"licence {number}: expected one of this vendor")
    if row.state == _CLOSED:
        raise LicenceNotInForce(f"licence {number}: expected one that is not closed")
    licence, now_ms = licence_of_row(row), desk.clock()
    known = Known(
        seq=row.log_seq, digest=row.log_digest, latest_ms=0 if row.log_latest is None else to_ms(row.log_latest)
    )
    digests = await coupon_licences.read_known(conn, row.id, [each.sale.seq for each in entries])
    judged = judge_upload(licence, known, digests, entries, now_ms=now_ms)
    if judged:
        judged = await _book(conn, desk, row, judged, now_ms)
        latest_ms = max(known.latest_ms, *(each.signed.sale.sold_at_ms for each in judged))
        rows = [_log_entry(each) for each in judged]
        at = from_ms(now_ms)
        await coupon_licences.add_entries(conn, row.id, rows, at=at, latest=from_ms(latest_ms))
        detail = {"entries": len(judged), "through": rows[-1].seq}
        event = CouponEvent(at=at, event="uploaded", by=by, licence_id=row.id, detail=detail)
        await coupons.add_event(conn, event)
    return {
        "licence": row.id,
        "state": row.state,
        "known_through": judged[-1].signed.sale.seq if judged else row.log_seq,
        "new": len(judged),
        "findings": [_finding_to_api(each) for each in judged if each.findings],
    }


async def _book(
    conn: AsyncConnection, desk: Office, row: LicenceRow, judged: Sequence[Judged], now_ms: int
) -> list[Judged]:
    """Draw each new sale of the money held, mark its coupon as sold; return the sales with all that is odd."""
    serials = [each.signed.sale.serial for each in judged]
    told = await coupon_licences.read_logged(conn, row.id, serials)
    found = await coupon_licences.lock_licensed(conn, row.id, serials)
    licence, calendar = licence_of_row(row), desk.rules.calendar
    sold: dict[int, tuple[date, date]] = {}
    seen: list[Judged] = []
    drawn_minor = row.drawn_minor
    for each in judged:
        sale, coupon = each.signed.sale, found.get(each.signed.sale.serial)
        findings = [*each.findings, *_sale_findings(row, each, coupon, told)]
        if coupon is not None and FATAL.isdisjoint(findings) and coupon.state == CouponState.RESERVED:
            drawn_minor += coupon.amount_minor
            if drawn_minor > row.limit_minor:
                findings.append(Finding.OVER_LIMIT)
            if not await draw_on_licence(conn, row, coupon.serial, coupon.amount_minor):
                findings.append(Finding.NOT_PAID)
        if coupon is not None and FATAL.isdisjoint(findings):
            sold_on = calendar.day_of(sold_at_ms(licence, each, now_ms=now_ms))
            sold[coupon.id] = (sold_on, valid_until(sold_on))
            told.add(sale.serial)
        seen.append(replace(each, findings=tuple(findings)))
    await coupon_licences.sell_licensed(conn, sold)
    return seen


def _finding_to_api(judged: Judged) -> dict[str, Any]:  # JSON.
    sale = judged.signed.sale
    return {"seq": sale.seq, "serial": sale.serial, "findings": [str(each) for each in judged.findings]}


def _sale_findings(row: LicenceRow, judged: Judged, coupon: LicensedCoupon | None, told: set[str]) -> list[Finding]:
    """Return what is odd about a sale by what is known of its coupon."""
    sale, found = judged.signed.sale, []
    if coupon is None:
        return [Finding.NOT_IN_RANGE]
    if sale.serial in told:
        found.append(Finding.SOLD_TWICE)
    if coupon.state == CouponState.VOID:
        found.append(Finding.COUPON_VOID)
    if sale.amount_minor != coupon.amount_minor:
        found.append(Finding.OTHER_AMOUNT)
    if row.revoked_at is not None and sale.sold_at_ms >= to_ms(row.revoked_at):
        found.append(Finding.AFTER_REVOCATION)
    return found


def licence_of_row(row: LicenceRow) -> Licence:
    """Return a stored licence as it was signed."""
    return Licence(
        number=row.id,
        station=row.station,
        vendor_id=row.vendor_id,
        station_key=bytes(row.station_key).hex(),
        valid_from_ms=to_ms(row.valid_from),
        valid_until_ms=to_ms(row.valid_until),
        limit_minor=row.limit_minor,
        ranges=tuple(SerialRange(first=each["first"], last=each["last"]) for each in row.ranges),
    )


def entry_of(told: LogEntryBody) -> SignedSale:
    """Return an entry as it was uploaded."""
    fields = told.model_dump(exclude={"signature"})
    return SignedSale(sale=LoggedSale(**fields), signature=told.signature)


def entries_of(content: bytes) -> tuple[int, list[SignedSale]]:
    """Read a log that came as a file: the licence's number and its entries.

    Raises: LogBroken.
    """
    try:
        log = _LogFile.model_validate_json(content)
    except ValidationError as error:
        place = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise LogBroken(
            f"log: expected a licence and its entries as JSON, got something else at {place or 'all'}"
        ) from None
    return log.licence, [entry_of(each) for each in log.entries]


def _log_entry(judged: Judged) -> LogEntry:
    sale = judged.signed.sale
    return LogEntry(
        seq=sale.seq,
        serial=sale.serial,
        amount_minor=sale.amount_minor,
        sold_at=from_ms(sale.sold_at_ms),
        digest=sale.digest,
        signature=judged.signed.signature,
        findings=[str(each) for each in judged.findings],
    )


async def _lock(conn: AsyncConnection, number: int) -> LicenceRow:
    licence = await coupon_licences.lock_licence(conn, number)
    if licence is None:
        raise LicenceUnknown(f"licence: expected a known number, got {number}")
    return licence


def _require_sound(asked: LicenceAsked, value_minor: int) -> None:
    """Refuse what would hold a vendor's money for nothing, or for too long. Raises: LicenceWrong."""
    if not 0 < asked.limit_minor <= value_minor:
        raise LicenceWrong(
            f"licence: expected a limit of at most {format_minor(value_minor)}, what its coupons come to, "
            f"got {format_minor(asked.limit_minor)}"
        )
    if not 0 < asked.valid_until_ms - asked.valid_from_ms <= LICENCE_MS_MAX:
        raise LicenceWrong("licence: expected an end after its beginning, 31 days at most")


def _licence(number: int, asked: LicenceAsked) -> Licence:
    return Licence(
        number=number,
        station=asked.station,
        vendor_id=asked.vendor_id,
        station_key=asked.station_key.hex(),
        valid_from_ms=asked.valid_from_ms,
        valid_until_ms=asked.valid_until_ms,
        limit_minor=asked.limit_minor,
        ranges=asked.ranges,
    )


def _new_licence(asked: LicenceAsked, by: str, now_ms: int) -> NewLicence:
    return NewLicence(
        vendor_id=asked.vendor_id,
        station=asked.station,
        station_key=asked.station_key,
        valid_from=from_ms(asked.valid_from_ms),
        valid_until=from_ms(asked.valid_until_ms),
        limit_minor=asked.limit_minor,
        ranges=[{"first": each.first, "last": each.last} for each in asked.ranges],
        given_at=from_ms(now_ms),
        given_by=by,
    )
