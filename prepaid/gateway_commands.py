"""`prepaid gateway`: polls Modbus meters; probes one; shows and enters lines, meters and maps.

Stage: the command line's outermost layer, as in `__main__`.
"""

from __future__ import annotations

import asyncio
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from prepaid import console
from prepaid.arguments import DataDir, Json, line, local, run, settings_of
from prepaid.settings import PrepaidError

if TYPE_CHECKING:
    from psycopg import AsyncConnection

    from db.gateways import ListedLine, ListedMeter, NewLine
    from headend.edges.modbus_probe import Found, ProbeReport

gateway_app = typer.Typer(help="Meters polled over Modbus.", invoke_without_command=True)
maps_app = typer.Typer(help="Register maps.", no_args_is_help=True)
lines_app = typer.Typer(help="Lines that gateways poll.", no_args_is_help=True)
meters_app = typer.Typer(help="Meters on lines.", no_args_is_help=True)
gateway_app.add_typer(maps_app, name="maps")
gateway_app.add_typer(lines_app, name="lines")
gateway_app.add_typer(meters_app, name="meters")

ROWS_SHOWN, ROWS_SHOWN_MAX = 200, 10_000

Tcp = Annotated[str | None, typer.Option("--tcp", help="HOST[:PORT] of a line that speaks Modbus TCP.")]
RtuTcp = Annotated[str | None, typer.Option("--rtu-tcp", help="HOST:PORT of a converter that passes RTU on.")]
Serial = Annotated[str | None, typer.Option("--serial", help="Serial port, /dev/ttyUSB0.")]
Baud = Annotated[int, typer.Option(help="Speed of a serial port.")]
ParityBit = Annotated[str, typer.Option(help="Parity of a serial port: none, even, odd.")]
TimeoutMs = Annotated[int, typer.Option(min=50, max=60_000, help="ms to wait for an answer.")]


class GatewayRefused(PrepaidError):
    """What was given to a gateway command does not fit; the message is one line."""

    code: ClassVar[str] = "gateway_refused"


@gateway_app.callback()
def gateway(context: typer.Context) -> None:
    """Run one gateway process, unless a command follows."""
    if context.invoked_subcommand is None:
        run_command()


@gateway_app.command(name="run")
def run_command() -> None:
    """Run one gateway process: meters on Modbus lines, told to the broker as readings."""
    from prepaid.processes import run_gateway

    run_gateway(settings_of(None))


@gateway_app.command(name="probe")
def probe_command(
    address: Annotated[str | None, typer.Argument(help="HOST[:PORT] of a meter or converter.")] = None,
    serial: Serial = None,
    baud: Baud = 9_600,
    parity: ParityBit = "none",
    unit: Annotated[list[int] | None, typer.Option(min=0, max=255, help="Unit to ask; may be repeated.")] = None,
    model: Annotated[str | None, typer.Option(help="Only this map.")] = None,
    timeout_ms: TimeoutMs = 1_000,
    every: Annotated[bool, typer.Option("--all", help="Also why each map was refused.")] = False,
    json_output: Json = False,
) -> None:
    """Find model, base address and word order of a meter, and show what it reads; writes nothing."""
    from headend.edges.modbus_line import LineAddress, LineError, LineSession, open_line
    from headend.edges.modbus_probe import probe
    from prepaid.gateway_parts import known_maps
    from protocols.modbus.frames import Framing

    settings = settings_of(None)
    place = _place(address, None, serial, baud, parity)
    maps = known_maps(settings.gateway_maps)
    if model is not None and model not in maps:
        raise GatewayRefused(f"model: expected one of {', '.join(sorted(maps))}, got {model!r}")
    chosen = None if model is None and settings.gateway_maps is None else [maps[model]] if model else maps.values()

    async def opened(framing: Framing) -> LineSession:
        where = LineAddress(
            framing=framing,
            timeout_s=timeout_ms / 1000,
            host=place.host,
            port=place.port,
            device=place.device,
            baud=place.baud,
            parity=place.parity,
        )
        return await open_line(where, _ignore, _ignore_count)

    framings = (Framing.RTU,) if serial is not None else (Framing.TCP, Framing.RTU)
    try:
        report = asyncio.run(probe(opened, framings=framings, units=unit or (1,), maps=chosen, sunspec=model is None))
    except (LineError, OSError, TimeoutError) as error:
        raise GatewayRefused(f"line: expected it to open, got {error!r}") from None
    if json_output:
        console.print_json(_report_to_json(report))
    else:
        _print_report(report, every=every)
    if report.best is None:
        raise typer.Exit(1)


@gateway_app.command(name="simulate")
def simulate_command(
    models: Annotated[list[str], typer.Argument(help="Models of the meters, unit 1 first, see gateway maps list.")],
    port: Annotated[int, typer.Option(min=0, max=65_535, help="Port on loopback; 0 takes a free one.")] = 5_020,
    rtu: Annotated[bool, typer.Option("--rtu", help="RTU over TCP instead of Modbus TCP.")] = False,
    load_w: Annotated[int, typer.Option(min=0, max=15_000, help="W that each home draws.")] = 800,
    register_wh: Annotated[int, typer.Option(min=0, help="Where the registers begin, Wh.")] = 5_000,
) -> None:
    """Let simulated meters stand on a line of this machine, each with a relay on a module, until Ctrl-C."""
    from prepaid.gateway_parts import known_maps
    from prepaid.gateway_simulation import METERS_MAX, run_simulated_line

    maps = known_maps(settings_of(None).gateway_maps)
    for model in models:
        if model not in maps or maps[model].is_relay_only:
            known = ", ".join(sorted(each for each in maps if not maps[each].is_relay_only))
            raise GatewayRefused(f"model: expected one of {known}, got {model!r}")
    if len(models) > METERS_MAX:
        raise GatewayRefused(f"models: expected at most {METERS_MAX}, got {len(models)}")
    try:
        run_simulated_line(models, maps, port=port, rtu=rtu, load_w=load_w, register_wh=register_wh)
    except OSError as error:
        raise GatewayRefused(f"port: expected a free one, got {error}") from None


@gateway_app.command(name="import")
def import_command(
    file: Annotated[Path, typer.Argument(help="CSV with a header line.")],
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """Enter lines and meters from a CSV file, all or none; meters that are on a line are left as they are."""
    from prepaid.gateway_import import run_import_gateway

    done = run_import_gateway(settings_of(data), file)
    if json_output:
        console.print_json(asdict(done))
    else:
        line(f"{done.lines} new lines, {done.added} meters placed, {done.known} were there")


@maps_app.command(name="list")
def list_maps(json_output: Json = False) -> None:
    """The models that are known, and what a probe has to confirm first."""
    from prepaid.gateway_parts import known_maps

    maps = known_maps(settings_of(None).gateway_maps)
    if json_output:
        shown = [
            {"model": made.model, "title": made.title, "registers": len(made.registers),
             "relay": made.relay is not None, "confirm": list(made.doubts)}
            for _, made in sorted(maps.items())
        ]  # fmt: skip
        console.print_json({"maps": shown})
        return
    for model, made in sorted(maps.items()):
        notes = ["relay"] if made.relay is not None else []
        notes += [f"probe first: {', '.join(made.doubts)}"] if made.doubts else []
        line(f"{model:<22} {made.title:<44} {len(made.registers):>3} registers  {'; '.join(notes)}".rstrip())


@maps_app.command(name="check")
def check_command(files: Annotated[list[Path], typer.Argument(help="Map files.")]) -> None:
    """Say everything that is wrong with map files; status 1 if anything is."""
    from protocols.modbus.map_checks import check_map

    complaints = [each for path in files for each in check_map(path.read_text(encoding="utf-8"), path.name)]
    for complaint in complaints:
        line(complaint)
    if complaints:
        raise typer.Exit(1)
    line(f"{len(files)} maps are usable")


@lines_app.command(name="add")
def add_line_command(
    name: Annotated[str, typer.Argument(help="Name of the line.")],
    tcp: Tcp = None,
    rtu_tcp: RtuTcp = None,
    serial: Serial = None,
    baud: Baud = 9_600,
    parity: ParityBit = "none",
    timeout_ms: TimeoutMs = 1_000,
    data: DataDir = None,
) -> None:
    """Enter a line, or give one another address; gateways that run take it up within seconds."""
    from db.gateways import add_line

    new = replace(_place(tcp, rtu_tcp, serial, baud, parity), name=name, timeout_ms=timeout_ms)

    async def work(conn: AsyncConnection) -> None:
        await add_line(conn, new)

    run(settings_of(data), work)
    line(f"line {name}: {_where(asdict(new))}")


@lines_app.command(name="list")
def list_lines_command(data: DataDir = None, json_output: Json = False) -> None:
    """Lines, how many of their meters are read, and which gateway polls them."""
    from db.gateways import list_lines

    async def work(conn: AsyncConnection) -> list[ListedLine]:
        return await list_lines(conn)

    found = run(settings_of(data), work)
    if json_output:
        console.print_json({"lines": [asdict(each) for each in found]})
        return
    for each in found:
        owner = each.owner or "nobody"
        state = f"polled by {owner}" if each.enabled else "not polled"
        line(
            f"{each.name:<20} {_where(asdict(each)):<36} {each.meters_read:>4} of {each.meters:>4} meters read, {state}"
        )


@lines_app.command(name="enable")
def enable_line_command(
    name: Annotated[str, typer.Argument(help="Name of the line.")],
    off: Annotated[bool, typer.Option("--off", help="Poll it no more.")] = False,
    data: DataDir = None,
) -> None:
    """Let a line be polled, or no more."""
    from db.gateways import enable_line

    async def work(conn: AsyncConnection) -> None:
        await enable_line(conn, name, enabled=not off)

    run(settings_of(data), work)
    line(f"line {name}: {'not polled' if off else 'polled'}")


@meters_app.command(name="add")
def add_meter_command(
    serial: Annotated[str, typer.Argument(help="Serial of a registered meter.")],
    on_line: Annotated[str, typer.Option("--line", help="Name of its line.")],
    unit: Annotated[int, typer.Option(min=0, max=255, help="Its unit on the line.")],
    model: Annotated[str, typer.Option(help="Its model, see gateway maps list; or sunspec.")],
    poll_s: Annotated[int, typer.Option(min=1, max=86_400, help="s between two polls.")] = 60,
    word_order: Annotated[str | None, typer.Option(help="As a probe found it: abcd, cdab, badc, dcba.")] = None,
    base: Annotated[int | None, typer.Option(min=0, max=1, help="As a probe found it.")] = None,
    confirmed: Annotated[bool, typer.Option("--confirmed", help="A probe has confirmed what is doubtful.")] = False,
    relay_model: Annotated[str | None, typer.Option(help="Map of the module whose coil is its relay.")] = None,
    relay_unit: Annotated[int | None, typer.Option(min=0, max=255, help="Unit of that module.")] = None,
    relay_address: Annotated[int | None, typer.Option(min=0, max=65_535, help="Wire address of the coil.")] = None,
    device_serial: Annotated[str | None, typer.Option(help="What its own serial register must say.")] = None,
    data: DataDir = None,
) -> None:
    """Place a registered meter on a line; from then on it is polled, and its orders leave over Modbus."""
    from db.gateways import NewPolledMeter, add_polled_meter
    from prepaid.gateway_parts import fault_of, known_maps

    settings = settings_of(data)
    meter = NewPolledMeter(
        serial=serial,
        line=on_line,
        unit=unit,
        model=model,
        poll_s=poll_s,
        word_order=word_order,
        base=base,
        confirmed=confirmed,
        relay_model=relay_model,
        relay_unit=relay_unit,
        relay_address=relay_address,
        device_serial=device_serial,
    )
    fault = fault_of(meter, known_maps(settings.gateway_maps))
    if fault is not None:
        raise GatewayRefused(f"{fault.field}: expected {fault.expected}, got {fault.got!r}")

    async def work(conn: AsyncConnection) -> None:
        await add_polled_meter(conn, meter)

    run(settings, work)
    line(f"meter {serial}: unit {unit} of line {on_line}, {model}, every {poll_s} s")


@meters_app.command(name="list")
def list_meters_command(
    on_line: Annotated[str | None, typer.Option("--line", help="Only this line.")] = None,
    state: Annotated[str | None, typer.Option(help="Only these: new, read, silent, refused, implausible, ...")] = None,
    after: Annotated[str, typer.Option(help="Go on after this serial.")] = "",
    limit: Annotated[int, typer.Option(min=1, max=ROWS_SHOWN_MAX, help="Rows at most.")] = ROWS_SHOWN,
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """Polled meters and how it goes since when."""
    from db.gateways import list_meters

    settings = settings_of(data)

    async def work(conn: AsyncConnection) -> list[ListedMeter]:
        return await list_meters(conn, line=on_line, state=state, after=after, most=limit)

    found = run(settings, work)
    if json_output:
        shown = [asdict(each) | {"state_at": local(each.state_at, settings)} for each in found]
        console.print_json({"meters": shown})
        return
    for each in found:
        how = each.state if each.enabled else "not polled"
        told = f": {each.detail}" if each.detail else ""
        line(
            f"{each.serial:<16} {each.line:<16} unit {each.unit:>3}  {each.model:<18} every {each.poll_s:>4} s  "
            f"{how} since {local(each.state_at, settings)}{told}"
        )


@meters_app.command(name="enable")
def enable_meter_command(
    serial: Annotated[str, typer.Argument(help="Serial of a meter on a line.")],
    off: Annotated[bool, typer.Option("--off", help="Poll it no more.")] = False,
    data: DataDir = None,
) -> None:
    """Let a meter be polled, or no more."""
    from db.gateways import enable_meter

    async def work(conn: AsyncConnection) -> None:
        await enable_meter(conn, serial, enabled=not off)

    run(settings_of(data), work)
    line(f"meter {serial}: {'not polled' if off else 'polled'}")


def _place(tcp: str | None, rtu_tcp: str | None, serial: str | None, baud: int, parity: str) -> NewLine:
    """Return where a line is; it has no name yet.

    Raises: GatewayRefused.
    """
    from prepaid.gateway_parts import placed_at

    ways = {"tcp": tcp, "rtu_tcp": rtu_tcp, "port": serial}
    given = [(way, text) for way, text in ways.items() if text is not None]
    if len(given) != 1:
        raise GatewayRefused("line: expected one of a host, a converter and a serial port")
    if parity not in ("none", "even", "odd"):
        raise GatewayRefused(f"parity: expected none, even or odd, got {parity!r}")
    ((way, text),) = given
    place = placed_at(way, text, baud, parity)
    if place is None:
        expected = "a serial port such as /dev/ttyUSB0" if way == "port" else "HOST:PORT"
        raise GatewayRefused(f"address: expected {expected}, got {text!r}")
    return place


def _where(place: dict[str, object]) -> str:
    if place["device"] is not None:
        return f"{place['device']} {place['baud']} baud, parity {place['parity']}"
    return f"{'TCP' if place['framing'] == 'tcp' else 'RTU over TCP'} {place['host']}:{place['port']}"


def _print_report(report: ProbeReport, *, every: bool) -> None:
    for found in report.found:
        word = "itself says so" if found.is_identified else "by what it reads"
        line(
            f"{found.framing.value} unit {found.unit}: {found.map.model} ({found.map.title}), {word};"
            f" base {found.map.base}, word order {found.map.word_order.value}"
            + (f", serial {found.serial}" if found.serial else "")
        )
        if not found.is_order_told:
            line("    the other word order makes sense of the same words, too: compare with its display")
        for quantity, value in found.values.items():
            line(f"    {quantity:<16} {'none' if value is None else value}")
    if report.rivals:
        line(f"as good: {', '.join(each.map.model for each in report.rivals)}; choose by the plate of the meter")
    silent = set(report.silent)
    answering = [refused for refused in report.refused if (refused.framing, refused.unit) not in silent]
    if report.best is None:
        line("no map stands for what answered" if answering else "nothing answered")
    if every or report.best is None:
        for refused in report.refused if every else answering:
            line(
                f"{refused.framing.value} unit {refused.unit}: not {refused.model} (base {refused.base},"
                f" {refused.word_order.value}): {refused.reason}"
            )


def _report_to_json(report: ProbeReport) -> dict[str, object]:
    return {
        "found": [_found_to_json(each) for each in report.found],
        "refused": [
            {
                "framing": each.framing.value,
                "unit": each.unit,
                "model": each.model,
                "base": each.base,
                "word_order": each.word_order.value,
                "reason": each.reason,
            }
            for each in report.refused
        ],
        "silent": [{"framing": framing.value, "unit": unit} for framing, unit in report.silent],
    }


def _found_to_json(found: Found) -> dict[str, object]:
    return {
        "framing": found.framing.value,
        "unit": found.unit,
        "model": found.map.model,
        "base": found.map.base,
        "word_order": found.map.word_order.value,
        "word_order_told": found.is_order_told,
        "serial": found.serial,
        "identified": found.is_identified,
        "values": dict(found.values),
    }


def _ignore() -> None:
    return None


def _ignore_count(count: int) -> None:
    return None
