"""Tariffs as data: read from TOML, validated, immutable.

Stage: before rating. Takes the text of a tariff document; returns a `Tariff`; never touches accounts or dates of
assignment.
"""

from __future__ import annotations

import itertools
import tomllib
from dataclasses import dataclass
from datetime import date, datetime
from importlib import resources
from typing import Any

from billing.money import BillingError

BASIS_POINTS = 10_000

_FIELDS = {"id", "title", "source", "currency", "effective_from", "energy", "fixed", "shares"}
_SLAB_FIELDS = {"to_kwh", "rate_milli_per_kwh"}
_BAND_FIELDS = {"to_load_w", "rate_milli_per_kw_month"}
_SHARE_FIELDS = {"rebate_basis_points", "duty_basis_points"}


class TariffError(BillingError):
    """A tariff document breaks a rule."""

    code = "tariff_error"


@dataclass(frozen=True, slots=True, kw_only=True)
class Slab:
    """One telescopic step of monthly energy; `to_wh` None is the open last one."""

    to_wh: int | None
    rate_milli_per_kwh: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedBand:
    """Fixed charge for sanctioned loads up to `to_load_w`; None is the open last band."""

    to_load_w: int | None
    rate_milli_per_kw_month: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Tariff:
    """A tariff version.

    Invariants: slabs and bands rise and only the last of each is open; rates are 0 or more; the shares lie between
    0 and 100 %.
    """

    id: str
    title: str
    source: str
    currency: str
    effective_from: date
    slabs: tuple[Slab, ...]
    fixed: tuple[FixedBand, ...]
    rebate_basis_points: int
    duty_basis_points: int

    def fixed_rate_milli(self, load_w: int) -> int:
        """Return the fixed charge rate of a sanctioned load, in thousandths of a minor unit per kW and month."""
        for band in self.fixed:
            if band.to_load_w is None or load_w <= band.to_load_w:
                return band.rate_milli_per_kw_month
        raise AssertionError("a tariff's last fixed band is open")


def parse_tariff(text: str) -> Tariff:
    """Read a tariff document.

    Raises: TariffError naming the rule that is broken.
    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise TariffError(f"tariff document: expected TOML, {error}") from error
    name = document.get("id")
    if not isinstance(name, str) or not name:
        raise TariffError(f"tariff document: id: expected a text, got {name!r}")
    _require_known(name, document, _FIELDS)
    slabs = tuple(
        Slab(
            to_wh=_whole(name, row, "to_kwh") * 1000 if "to_kwh" in row else None,
            rate_milli_per_kwh=_whole(name, row, "rate_milli_per_kwh"),
        )
        for row in _rows(name, document, "energy", _SLAB_FIELDS)
    )
    fixed = tuple(
        FixedBand(
            to_load_w=_whole(name, row, "to_load_w") if "to_load_w" in row else None,
            rate_milli_per_kw_month=_whole(name, row, "rate_milli_per_kw_month"),
        )
        for row in _rows(name, document, "fixed", _BAND_FIELDS)
    )
    _require_rising(name, "energy slabs", [slab.to_wh for slab in slabs])
    _require_rising(name, "fixed bands", [band.to_load_w for band in fixed])
    shares = document.get("shares", {})
    if not isinstance(shares, dict):
        raise TariffError(f"tariff {name}: shares: expected one [shares] table, got {type(shares).__name__}")
    _require_known(name, shares, _SHARE_FIELDS)
    effective_from = document.get("effective_from")
    # A TOML date with a time is read as a datetime, which Python counts among the dates.
    if not isinstance(effective_from, date) or isinstance(effective_from, datetime):
        raise TariffError(f"tariff {name}: effective_from: expected a date, got {effective_from!r}")
    return Tariff(
        id=name,
        title=str(document.get("title", name)),
        source=str(document.get("source", "")),
        currency=str(document.get("currency", "INR")),
        effective_from=effective_from,
        slabs=slabs,
        fixed=fixed,
        rebate_basis_points=_share(name, shares, "rebate_basis_points"),
        duty_basis_points=_share(name, shares, "duty_basis_points"),
    )


def builtin_documents() -> dict[str, str]:
    """Return the texts of the tariffs that ship with the product, by id."""
    folder = resources.files("billing") / "tariffs"
    files = [entry for entry in folder.iterdir() if entry.name.endswith(".toml")]
    return {entry.name.removesuffix(".toml"): entry.read_text(encoding="utf-8") for entry in files}


def builtin_tariff(tariff_id: str) -> Tariff:
    """Return a tariff that ships with the product.

    Raises: TariffError naming those that exist.
    """
    documents = builtin_documents()
    if tariff_id not in documents:
        raise TariffError(f"tariff: expected one of {', '.join(sorted(documents))}, got {tariff_id!r}")
    return parse_tariff(documents[tariff_id])


def _require_known(name: str, table: dict[str, Any], fields: set[str]) -> None:
    unknown = sorted(table.keys() - fields)
    if unknown:
        raise TariffError(f"tariff {name}: expected only {', '.join(sorted(fields))}, got {', '.join(unknown)}")


def _rows(name: str, document: dict[str, Any], key: str, fields: set[str]) -> list[dict[str, Any]]:
    # TOML tables are untyped until each field is read below.
    rows = document.get(key)
    if not isinstance(rows, list) or not rows:
        raise TariffError(f"tariff {name}: expected one or more [[{key}]] tables, got {type(rows).__name__}")
    for row in rows:
        if not isinstance(row, dict):
            raise TariffError(f"tariff {name}: expected [[{key}]] tables, got {row!r}")
        _require_known(name, row, fields)
    return rows


def _whole(name: str, row: dict[str, Any], key: str) -> int:
    value = row.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise TariffError(f"tariff {name}: {key}: expected a whole number of 0 or more, got {value!r}")
    return value


def _share(name: str, shares: dict[str, Any], key: str) -> int:
    value = _whole(name, {key: shares.get(key, 0)}, key)
    if value > BASIS_POINTS:
        raise TariffError(f"tariff {name}: {key}: expected at most {BASIS_POINTS}, got {value}")
    return value


def _require_rising(name: str, what: str, limits: list[int | None]) -> None:
    closed = [limit for limit in limits[:-1] if limit is not None]
    if limits[-1] is not None or len(closed) != len(limits) - 1:
        raise TariffError(f"tariff {name}: {what}: expected only the last to be open, got limits {limits}")
    if any(limit <= 0 for limit in closed) or any(a >= b for a, b in itertools.pairwise(closed)):
        raise TariffError(f"tariff {name}: {what}: expected rising limits above 0, got {limits}")
