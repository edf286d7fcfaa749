"""The client of a hardware security module against a simulated one that fails as such modules do."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime

import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from meter_sim.edges.security_module import Fault, ModuleServer, SerialModule
from tests.integration.module_bench import (
    EA07_METER,
    LOOPBACK,
    MAP,
    METER,
    REGISTERS,
    TIMES,
    VUDK,
    Bench,
    open_bench,
    simulated_module,
    soft_module,
)
from vending.edges.security_modules import choose_security_module, open_sts_module
from vending.edges.sts_module import QUEUE_MAX, ModuleTimes, StsModule
from vending.edges.sts_module_line import SerialLine, TcpLine
from vending.security import (
    CreditKeyTypeRefused,
    ExtendedSet,
    ModuleAbsent,
    ModuleBusy,
    ModuleRefused,
    ModuleTimeout,
    ModuleUnavailable,
    SecurityModule,
    TokenRefused,
    VendingKeyExpired,
    VendingKeyUnknown,
)
from vending.sts.amounts import CurrencyField, encode_unit_amount
from vending.sts.errors import KeyChangeRefused, NewKeyExpired
from vending.sts.identity import BaseDate, Drn, KeyType, MeterKeyRecord, luhn_check_digit
from vending.sts.keys import derive_decoder_key
from vending.sts.management import (
    REGISTER_ALL,
    ExtendedControl,
    ExtendedFlag,
    Management,
    ManagementKind,
    decode_any_token,
)
from vending.sts.tokens import (
    CreditService,
    DisplayTest,
    TokenNumber,
    UnitCredit,
    display_test_control,
    encode_token,
)
from vending.sts_module_settings import (
    ModuleSetup,
    RegisterMismatch,
    SerialAddress,
    TcpAddress,
    parse_register_map,
)

NOW = datetime(2026, 11, 22, 9, 30, tzinfo=UTC)
# Keys of 1993 were still in force.
IN_2020 = datetime(2020, 6, 1, tzinfo=UTC)
TID = 6_779_000
# How long a test waits for what must come.
PATIENCE_S = 60.0


def once(position: int, fault: Fault) -> Callable[[str], Fault]:
    """Return a fault of one request only, counted from 0."""
    seen = iter(range(1_000))
    return lambda request: fault if next(seen) == position else Fault.NONE


async def credit(module: SecurityModule, meter: MeterKeyRecord = METER, *, units: int = 256) -> TokenNumber:
    """Mint an electricity credit."""
    amount16 = encode_unit_amount(units)
    return await module.mint_unit_credit(meter, service=CreditService.ELECTRICITY, amount16=amount16, tid=TID)


Minting = Callable[[SecurityModule], Awaitable[TokenNumber | tuple[TokenNumber, ...]]]


def minting(method: str, *records: MeterKeyRecord, **fields: object) -> Minting:
    """Return the call of one method of the port."""
    # The method and its fields go together in `mintings`, the only caller.
    return lambda module: getattr(module, method)(*records, **fields)  # type: ignore[no-any-return]


def mintings() -> list[Minting]:
    """Return every kind of minting that the port has for STS."""
    made: list[Minting] = []
    values: list[tuple[ManagementKind | ExtendedSet, int]] = [
        *((kind, 0 if kind is ManagementKind.CLEAR_TAMPER else 0xC123) for kind in ManagementKind),
        (ManagementKind.CLEAR_CREDIT, REGISTER_ALL),
        (ExtendedSet.EXTENDED_SET, 7 << 10 | 1000),
        (ExtendedSet.EXTENDED_SET, 63 << 10 | 300 << 1 | 1),
    ]
    for meter in (METER, replace(EA07_METER, krn=2, base_date=BaseDate.Y2014)):
        for service in CreditService:
            made.append(minting("mint_unit_credit", meter, service=service, amount16=0x4001, tid=TID))
            for amount_e5 in (50_000_000, -1_234_500_000):
                amount = CurrencyField.encode(amount_e5)
                made.append(minting("mint_currency_credit", meter, service=service, amount=amount, tid=TID))
        made += [minting("mint_management", meter, kind=kind, value16=value16, tid=TID) for kind, value16 in values]
    for old, new in [
        (METER, replace(METER, krn=2, ken=200, tariff_index=99)),
        (EA07_METER, replace(EA07_METER, tariff_index=2)),
        (EA07_METER, replace(EA07_METER, krn=2, base_date=BaseDate.Y2014)),
    ]:
        for carry_sgc in (False, True):
            made.append(minting("mint_key_change", old, new, carry_sgc=carry_sgc, issued_at=IN_2020))
    return made


def without_rnd(token: object) -> object:
    """Return a token with RND 0, where it has one."""
    if isinstance(token, UnitCredit | Management | ExtendedControl | ExtendedFlag):
        return replace(token, rnd=0)
    return token


def test_module_makes_every_token_as_the_soft_module_does() -> None:
    """Credits, currency of both signs, management, extended set, key changes of 2, 3 and 4 tokens: the same digits."""

    async def story() -> None:
        async with open_bench() as bench:
            for mint in mintings():
                assert await mint(bench.client) == await mint(bench.soft)
            assert bench.server.opened == 1

    asyncio.run(story())


def test_module_reads_tokens_as_the_soft_module_does_but_for_rnd() -> None:
    """RND is not told; a token of another meter and class 1 read as they do there; key sections are not opened."""

    async def story() -> None:
        async with open_bench() as bench:
            for mint in mintings():
                minted = await mint(bench.soft)
                if isinstance(minted, TokenNumber):
                    expected, read = await bench.soft.verify(METER, minted), await bench.client.verify(METER, minted)
                    if isinstance(expected, TokenRefused):
                        assert isinstance(read, TokenRefused)
                        assert read.code == expected.code == "token_crc_mismatch"
                    else:
                        assert read == without_rnd(expected)
            display = encode_token(
                DisplayTest(maker_digits=2, maker_code=0, control=display_test_control(0, maker_digits=2)), None
            )
            assert await bench.client.verify(METER, display) == await bench.soft.verify(METER, display)
            section = (await bench.soft.mint_key_change(METER, METER, carry_sgc=True, issued_at=NOW))[0]
            refused = await bench.client.verify(METER, section)
            assert isinstance(refused, TokenRefused)
            assert refused.code == "unsupported_token"

    asyncio.run(story())


def test_module_is_not_asked_for_what_must_be_refused() -> None:
    """Expired and default keys, unknown keys, another base date, a key change backwards or to an expired key."""

    async def story() -> None:
        async with open_bench() as bench:
            client = bench.client
            expired = replace(METER, ken=(TID >> 16) - 1)
            with pytest.raises(VendingKeyExpired):
                await credit(client, expired)
            with pytest.raises(VendingKeyExpired):
                await client.mint_management(expired, kind=ManagementKind.CLEAR_TAMPER, value16=0, tid=TID)
            with pytest.raises(CreditKeyTypeRefused):
                await credit(client, replace(METER, kt=KeyType.DEFAULT, sgc="999001"))
            with pytest.raises(VendingKeyUnknown):
                await credit(client, replace(METER, krn=9))
            with pytest.raises(ModuleRefused, match="register 1: expected base date 1993"):
                await credit(client, replace(METER, base_date=BaseDate.Y1993))
            with pytest.raises(NewKeyExpired):
                await client.mint_key_change(METER, replace(METER, ken=100), carry_sgc=True, issued_at=NOW)
            with pytest.raises(KeyChangeRefused):
                await client.mint_key_change(
                    replace(EA07_METER, krn=2, base_date=BaseDate.Y2014), EA07_METER, carry_sgc=True, issued_at=NOW
                )
            with pytest.raises(ModuleRefused, match="expected KEN 255 in security module register 2, got 200"):
                await client.mint_key_change(METER, replace(METER, krn=2), carry_sgc=True, issued_at=NOW)
            assert bench.server.asked == []

    asyncio.run(story())


def test_refusal_of_the_module_comes_through_by_its_kind() -> None:
    """The module judges by its own register: a default key there takes no credit, whatever the record says."""

    async def story() -> None:
        async with open_bench() as bench:
            with pytest.raises(CreditKeyTypeRefused, match="status 05"):
                await credit(bench.client, replace(METER, sgc="999001"))
            assert await credit(bench.client) == await credit(bench.soft)
            assert await bench.client.key_check_value(sgc="123456", krn=1) == "A1B2C3"
            assert await bench.client.key_check_value(sgc="201457", krn=1) == ""
            assert (await bench.client.identify()).module_id == "SIM00001"

    asyncio.run(story())


@pytest.mark.parametrize("fault", list(Fault))
def test_one_fault_anywhere_costs_time_and_never_the_token(fault: Fault) -> None:
    """Of echo, key attributes, minting and reading back, each fails once: the right token comes all the same.

    Only attributes of another key are said, as those of an exchanged module are.
    """

    async def story() -> None:
        other = replace(METER, tariff_index=2)
        for position in range(4):
            async with open_bench(fault_of=once(position, fault)) as bench:
                async with asyncio.timeout(PATIENCE_S):
                    if (position, fault) == (1, Fault.OTHER_REGISTER):
                        with pytest.raises(RegisterMismatch):
                            await credit(bench.client)
                    assert await credit(bench.client) == await credit(bench.soft)
                    # What the fault has left on the line is met by the next one.
                    assert await credit(bench.client, other, units=77) == await credit(bench.soft, other, units=77)

    asyncio.run(story())


def test_lost_answer_is_asked_again_with_the_same_tid() -> None:
    """The module has made two tokens, only one was given out, and it says what was asked for."""

    async def story() -> None:
        async with open_bench(fault_of=once(2, Fault.CUT)) as bench:
            number = await credit(bench.client, units=300)
            assert bench.server.module.minted == 2
            read = await bench.soft.verify(METER, number)
            assert isinstance(read, UnitCredit)
            assert (read.tid, read.amount16) == (TID, encode_unit_amount(300))

    asyncio.run(story())


def test_module_that_stays_busy_is_busy_within_the_time_of_a_request() -> None:
    """Retried with pauses until the time is over, then said so; a later request is not hindered."""

    async def story() -> None:
        busy = True
        times = replace(TIMES, request_s=0.5)
        async with open_bench(fault_of=lambda request: Fault.BUSY if busy else Fault.NONE, times=times) as bench:
            loop = asyncio.get_running_loop()
            started_s = loop.time()
            async with asyncio.timeout(PATIENCE_S):
                with pytest.raises(ModuleBusy, match="general error 99"):
                    await credit(bench.client)
            assert loop.time() - started_s >= 0.5
            assert len(bench.server.asked) > 2
            busy = False
        async with open_bench() as bench:
            assert await credit(bench.client) == await credit(bench.soft)

    asyncio.run(story())


def test_module_that_never_answers_is_a_timeout() -> None:
    """After three tries, or when the time of a request is over, whichever is first."""

    async def story() -> None:
        silent = {"SM?VC"}

        def fault_of(request: str) -> Fault:
            return Fault.SILENT if request[:5] in silent else Fault.NONE

        async with open_bench(fault_of=fault_of, times=replace(TIMES, answer_s=0.05)) as bench:
            with pytest.raises(ModuleTimeout, match="3 times"):
                await credit(bench.client)
        async with open_bench(fault_of=fault_of, times=replace(TIMES, request_s=0.3, answer_s=10.0)) as bench:
            with pytest.raises(ModuleTimeout, match="in time"):
                await credit(bench.client)
            silent.clear()

    asyncio.run(story())


def test_module_out_of_reach_is_unavailable_and_sells_when_it_is_back() -> None:
    """A refused connection is said at once; nobody waits for a module that is off."""

    async def story() -> None:
        async with open_bench() as bench:
            assert await credit(bench.client) == await credit(bench.soft)
            port = bench.server.port
            await bench.server.stop()
            with pytest.raises(ModuleUnavailable):
                await credit(bench.client)
            await bench.server.listen(port)
            assert await credit(bench.client) == await credit(bench.soft)

    asyncio.run(story())


def test_slow_module_is_waited_for_and_its_queue_is_bounded() -> None:
    """What was asked within the bound is answered in turn; one more is refused at once."""

    async def story() -> None:
        async with open_bench(times=replace(TIMES, answer_s=PATIENCE_S, request_s=PATIENCE_S)) as bench:
            bench.server.hold()
            asking = [asyncio.create_task(credit(bench.client, units=each)) for each in range(1, QUEUE_MAX + 1)]
            await bench.server.until_asked(1)
            with pytest.raises(ModuleBusy, match=f"at most {QUEUE_MAX}"):
                await credit(bench.client)
            bench.server.release()
            numbers = await asyncio.gather(*asking)
            assert numbers == [await credit(bench.soft, units=each) for each in range(1, QUEUE_MAX + 1)]

    asyncio.run(story())


def test_answer_of_a_caller_that_went_away_is_given_to_nobody() -> None:
    """A cancelled request leaves its answer on the line; the next one gets its own."""

    async def story() -> None:
        async with open_bench() as bench:
            assert await credit(bench.client) == await credit(bench.soft)
            bench.server.hold()
            gone = asyncio.create_task(credit(bench.client, units=1))
            await bench.server.until_asked(len(bench.server.asked) + 1)
            gone.cancel()
            with pytest.raises(asyncio.CancelledError):
                await gone
            bench.server.release()
            assert await credit(bench.client, units=2) == await credit(bench.soft, units=2)

    asyncio.run(story())


def _meter(number: int) -> MeterKeyRecord:
    digits = f"01{number:08d}"
    return replace(METER, drn=Drn(f"{digits}{luhn_check_digit(digits)}"))


async def _random_faults(seed: int) -> tuple[int, int]:
    """Let many mint at once over a line with random faults; return how many were answered, and how many not."""
    rng = random.Random(seed)
    faults = [each for each in Fault if each is not Fault.NONE]

    def fault_of(request: str) -> Fault:
        return rng.choice(faults) if rng.random() < 0.15 else Fault.NONE

    async def mint(bench: Bench, number: int) -> bool:
        meter, asked = _meter(number), rng.randrange(1, 10_000)
        try:
            token = await credit(bench.client, meter, units=asked)
        except ModuleAbsent:
            return False
        read = decode_any_token(token, derive_decoder_key(VUDK, meter))
        assert isinstance(read, UnitCredit)
        assert (read.tid, read.amount16) == (TID, encode_unit_amount(asked))
        return True

    async with open_bench(fault_of=fault_of, times=replace(TIMES, answer_s=0.1)) as bench:
        answered = await asyncio.gather(*(mint(bench, number) for number in range(12)))
    return sum(answered), len(answered) - sum(answered)


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(min_value=0, max_value=1 << 32))
def test_every_answered_mint_is_what_was_asked_under_random_faults(seed: int) -> None:
    """Whatever is lost, late, doubled, damaged or minted under another key: a token given out is the one asked for."""
    answered, _ = asyncio.run(_random_faults(seed))
    assert answered > 0


def test_register_that_holds_another_key_stops_the_start() -> None:
    """Every register is asked for; the first that differs is named with what was expected."""

    async def story() -> None:
        async with open_bench() as bench:
            address = TcpAddress(host=LOOPBACK, port=bench.server.port)
            module = await open_sts_module(ModuleSetup(address=address, registers=MAP), times=TIMES)
            assert await credit(module) == await credit(bench.soft)
            module.close()
            for text, named in (
                (
                    "1=201457/1/2014/255,2=201457/2/2014/255",
                    "register 2: expected SGC 201457 KRN 2 base date 2014 KEN 255",
                ),
                ("2=201457/1/2014/255", "register 2"),
            ):
                with pytest.raises(RegisterMismatch, match=named):
                    await open_sts_module(ModuleSetup(address=address, registers=parse_register_map(text)), times=TIMES)
            empty = ModuleSetup(address=address, registers=parse_register_map("9=201457/1/2014/255"))
            with pytest.raises(VendingKeyUnknown, match="register 9"):
                await open_sts_module(empty, times=TIMES)

    asyncio.run(story())


def test_module_exchanged_for_another_mints_nothing() -> None:
    """After the line was cut the registers are held against the map again before any token."""

    async def story() -> None:
        async with open_bench() as bench:
            await credit(bench.client)
            minted = bench.server.module.minted
            port = bench.server.port
            await bench.server.stop()
            bench.server.module.registers[1] = replace(REGISTERS[1], sgc="201999")
            await bench.server.listen(port)
            with pytest.raises(RegisterMismatch):
                await credit(bench.client)
            assert bench.server.module.minted == minted

    asyncio.run(story())


def test_soft_module_is_chosen_where_no_other_is_set() -> None:
    """The setting decides, nothing else."""

    async def story() -> None:
        soft = soft_module()

        async def open_soft() -> SecurityModule:
            return soft

        assert await choose_security_module(None, open_soft) is soft
        async with open_bench() as bench:
            setup = ModuleSetup(address=TcpAddress(host=LOOPBACK, port=bench.server.port), registers=MAP)
            assert isinstance(await choose_security_module(setup, open_soft), StsModule)

    asyncio.run(story())


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_serial_port_carries_the_same_messages(run: Callable[[Awaitable[None]], None]) -> None:
    """With a lost answer and a late one, after the port was opened anew, and for one client at a time."""

    async def story() -> None:
        far, near = os.openpty()
        try:
            faults = {2: Fault.SILENT, 6: Fault.LATE, 12: Fault.CUT}
            seen = iter(range(1_000))
            server = ModuleServer(simulated_module(), fault_of=lambda request: faults.get(next(seen), Fault.NONE))
            with SerialModule(server, far):
                client = StsModule(SerialLine(SerialAddress(path=os.ttyname(near), baud=9600)), MAP, times=TIMES)
                soft = soft_module()
                for units in range(1, 8):
                    assert await credit(client, units=units) == await credit(soft, units=units)
                client.close()
                assert await credit(client) == await credit(soft)
                second = StsModule(SerialLine(SerialAddress(path=os.ttyname(near), baud=9600)), MAP, times=TIMES)
                with pytest.raises(ModuleUnavailable):
                    await credit(second)
                client.close()
                assert await credit(second) == await credit(soft)
                second.close()
        finally:
            os.close(far)
            os.close(near)

    run(story())


def test_serial_port_that_is_none_is_unavailable(tmp_path: object) -> None:
    """A path that is missing, or no terminal line, is said as a module that cannot be reached."""

    async def story() -> None:
        for path in (f"{tmp_path}/missing", f"{tmp_path}/file"):
            client = StsModule(SerialLine(SerialAddress(path=path, baud=9600)), MAP, times=TIMES)
            with pytest.raises(ModuleUnavailable):
                await credit(client)

    with open(f"{tmp_path}/file", "w", encoding="ascii"):
        pass
    asyncio.run(story())


def test_logs_and_errors_of_lost_answers_hold_no_token() -> None:
    """What is lost on the line is counted, never shown."""

    async def story() -> None:
        async with open_bench(
            fault_of=lambda request: Fault.OTHER_REGISTER if "VC" in request[:5] else Fault.NONE
        ) as bench:
            with capture_logs() as logs, pytest.raises(ModuleTimeout) as refusal:
                await credit(bench.client)
            wrong = await credit(bench.soft, replace(METER, krn=2, ken=200))
            text = f"{logs} {refusal.value!r} {refusal.value}"
            assert "security_module_answer_lost" in text
            assert not any(wrong.digits[at : at + 8] in text for at in range(13))

    asyncio.run(story())


def test_client_times_fit_below_the_database_session() -> None:
    """A vend waits in a transaction that the database ends after 5 s: a request must be over by then."""
    assert ModuleTimes().request_s < 5.0
    assert TcpLine(TcpAddress(host=LOOPBACK, port=1)).has_unread is False
