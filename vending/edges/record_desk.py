"""The record desk: a meter's record read for its engine, changed, and moved to another key by tokens.

Stage: between administration (command line, interface) and the database. Each change is one transaction under the lock
of the meter's account, which vends take too. A key change stores its tokens and the version they bring, pending,
together; that version is in force once somebody confirms it or the meter accepts its first token under it. Never: a
key, or the digits of a token in a log.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

from psycopg import AsyncConnection

from billing.calendar import from_ms
from db.meter_records import (
    MeterPlace,
    OpenToken,
    RecordConflict,
    RecordFields,
    RecordRow,
    begin_pending,
    find_place,
    lock_record,
    name_meter,
    open_tokens,
    propose_record,
    record_to_mint,
    settled_record,
    withdraw_pending,
    write_record,
)
from db.paygo_devices import read_paygo_device
from db.vends import NewToken, add_token, take_tid
from vending.edges.errors import RequestDeclined
from vending.engines.choice import engine_of
from vending.engines.port import IssuedToken, ManagementOrder
from vending.engines.records import (
    KEYPAD_CARRIER,
    USUAL_CAPABILITIES,
    EngineName,
    MeterRecord,
    RecordFault,
    StoredDevice,
    faults_of,
    read_record,
    usual_key_change_tokens,
)
from vending.openpaygo.devices import PaygoDevice
from vending.security import SecurityModule
from vending.vends import Declined, DeclineReason, VendingError

# The newest tokens that a key change may kill, named to whoever makes it: two screens.
OPEN_TOKENS_SHOWN = 40


class RecordRefused(VendingError):
    """A record that somebody enters is wrong; every wrong field is named."""

    code: ClassVar[str] = "record_refused"

    def __init__(self, serial: str, faults: list[RecordFault]) -> None:
        super().__init__(f"meter {serial}: {'; '.join(map(str, faults))}")
        self.faults = faults


class MeterUnknown(VendingError):
    """No meter of that serial."""

    code: ClassVar[str] = "unknown_meter"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Who changes what of a meter, and why; `changes` are fields of its record by name."""

    serial: str
    changes: Mapping[str, object]
    by: str
    reason: str
    drn: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyChanged:
    """A key change made: its tokens in the order of their numbers, and tokens that die with the old key if unused."""

    version: int
    before: RecordFields
    after: RecordFields
    tokens: tuple[IssuedToken, ...]
    open_tokens: list[OpenToken] = field(default_factory=list)


async def load_record(conn: AsyncConnection, row: RecordRow) -> MeterRecord | Declined:
    """Read a stored version as its engine takes it, with the device it names."""
    return read_record(
        row.fields,
        serial=row.serial,
        drn=row.drn,
        last_tid=row.last_tid,
        device=await _device(conn, row.meter_id, row.serial) if row.engine == EngineName.OPENPAYGO else None,
    )


async def set_record(conn: AsyncConnection, wanted: Wanted, *, now_ms: int) -> int | None:
    """Put a corrected or first record in force at once; return its version, None where it says nothing new.

    Raises: MeterUnknown, RecordRefused; RecordConflict while a key change is pending, or for a DRN that is taken.
    """
    async with conn.transaction():
        place = await _locked_place(conn, wanted.serial)
        present = await settled_record(conn, place.id)
        fields = _changed(present, wanted.changes)
        drn = wanted.drn or place.drn
        faults = faults_of(fields, drn=drn)
        if faults:
            raise RecordRefused(wanted.serial, faults)
        if present is not None and present.fields == fields and place.drn == drn:
            return None
        if drn is not None:
            await name_meter(conn, place, drn)
        return await write_record(conn, place.id, fields, by=wanted.by, reason=wanted.reason, at=from_ms(now_ms))


async def change_key(conn: AsyncConnection, module: SecurityModule, wanted: Wanted, *, now_ms: int) -> KeyChanged:
    """Make the tokens that move a meter to another key, and keep its record of them as pending.

    Raises: MeterUnknown, RecordRefused, RequestDeclined; RecordConflict while a key change is pending; ModuleAbsent.
    """
    async with conn.transaction():
        place = await _locked_place(conn, wanted.serial)
        row = _known(place, await settled_record(conn, place.id))
        fields = _changed(row, wanted.changes)
        faults = faults_of(fields, drn=row.drn)
        if faults:
            raise RecordRefused(wanted.serial, faults)
        before = _granted(await load_record(conn, row))
        after = _granted(read_record(fields, serial=row.serial, drn=row.drn, last_tid=None))
        tokens = await engine_of(before, module).issue_key_change(before, after, now_ms=now_ms)
        if isinstance(tokens, Declined):
            raise RequestDeclined(tokens)
        record_id, version = await propose_record(conn, place.id, fields, by=wanted.by, reason=wanted.reason)
        for section, token in enumerate(tokens, 1):
            await add_token(conn, _token_row(row, record_id, token, kind="key_change", section=section))
        dying = await open_tokens(conn, row, most=OPEN_TOKENS_SHOWN)
    return KeyChanged(version=version, before=row.fields, after=fields, tokens=tokens, open_tokens=dying)


async def confirm_change(conn: AsyncConnection, serial: str, *, by: str, now_ms: int) -> int:
    """Put a pending version in force on somebody's word; return its number.

    Raises: MeterUnknown; RecordConflict where no version is pending.
    """
    async with conn.transaction():
        place = await _locked_place(conn, serial)
        return _settled(serial, await begin_pending(conn, place.id, by=by, at=from_ms(now_ms)))


async def withdraw_change(conn: AsyncConnection, serial: str, *, by: str) -> int:
    """Give a pending version up on somebody's word that its tokens were not entered; return its number.

    Raises: MeterUnknown; RecordConflict where no version is pending.
    """
    async with conn.transaction():
        place = await _locked_place(conn, serial)
        return _settled(serial, await withdraw_pending(conn, place.id, by=by))


async def issue_management(
    conn: AsyncConnection,
    module: SecurityModule,
    serial: str,
    order: ManagementOrder,
    *,
    by: str,
    reason: str,
    now_ms: int,
) -> IssuedToken:
    """Make a token that sets or clears something in a meter, and keep it with who asked for it.

    Raises: MeterUnknown, RequestDeclined, ModuleAbsent.
    """
    async with conn.transaction():
        place = await _locked_place(conn, serial)
        row = _known(place, await record_to_mint(conn, place.id))
        record = _granted(await load_record(conn, row))
        token = await engine_of(record, module).issue_management(record, order, now_ms=now_ms)
        if isinstance(token, Declined):
            raise RequestDeclined(token)
        assert token.tid is not None, f"meter {serial}: a management token has a token id"
        await take_tid(conn, row.meter_id, row.era, token.tid)
        await add_token(conn, _token_row(row, row.id, token, kind="management", asked_by=by, reason=reason))
    return token


def _token_row(
    row: RecordRow,
    record_id: int,
    token: IssuedToken,
    *,
    kind: str,
    section: int | None = None,
    asked_by: str | None = None,
    reason: str | None = None,
) -> NewToken:
    return NewToken(
        meter_id=row.meter_id,
        record_id=record_id,
        engine=token.engine.value,
        kind=kind,
        era=row.era,
        tid=token.tid,
        digits=token.digits,
        subclass=token.subclass,
        section=section,
        asked_by=asked_by,
        reason=reason,
    )


async def _device(conn: AsyncConnection, meter_id: int, serial: str) -> StoredDevice | None:
    stored = await read_paygo_device(conn, meter_id)
    if stored is None:
        return None
    device = PaygoDevice(
        serial=serial,
        starting_code=stored.starting_code,
        time_divider=stored.time_divider,
        restricted_digits=stored.restricted_digits,
        extended=stored.extended,
    )
    return StoredDevice(device=device, sealed_key=stored.sealed_key)


async def _locked_place(conn: AsyncConnection, serial: str) -> MeterPlace:
    place = await find_place(conn, serial)
    if place is None:
        raise MeterUnknown(f"meter {serial}: expected a registered serial")
    await lock_record(conn, place)
    return place


def _known(place: MeterPlace, row: RecordRow | None) -> RecordRow:
    if row is None:
        raise RequestDeclined(
            Declined(
                reason=DeclineReason.METER_WITHOUT_STS, message=f"meter {place.serial}: expected a record, got none"
            )
        )
    return row


def _changed(row: RecordRow | None, changes: Mapping[str, object]) -> RecordFields:
    """Return a record with some fields changed; another engine's record begins from nothing."""
    engine = changes.get("engine", row.engine if row else EngineName.STS.value)
    keeps = row is not None and row.engine == engine
    base = row.fields if row is not None and keeps else RecordFields(engine=str(engine), capabilities=())
    # The names are those of the record's fields; what they hold is held against the engine's rules right after.
    changed = replace(base, **changes)  # type: ignore[arg-type]
    return changed if keeps else _with_what_is_usual(changed)


def _with_what_is_usual(record: RecordFields) -> RecordFields:
    """Fill what a first record does not say itself."""
    usual = USUAL_CAPABILITIES.get(record.engine, frozenset())
    capabilities = record.capabilities or tuple(sorted(usual))
    if record.engine != EngineName.STS:
        return replace(record, capabilities=capabilities)
    number = usual_key_change_tokens(record.ea or 0) if record.key_change_tokens is None else record.key_change_tokens
    carrier = KEYPAD_CARRIER if record.tct is None else record.tct
    return replace(record, capabilities=capabilities, tct=carrier, key_change_tokens=number)


def _granted(record: MeterRecord | Declined) -> MeterRecord:
    if isinstance(record, Declined):
        raise RequestDeclined(record)
    return record


def _settled(serial: str, version: int | None) -> int:
    if version is None:
        raise RecordConflict(f"meter {serial}: expected a key change under way, got none")
    return version
