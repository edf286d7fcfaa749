"""`prepaid gaps`: spans without readings, what was asked of meters about them, and what became of it.

Stage: the command line's outermost layer, as in `__main__`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from db.gaps import ListedGap, gap_counts, list_gaps
from headend.gaps import LIVE, GapState
from prepaid import console
from prepaid.arguments import DataDir, Json, local, settings_of
from prepaid.settings import PrepaidError, Settings

if TYPE_CHECKING:
    from psycopg import AsyncConnection

gaps_app = typer.Typer(help="Gaps in meters' readings.", no_args_is_help=True)

# What a screen or one JSON object holds.
ROWS_SHOWN, ROWS_SHOWN_MAX = 200, 10_000


class GapsRefused(PrepaidError):
    """A list of gaps that cannot be made as asked; the message is one line."""

    code: ClassVar[str] = "gaps_refused"


@gaps_app.command(name="list")
def list_command(
    state: Annotated[
        list[str] | None, typer.Option(help="noted, open, asked, filled, given_up; default: what is not closed.")
    ] = None,
    meter: Annotated[str | None, typer.Option(help="Only this meter, by serial.")] = None,
    after: Annotated[int, typer.Option(min=0, help="Go on after this gap, the last of the page before.")] = 0,
    limit: Annotated[int, typer.Option(min=1, max=ROWS_SHOWN_MAX, help="Rows at most.")] = ROWS_SHOWN,
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """Spans without readings, the first noted first, and counts of all by state."""
    from prepaid.administration import on_database

    settings = settings_of(data)
    states = _states(state)

    async def work(conn: AsyncConnection) -> tuple[dict[str, tuple[int, int]], list[ListedGap]]:
        return await gap_counts(conn), await list_gaps(conn, states, serial=meter, after=after, most=limit)

    counts, gaps = on_database(settings, work)
    if json_output:
        console.print_json(
            {
                "counts": {
                    each.value: dict(zip(("gaps", "missing"), counts.get(each.value, (0, 0)), strict=True))
                    for each in GapState
                },
                "gaps": [_to_api(gap, settings) for gap in gaps],
            }
        )
        return
    for gap in gaps:
        answered = f"asked {gap.asks} times, answered {gap.answers}" if gap.asks else "not asked"
        console.out.print(
            f"{gap.id:>8}  {gap.serial:<16} {local(gap.from_at, settings)} to {local(gap.to_at, settings)}"
            f"  {gap.missing:>5} missing  {gap.state}, {answered}",
            markup=False,
        )
    for each in GapState:
        number, missing = counts.get(each.value, (0, 0))
        console.out.print(f"{each.value:<10} {number:>8} gaps {missing:>10} intervals missing", markup=False)


def _states(names: list[str] | None) -> list[str]:
    known = {each.value for each in GapState}
    unknown = [name for name in names or () if name not in known]
    if unknown:
        raise GapsRefused(f"state: expected one of {', '.join(sorted(known))}, got {unknown[0][:40]!r}")
    return names or sorted(each.value for each in LIVE)


def _to_api(gap: ListedGap, settings: Settings) -> dict[str, object]:
    return {
        "id": gap.id,
        "meter": gap.serial,
        "area": gap.area,
        "from": local(gap.from_at, settings),
        "to": local(gap.to_at, settings),
        "interval_s": gap.interval_s,
        "missing": gap.missing,
        "state": gap.state,
        "asked": gap.asks,
        "answered": gap.answers,
        "noted_at": local(gap.noted_at, settings),
        "closed_at": None if gap.closed_at is None else local(gap.closed_at, settings),
    }
