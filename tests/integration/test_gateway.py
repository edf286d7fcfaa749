"""The gateway against pymodbus's own server: polled, published, charged; what is away or wrong delays nobody."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path

import pytest
from pymodbus.framer import FramerType

from db.audit import run_checks
from db.gateways import NewPolledMeter, add_polled_meter
from headend.events import OTHER_METER, VALUES_IMPLAUSIBLE
from prepaid.embedded import EmbeddedNats
from prepaid.embedded.process import spawn, stop_child
from tests.integration.gateway_line import Meter, counted, enter, running_gateway, running_line
from tests.support import CALENDAR, Site, open_site, running_ingest

pytestmark = [pytest.mark.db, pytest.mark.broker]


def polled(serial: str, unit: int, **more: object) -> NewPolledMeter:
    return NewPolledMeter(serial=serial, line="north", unit=unit, model="sdm120", poll_s=1, **more)  # type: ignore[arg-type]


async def stored(site: Site, serial: str, count: int) -> None:
    async def there() -> bool:
        return len(await site.registers(serial)) >= count

    await site.until(there, f"{count} readings of {serial} are stored")


async def state_of(site: Site, serial: str) -> tuple[str, str | None]:
    ((state, detail),) = await site.rows(
        "select p.state, p.detail from modbus_meters p join meters m on m.id = p.meter_id where m.serial = %s", serial
    )
    return state, detail


async def until_state(site: Site, serial: str, expected: str) -> str | None:
    async def so() -> bool:
        return (await state_of(site, serial))[0] == expected

    await site.until(so, f"meter {serial} is {expected}")
    return (await state_of(site, serial))[1]


async def ringing(site: Site) -> list[tuple[str, int]]:
    return await site.rows(
        "select m.serial, a.code from event_alarms a join meters m on m.id = a.meter_id where a.ended_at is null"
    )


@pytest.mark.parametrize("framer", [pytest.param(FramerType.SOCKET, marks=pytest.mark.slow), FramerType.RTU])
def test_meters_of_a_line_are_charged_and_dead_or_wrong_ones_delay_nobody(
    framer: FramerType, database_url: str, nats: EmbeddedNats, tmp_path: Path
) -> None:
    """Of five meters on a line one is silent, one refuses, one has its words the other way round, one is not the
    registered device: one is charged, and what is wrong with the last two rings."""
    good, refusing, turned = Meter(import_kwh=1.25), Meter(refuses=True), Meter(low_word_first=True)

    async def story() -> None:
        async with (
            running_line({1: good, 2: Meter(), 3: refusing, 4: turned, 5: Meter()}, framer=framer) as line,
            open_site(database_url, nats) as site,
            running_ingest(site),
        ):
            for serial in ("GOOD", "DEAD", "REFUSES", "TURNED", "OTHER"):
                await site.add_home(serial)
            places = {"GOOD": 1, "DEAD": 2, "REFUSES": 3, "TURNED": 4}
            line.silent.add(2)
            await enter(site, line, [polled(serial, unit) for serial, unit in places.items()])
            await add_polled_meter(site.conn, polled("OTHER", 5, device_serial="70001"))
            async with running_gateway(site, tmp_path) as metrics:
                await stored(site, "GOOD", 2)
                good.import_kwh = 1.252
                await until_state(site, "DEAD", "silent")
                await until_state(site, "REFUSES", "refused")
                detail = await until_state(site, "TURNED", "implausible")
                assert detail is not None
                assert "sdm120, base 0, order abcd" in detail
                assert await until_state(site, "OTHER", "other_meter") is not None

                async def rung() -> bool:
                    return set(await ringing(site)) == {("TURNED", VALUES_IMPLAUSIBLE), ("OTHER", OTHER_METER)}

                await site.until(rung, "what is wrong with two meters rings")
                await stored(site, "GOOD", len(await site.registers("GOOD")) + 1)
                assert counted(metrics, "polls_total", outcome="silent") >= 1
                assert counted(metrics, "lines", up="yes") == 1
            await site.settled()
            registers = await site.registers("GOOD")
            assert set(registers.values()) == {1_250, 1_252}
            for serial in ("DEAD", "REFUSES", "TURNED", "OTHER"):
                assert await site.registers(serial) == {}
            assert await site.reasons() == []
            report = await run_checks(site.conn, CALENDAR)
            assert report.clean, "\n".join(report.lines())
            assert (await site.one("select count(*) from modbus_meters where state = 'read'")) == 1

    asyncio.run(story())


@pytest.mark.slow
def test_register_corrupt_once_is_read_again_and_a_lasting_change_is_told(
    database_url: str, nats: EmbeddedNats, tmp_path: Path
) -> None:
    """One absurd read is replaced by the second; a register that truly fell is told, and the head-end holds it."""
    meter = Meter(import_kwh=1.5)

    async def story() -> None:
        async with running_line({1: meter}) as line, open_site(database_url, nats) as site, running_ingest(site):
            await site.add_home("M1")
            await enter(site, line, [polled("M1", 1)])
            async with running_gateway(site, tmp_path) as metrics:
                await stored(site, "M1", 2)
                meter.absurd_once = [90_000.0]

                async def corrected() -> bool:
                    return counted(metrics, "registers_doubted_total", became="corrected") == 1

                await site.until(corrected, "the absurd read is gone")
                meter.import_kwh = 1.2

                async def confirmed() -> bool:
                    return counted(metrics, "registers_doubted_total", became="confirmed") == 1

                await site.until(confirmed, "the fall is told")

                async def held() -> bool:
                    return any(reason.startswith("register_") for reason in await site.reasons())

                await site.until(held, "the head-end holds the fall")
            await site.settled()
            assert set((await site.registers("M1")).values()) == {1_500}

    asyncio.run(story())


def test_line_that_goes_away_is_opened_again_and_the_broker_is_waited_out(
    database_url: str, nats: EmbeddedNats, tmp_path: Path
) -> None:
    """While the broker is dead readings wait on disk and all come; a line that hangs up is polled again when back."""
    meter = Meter()

    async def story() -> None:
        async with running_line({1: meter}) as line, open_site(database_url, nats) as site, running_ingest(site):
            await site.add_home("M1")
            await enter(site, line, [polled("M1", 1)])
            async with running_gateway(site, tmp_path) as metrics:
                await stored(site, "M1", 1)
                nats.kill()
                read = counted(metrics, "polls_total", outcome="read")

                async def waits() -> bool:
                    return counted(metrics, "polls_total", outcome="read") >= read + 3

                await site.until(waits, "polling goes on")
                nats.start()
                await stored(site, "M1", read + 3)
                await line.stop()

                async def down() -> bool:
                    return counted(metrics, "lines", up="no") == 1

                await site.until(down, "the line is seen to be away")
                await line.start()
                count = len(await site.registers("M1"))
                await stored(site, "M1", count + 2)
                read = counted(metrics, "polls_total", outcome="read")
                await stored(site, "M1", read)
            await site.settled()
            assert await site.reasons() == []

    asyncio.run(story())


@contextmanager
def gateway_process(site: Site, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a gateway as a process of its own."""
    environment = {
        **os.environ,
        "PREPAID_DATABASE_URL": site.database_url,
        "PREPAID_NATS_URL": site.nats.nats_url,
        "PREPAID_MQTT_URL": f"mqtt://{site.nats.mqtt_host}:{site.nats.mqtt_port}",
        "PREPAID_DATA_DIR": str(folder),
        "PREPAID_LEASE_S": "1",
    }
    child = spawn(
        [sys.executable, "-P", "-m", "prepaid", "gateway"],
        log_path=folder / "gateway.log",
        death_signal=signal.SIGTERM,
        environment=environment,
    )
    try:
        yield child
    finally:
        stop_child(child, name="gateway", ladder=((signal.SIGTERM, 10.0), (signal.SIGKILL, 5.0)))


@pytest.mark.slow
def test_gateway_killed_with_the_broker_away_loses_nothing_that_it_had_read(
    database_url: str, nats: EmbeddedNats, tmp_path: Path
) -> None:
    """What stood in its outbox when it was killed is published by the next process; nothing is stored twice."""
    meter = Meter()

    async def story() -> None:
        async with running_line({1: meter}) as line, open_site(database_url, nats) as site, running_ingest(site):
            await site.add_home("M1")
            await enter(site, line, [polled("M1", 1)])
            outbox = tmp_path / "gateway-1"

            async def written() -> bool:
                return sum(path.stat().st_size for path in outbox.glob("*.seg")) > 600

            with gateway_process(site, tmp_path) as child:
                await stored(site, "M1", 1)
                nats.kill()
                await site.until(written, "readings wait on disk")
                child.kill()
                await asyncio.to_thread(child.wait, 20)
            waiting = b"".join(path.read_bytes() for path in sorted(outbox.glob("*.seg")))
            instants = {int(at) for at in re.findall(rb'"at":(\d+)', waiting)}
            assert len(instants) >= 3
            with (sorted(outbox.glob("*.seg"))[-1]).open("ab") as torn:
                torn.write(b"\0\0\1")
            nats.start()
            with gateway_process(site, tmp_path) as child:

                async def all_stored() -> bool:
                    return instants <= (await site.registers("M1")).keys()

                await site.until(all_stored, "everything that was read is stored")
                await stored(site, "M1", len(instants) + 2)
                child.terminate()
                assert await asyncio.to_thread(child.wait, 20) == 0
            await site.settled()
            assert await site.reasons() == []
            assert "outbox_tail_torn" in (tmp_path / "gateway.log").read_text()

    asyncio.run(story())


@pytest.mark.slow
def test_gateways_share_lines_and_one_takes_over_what_another_left(
    database_url: str, nats: EmbeddedNats, tmp_path: Path
) -> None:
    """Two gateways poll each line once between them; when one stops the other polls all."""

    async def story() -> None:
        async with AsyncExitStack() as stack:
            lines = [await stack.enter_async_context(running_line({1: Meter()})) for _ in range(12)]
            site = await stack.enter_async_context(open_site(database_url, nats))
            await stack.enter_async_context(running_ingest(site))
            for number, line in enumerate(lines):
                await site.add_home(f"M{number}")
                place = NewPolledMeter(serial=f"M{number}", line=f"l{number}", unit=1, model="sdm120", poll_s=1)
                await enter(site, line, [place], name=f"l{number}")
            first = await stack.enter_async_context(running_gateway(site, tmp_path))
            async with running_gateway(site, tmp_path, member=2) as second:

                async def shared() -> bool:
                    shares = [counted(metrics, "lines", up="yes") for metrics in (first, second)]
                    return sum(shares) == len(lines) and min(shares) > 0

                await site.until(shared, "each line is polled by one of the two")

            async def alone() -> bool:
                return counted(first, "lines", up="yes") == len(lines)

            await site.until(alone, "the first polls all again")
            for number in range(len(lines)):
                await stored(site, f"M{number}", 2)

    asyncio.run(story())
