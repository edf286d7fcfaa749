"""`demo`: the whole product as a story of one evening, on a scratch folder and on recorded load.

Stage: every road at once. Homes report over real MQTT, a balance runs low and then out, the head-end cuts supply, a
recharge bought over HTTP restores it, the meter verifies the token. Each step is checked where it happens; a step
that does not happen ends the story with status 1.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import shutil
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from importlib import resources
from pathlib import Path
from typing import Any

import httpx
from psycopg import AsyncConnection

from billing.calendar import LocalCalendar, from_ms, period_of
from billing.money import format_minor
from billing.rating import total
from db.audit import run_checks
from db.orders import PostingRules
from db.pool import APPLICATION_ROLE, connect
from db.readings import ensure_partitions
from db.registry import NewAccount, NewMeter, StsIdentity, add_meter, add_vendor, open_account
from db.reports import (
    Bill,
    accounts_of_meters,
    alarm_there,
    bills,
    look_all,
    order_confirmed,
    order_delays_s,
    readings_there,
)
from headend.edges.close_day import close_day
from meter_sim.edges.fleet import Fleet, FleetSettings, ScaledClock
from meter_sim.meter import MeterSettings, SimulatedMeter
from meter_sim.recorded import Profile, parse_profile
from meter_sim.token_reader import TokenReader
from prepaid import console
from prepaid.console import rupees
from prepaid.demo_modbus import SERIAL as MODBUS_SERIAL
from prepaid.demo_modbus import enter_modbus_home, modbus_home
from prepaid.keys import OWN_KRN, OWN_SGC, ensure_own_vending_key, master_key
from prepaid.processes import calendar_of
from prepaid.settings import PrepaidError, Settings
from prepaid.system import System, running_system
from protocols.native import Relay
from vending.edges.keys import issue_api_key
from vending.roles import Role
from vending.sts.identity import (
    BaseDate,
    Drn,
    EncryptionAlgorithm,
    KeyDerivation,
    KeyType,
    MeterKeyRecord,
    luhn_check_digit,
)
from vending.sts.keys import VENDING_KEY_BYTES, derive_decoder_key

HOMES = 40
# The recorded home is a small one; the demo's homes use four times as much, so that a month passes 300 kWh.
LOAD_FACTOR = 4
HISTORY_DAYS = 20
OPENING_MINOR = 230_000
THRESHOLD_MINOR = 10_000
RECHARGE_MINOR = 50_000
TARIFF = "punjab-ds-2026-27"
RATED_W = 15_000
REGISTER_DIGITS = 9
HOUR_S = 3_600
# Every step is done within a second or two on two cores; a step that takes longer than this has failed.
STEP_S_MAX = 20.0
# Hours that the homes go on after the history until their credit is gone; a bound, not a plan.
HOURS_MAX = 240
DELAY_MS_MAX = 1_000
_MARK = ".prepaid-demo"


class ScratchFolderTaken(PrepaidError):
    """The folder for the demo holds something else."""

    code = "scratch_folder_taken"


class StepMissing(Exception):
    """A step of the story did not happen."""

    code = "demo_step_missing"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Home:
    serial: str
    drn: str
    load_w: int
    meter: SimulatedMeter


class _Story:
    """Tells and counts the steps; clock times are those of the recorded evening."""

    def __init__(self, calendar: LocalCalendar, *, silent: bool) -> None:
        self._calendar = calendar
        self._silent = silent
        self.steps: list[str] = []

    def tell(self, at_ms: int | None, sentence: str) -> None:
        """Tell one step at a recorded instant."""
        when = "" if at_ms is None else f"{from_ms(at_ms).astimezone(self._calendar.zone):%a %d %b %H:%M}  "
        self.steps.append(when + sentence)
        if not self._silent:
            console.out.print(f"{when:<18}{sentence}", markup=False)


def run_demo(settings: Settings, data: Path | None, *, json_output: bool) -> int:
    """Run the story on a scratch folder; return the exit status."""
    folder = data or settings.data_dir / "demo"
    _clear(folder)
    settings = settings.model_copy(
        update={"data_dir": folder, "database_url": None, "nats_url": None, "mqtt_url": None, "api_port": 0}
    )
    calendar = calendar_of(settings)
    story = _Story(calendar, silent=json_output)
    began_s = time.monotonic()
    figures: dict[str, object] = {}
    failure = None
    with running_system(settings, []) as system:
        story.tell(None, "PostgreSQL and NATS run as child processes on loopback; the schema is in place.")
        try:
            asyncio.run(_run(system, calendar, story, figures))
        except* (StepMissing, TimeoutError, httpx.HTTPError) as missing:
            # The fleet's tasks end together, so that errors come as a group.
            failure = "; ".join(f"{type(error).__name__}: {error}" for error in _leaves(missing))
    seconds = time.monotonic() - began_s
    if json_output:
        console.print_json(
            {"ok": failure is None, "failure": failure, "seconds": round(seconds, 1), **figures, "story": story.steps}
        )
    elif failure is None:
        console.out.print(f"\nThe story took {seconds:.0f} s. Look closer:  prepaid audit --data {folder}")
    if failure is not None:
        console.err.print(f"prepaid: demo: a step did not happen: {failure}; logs are in {folder}", markup=False)
    return 0 if failure is None else 1


async def _run(system: System, calendar: LocalCalendar, story: _Story, figures: dict[str, object]) -> None:
    profile = _profile()
    rules = PostingRules(calendar=calendar)
    vending_key = secrets.token_bytes(VENDING_KEY_BYTES)
    homes = [_home(number, vending_key) for number in range(HOMES)]
    async with await connect(system.parts.database_url, application="prepaid-demo", role=APPLICATION_ROLE) as conn:
        api_key = await _register(conn, system.settings, homes, profile, rules, vending_key)
        story.tell(
            profile.start_ms[0],
            f"{HOMES} homes are connected, each with {rupees(OPENING_MINOR)} of credit and a warning at"
            f" {rupees(THRESHOLD_MINOR)}; tariff {TARIFF}.",
        )
        system.start_all(["ingest", "dispatch", "api"])
        clock = ScaledClock(profile.start_ms[0])
        fleet_settings = FleetSettings(host=system.parts.mqtt_host, port=system.parts.mqtt_port)
        fleet = Fleet([home.meter for home in homes], settings=fleet_settings, clock=clock, rng=random.Random(7))
        headers = {"X-Api-Key": api_key}
        async with fleet, httpx.AsyncClient(base_url=system.api_url, headers=headers, timeout=10) as http:
            await fleet.wait_connected(timeout_s=STEP_S_MAX)
            ids = await accounts_of_meters(conn, [home.serial for home in homes])
            teller = _Teller(system, conn, fleet, http, calendar, story, profile, homes, ids)
            await teller.history()
            await teller.low_alarm()
            await teller.cut_off()
            await teller.recharge()
            await teller.others()
            await teller.modbus(rules)
        await teller.statement(rules, figures)
        system.stop()
        await teller.audit()


class _Teller:
    """The steps of the story in order; `at` counts the recorded hours told so far."""

    def __init__(
        self,
        system: System,
        conn: AsyncConnection,
        fleet: Fleet,
        http: httpx.AsyncClient,
        calendar: LocalCalendar,
        story: _Story,
        profile: Profile,
        homes: Sequence[_Home],
        ids: dict[str, tuple[int, int]],
    ) -> None:
        self._system = system
        self._conn = conn
        self._ids = ids
        self._fleet = fleet
        self._http = http
        self._calendar = calendar
        self._story = story
        self._profile = profile
        self._homes = homes
        self._first = homes[0]
        self._at = 0

    async def history(self) -> None:
        """Let every home report the first days, and show what they cost so far."""
        hours = HISTORY_DAYS * 24
        for home in self._homes:
            for hour in range(hours):
                home.meter.advance(self._profile.end_ms[hour], self._energy_wh(hour))
            await self._fleet.advance(home.serial, self._energy_wh(hours), at_ms=self._profile.end_ms[hours])
        self._at = hours + 1
        await self._settled(self._homes)
        bill = await self._bill(self._first)
        lines = {name: format_minor(amount) for name, amount in bill.lines.items()}
        first = self._first
        self._tell(
            f"{first.serial} ({first.load_w // 1000} kW) has used {bill.energy_wh / 1000:.1f} kWh this month:"
            f" Rs {lines['energy_1']} for the first 300 kWh at 3.85 and Rs {lines['energy_2']} above at 7.05, less"
            f" the 1 % prepaid rebate of Rs {lines['rebate'].lstrip('-')}; fixed charge Rs {lines['fixed']},"
            f" duty Rs {lines['duty']}; together {rupees(total(bill.lines))}."
        )
        self._tell(f"Its balance is {await self._balance(self._first)}.")

    async def low_alarm(self) -> None:
        """Go on hour by hour until the meter sounds at the consumer's threshold."""
        meter = self._first.meter
        for _ in range(HOURS_MAX):
            await self._hour([self._first])
            if await self._rings("low"):
                break
        await self._fleet.wait_for(lambda: meter.buzzer_on, timeout_s=STEP_S_MAX)
        self._tell(f"Balance {await self._balance(self._first)}: the meter sounds and shows “{meter.display}”.")

    async def cut_off(self) -> None:
        """Go on until credit is gone and the meter confirms that its relay is open."""
        meter = self._first.meter
        for _ in range(HOURS_MAX):
            await self._hour([self._first])
            if await self._rings("exhausted"):
                break
        await self._fleet.wait_for(lambda: meter.relay is Relay.OFF, timeout_s=STEP_S_MAX)
        await self._confirmed(self._first, "off")
        self._tell(
            f"Balance {await self._balance(self._first)}: credit is gone; the meter confirms that supply is off."
        )
        register_wh = meter.register_wh
        await self._hour([self._first])
        _require(meter.register_wh == register_wh, "no energy flows while the relay is open")
        self._tell("An hour later its register has not moved: no energy flows, and nothing is charged for it.")

    async def recharge(self) -> None:
        """Buy a recharge at a shop; the head-end restores supply, and the meter verifies the token."""
        first, meter = self._first, self._first.meter
        asked = await self._get(f"/v1/meters/{first.serial}")
        self._tell(f"A shop asks first: {rupees(asked['supply']['restores_with_minor'])} or more brings supply back.")
        body = {"message_id": "demo-1", "meter": first.serial, "amount": format_minor(RECHARGE_MINOR)}
        answer = await self._post("/v1/vends", body)
        again = await self._post("/v1/vends", body)
        _require(answer == again, "a repeated request gets the same answer")
        await self._fleet.wait_for(lambda: meter.relay is Relay.ON, timeout_s=STEP_S_MAX)
        await self._confirmed(first, "on")
        digits = str(answer["token"]["digits"])
        self._tell(
            f"It sells {rupees(RECHARGE_MINOR)} over HTTP; balance {await self._balance(first)}; the meter confirms"
            " that supply is on. No fee. The till asks again by mistake and gets the same answer, charged once."
        )
        entry = await self._fleet.enter_token(first.serial, digits)
        _require(entry.accepted, "the meter accepts the token")
        twice = await self._fleet.enter_token(first.serial, digits)
        _require(not twice.accepted, "the meter refuses the token the second time")
        grouped = " ".join(digits[i : i + 4] for i in range(0, 20, 4))
        self._tell(f"The receipt's token {grouped} typed in: accepted by the meter's own reader; typed again: refused.")

    async def others(self) -> None:
        """Let all other homes run out and be recharged, so that delays can be measured over the fleet."""
        others = self._homes[1:]
        for _ in range(HOURS_MAX):
            await self._hour([home for home in others if home.meter.relay is Relay.ON])
            if all(home.meter.relay is Relay.OFF for home in others):
                break
        await self._fleet.wait_for(lambda: all(home.meter.relay is Relay.OFF for home in others), timeout_s=STEP_S_MAX)
        self._tell(f"The other {len(others)} homes have run out too, one after the other; each meter confirmed.")
        for number, home in enumerate(others):
            body = {"message_id": f"demo-all-{number}", "meter": home.drn, "amount": format_minor(RECHARGE_MINOR)}
            await self._post("/v1/vends", body)
        await self._fleet.wait_for(lambda: all(home.meter.relay is Relay.ON for home in others), timeout_s=STEP_S_MAX)
        for home in others:
            await self._confirmed(home, "on")
        self._tell("All of them recharge; supply is back everywhere.")

    async def modbus(self, rules: PostingRules) -> None:
        """Let a home on a Modbus line run out, be cut by its coil, recharge, and be restored; each is read back."""
        async with modbus_home() as home:
            meter, story = home.meter, self._story
            sts = _sts_identity(_drn(len(self._homes)))
            credit = await enter_modbus_home(self._conn, home, self._calendar, rules, tariff_id=TARIFF, sts=sts)
            ids = await accounts_of_meters(self._conn, [MODBUS_SERIAL])
            meter_id = ids[MODBUS_SERIAL][0]
            story.tell(
                None,
                f"{MODBUS_SERIAL} is an {home.title} on a Modbus line, with a relay module beside it; a gateway starts"
                f" to poll it. Its credit of {rupees(credit)} pays for today and a few Wh.",
            )
            self._system.start("gateway")

            async def has(relay: str) -> bool:
                return await order_confirmed(self._conn, meter_id, relay)

            await self._until(lambda: has("off"), "the gateway opens the relay and reads it back")
            _require(not meter.is_supplied, "the coil has cut the load")
            register_wh = meter.register_wh(_wall_ms())
            story.tell(None, f"Its credit is gone: the gateway wrote coil 0 and read it back; {register_wh} Wh stay.")
            body = {"message_id": "demo-modbus", "meter": MODBUS_SERIAL, "amount": format_minor(RECHARGE_MINOR)}
            await self._post("/v1/vends", body)
            await self._until(lambda: has("on"), "the gateway closes the relay and reads it back")
            _require(meter.is_supplied, "the coil has closed")

            async def moves() -> bool:
                return meter.register_wh(_wall_ms()) > register_wh

            await self._until(moves, "energy flows again")
            story.tell(None, "A recharge over HTTP: the gateway closed the relay, read it back, and energy flows.")

    async def statement(self, rules: PostingRules, figures: dict[str, object]) -> None:
        """Post the closed days, print the statement and the delays."""
        yesterday = self._calendar.day_of(self._now_ms) - timedelta(days=1)
        closed = await close_day(self._conn, yesterday, rules=rules)
        self._tell(f"close-day has posted {closed.days} daily journals for {closed.accounts} accounts.")
        bill = await self._bill(self._first)
        self._tell(f"Statement of {self._first.serial}: {bill.energy_wh / 1000:.3f} kWh")
        for name, amount_minor in bill.lines.items():
            self._story.tell(None, f"    {name:<10}{format_minor(amount_minor):>12}")
        self._story.tell(None, f"    {'total':<10}{format_minor(total(bill.lines)):>12}")
        await self._tell_delays(figures)

    async def audit(self) -> None:
        """Let the auditor recompute everything, once ingest has stopped and nothing waits."""
        report = await run_checks(self._conn, self._calendar)
        _require(report.clean, "the auditor finds every invariant whole: " + "; ".join(report.lines()))
        self._story.tell(None, "The auditor recomputed everything from the readings: all invariants hold.")

    async def _tell_delays(self, figures: dict[str, object]) -> None:
        for relay, what in (
            ("off", "exhausting reading to cut-off published"),
            ("on", "recharge to restore published"),
        ):
            delays = await order_delays_s(self._conn, relay)
            _require(len(delays) >= HOMES, f"every home has had its order {relay}")
            p50_ms, p99_ms = (round(_quantile(delays, percent) * 1000, 1) for percent in (50, 99))
            figures[f"{relay}_delay_p50_ms"], figures[f"{relay}_delay_p99_ms"] = p50_ms, p99_ms
            sentence = f"{what}: median {p50_ms} ms, 99th percentile {p99_ms} ms, of {len(delays)}"
            self._story.tell(None, sentence)
            _require(p99_ms < DELAY_MS_MAX, sentence)

    @property
    def _now_ms(self) -> int:
        return self._profile.end_ms[self._at - 1]

    def _tell(self, sentence: str) -> None:
        self._story.tell(self._now_ms, sentence)

    def _energy_wh(self, hour: int) -> int:
        return self._profile.energy_wh[hour] * LOAD_FACTOR

    async def _hour(self, homes: Sequence[_Home]) -> None:
        for home in homes:
            await self._fleet.advance(home.serial, self._energy_wh(self._at), at_ms=self._profile.end_ms[self._at])
        self._at += 1
        await self._settled(homes)

    async def _settled(self, homes: Sequence[_Home]) -> None:
        """Wait until the last reading of each home is in the database."""
        for home in homes:
            await self._fleet.wait_sent(home.serial, timeout_s=STEP_S_MAX)
        serials, at = [home.serial for home in homes], from_ms(self._now_ms)

        async def stored() -> bool:
            return await readings_there(self._conn, serials, at) == len(homes)

        await self._until(stored, f"the readings of {len(homes)} homes arrive")

    async def _rings(self, level: str) -> bool:
        return await alarm_there(self._conn, self._ids[self._first.serial][1], level)

    async def _confirmed(self, home: _Home, relay: str) -> None:
        meter_id = self._ids[home.serial][0]

        async def confirmed() -> bool:
            return await order_confirmed(self._conn, meter_id, relay)

        await self._until(confirmed, f"meter {home.serial} confirms {relay}")

    async def _until(self, happened: Callable[[], Awaitable[bool]], what: str) -> None:
        deadline_s = time.monotonic() + STEP_S_MAX
        while not await happened():
            _require(time.monotonic() < deadline_s, what)
            await asyncio.sleep(0.01)

    async def _bill(self, home: _Home) -> Bill:
        account_id = self._ids[home.serial][1]
        views = await look_all(self._conn, [account_id], self._calendar)
        months = (await bills(self._conn, views.values(), self._calendar))[account_id]
        return months[period_of(self._calendar.day_of(self._now_ms))]

    async def _balance(self, home: _Home) -> str:
        account_id = self._ids[home.serial][1]
        views = await look_all(self._conn, [account_id], self._calendar)
        return rupees(views[account_id].balance_minor(self._calendar))

    async def _get(self, path: str) -> dict[str, Any]:
        answer = await self._http.get(path)
        _require(answer.status_code == 200, f"GET {path}: {answer.status_code} {answer.text[:200]}")
        found: dict[str, Any] = answer.json()
        return found

    async def _post(self, path: str, body: dict[str, str]) -> dict[str, Any]:
        answer = await self._http.post(path, json=body)
        _require(answer.status_code in (200, 201), f"POST {path}: {answer.status_code} {answer.text[:200]}")
        found: dict[str, Any] = answer.json()
        return found


def _clear(folder: Path) -> None:
    """Empty the scratch folder of an earlier demo; never one that holds anything else.

    Raises: ScratchFolderTaken.
    """
    if folder.exists() and any(folder.iterdir()) and not (folder / _MARK).exists():
        raise ScratchFolderTaken(f"demo: expected a new or empty folder or one of an earlier demo, got {folder}")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / _MARK).write_text("Scratch folder of `prepaid demo`: emptied at its next start.\n")


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    """Return the errors of a group of groups."""
    found: list[BaseException] = []
    for error in group.exceptions:
        found += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found


def _require(happened: bool, what: str) -> None:
    if not happened:
        raise StepMissing(what)


def _quantile(rising: Sequence[float], percent: int) -> float:
    """Return the smallest value that at least so many percent of the values do not exceed."""
    return rising[max(0, -(-len(rising) * percent // 100) - 1)]


def _profile() -> Profile:
    data = (resources.files("prepaid") / "recorded" / "home_hourly.csv").read_bytes()
    return parse_profile("home_hourly.csv", data)


def _drn(number: int) -> str:
    body = f"99{number:08d}"
    return body + str(luhn_check_digit(body))


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000


def _sts_identity(drn: str) -> StsIdentity:
    return StsIdentity(
        drn=drn, ea=11, dkga=4, sgc=OWN_SGC, key_type=2, krn=OWN_KRN, tariff_index="01", ken=255, base_year=2014
    )


def _home(number: int, vending_key: bytes) -> _Home:
    """Make one home and its meter; the meter gets its own decoder key, as from the factory."""
    drn = _drn(number)
    record = MeterKeyRecord(
        iin="600727",
        drn=Drn(drn),
        ea=EncryptionAlgorithm("11"),
        dkga=KeyDerivation("04"),
        sgc=OWN_SGC,
        kt=KeyType(2),
        krn=OWN_KRN,
        tariff_index=1,
        ken=255,
        base_date=BaseDate("14"),
    )
    reader = TokenReader(derive_decoder_key(vending_key, record).key)
    serial = f"DEMO-{number:04d}"
    meter = SimulatedMeter(
        serial=serial,
        token_reader=reader,
        settings=MeterSettings(interval_s=HOUR_S, register_digits=REGISTER_DIGITS),
        balance_minor=OPENING_MINOR,
        threshold_minor=THRESHOLD_MINOR,
    )
    # 3 to 5 kW in turn: all in the middle band of the fixed charge, so that homes run out at different hours.
    return _Home(serial=serial, drn=drn, load_w=3_000 + 500 * (number % 5), meter=meter)


async def _register(
    conn: AsyncConnection,
    settings: Settings,
    homes: Sequence[_Home],
    profile: Profile,
    rules: PostingRules,
    vending_key: bytes,
) -> str:
    """Enter meters, accounts, the vending key and a vendor; return the vendor's API key."""
    days = {from_ms(at_ms).date() for at_ms in (*profile.start_ms, *profile.end_ms)}
    await ensure_partitions(conn, days)
    await ensure_own_vending_key(conn, master_key(settings), vending_key)
    now_ms = _wall_ms()
    for home in homes:
        sts, end_wh = _sts_identity(home.drn), 10**REGISTER_DIGITS
        await add_meter(conn, NewMeter(serial=home.serial, rated_w=RATED_W, register_end_wh=end_wh, sts=sts))
        account = NewAccount(
            number=home.serial,
            consumer=f"Household {home.serial}",
            usage_point=home.serial,
            area="demo",
            meter_serial=home.serial,
            opened_at=from_ms(profile.start_ms[0]),
            register_wh=0,
            tariff_id=TARIFF,
            sanctioned_load_w=home.load_w,
            threshold_minor=THRESHOLD_MINOR,
            opening_credit_minor=OPENING_MINOR,
        )
        await open_account(conn, account, rules=rules, now_ms=now_ms)
    async with conn.transaction():
        key = await issue_api_key(conn, Role.VENDOR, vendor_id=await add_vendor(conn, "Corner shop"))
    return key.header
