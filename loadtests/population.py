"""A city of simulated accounts and what their meters read: any number of them, as columns, always the same ones.

Stage: below the benchmarks that need very many accounts. Numbers in, arrays out; nothing here knows the database. An
account's number is also its id and its meter's id, from 1 on.

Money: a home uses 3 to 8 kWh a day, half-hourly read. Beyond the first day's fixed charge its credit is spread evenly
over the energy of `MARGIN_DAYS` above its level, which is the consumer's threshold for one half of the accounts and
zero for the other, which has set none. So a day's energy takes one account in 15 over its level, a reading one in 720:
as many as where each account is recharged every 30 days and passes both levels in between. The fixed charge of a day,
which comes with its first reading, takes more.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import Final

import numpy as np

from protocols.columns import Int64Column, ReadingColumns
from protocols.topics import SHARDS

TARIFF: Final = "punjab-ds-2026-27"
# A Monday within the tariff's year: the first of a month, so that all days of a run belong to one billing period.
OPENED_ON: Final = date(2026, 6, 1)
STEP_MS: Final = 1_800_000
STEPS_A_DAY: Final = 48
RATED_W: Final = 15_000
REGISTER_END_WH: Final = 1_000_000_000
SERIAL_PREFIX: Final = "BN-"
SERIAL_DIGITS: Final = 8
ACCOUNTS_MAX: Final = 10**SERIAL_DIGITS - 1
MARGIN_DAYS: Final = 15
_LOADS_W: Final = (1_000, 2_000, 3_000, 5_000, 7_000)
_THRESHOLD_MINOR: Final = 10_000
# Paise a kWh and a day with duty, the latter for each load and rounded up, as the built-in Punjab tariff has them for
# the first days of June: only to spread credit by.
_MINOR_PER_KWH: Final = 443
_FIXED_MINOR_A_DAY: Final = (193, 386, 810, 1_346, 1_884)
_FNV_OFFSET_BASIS: Final = 0x811C9DC5
_FNV_PRIME: Final = 0x01000193


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Homes:
    """What an account is opened with.

    Shape: one value per account, all of one length.
    Units: load in W, money in minor units (no threshold: -1), register in Wh at the opening.
    """

    number: Int64Column
    shard: Int64Column
    load_w: Int64Column
    credit_minor: Int64Column
    threshold_minor: Int64Column
    register_wh: Int64Column


def homes(numbers: Int64Column, *, margin_days: int = MARGIN_DAYS) -> Homes:
    """Return the accounts of some numbers; fewer days' margin lets more of them cross their level."""
    kind = numbers % len(_LOADS_W)
    energy_minor = _step_wh(numbers) * STEPS_A_DAY * margin_days * _MINOR_PER_KWH // 1_000
    threshold_minor = np.where(numbers % 2 == 1, _THRESHOLD_MINOR, -1)
    # The fixed charge of the first day is due at once. The golden ratio spreads any run of numbers evenly.
    spread = numbers * 2_654_435_761 % 2**32
    margin_minor = np.array(_FIXED_MINOR_A_DAY, dtype=np.int64)[kind] + (energy_minor * spread >> 32)
    return Homes(
        number=numbers,
        shard=shards_of(numbers),
        load_w=np.array(_LOADS_W, dtype=np.int64)[kind],
        credit_minor=np.maximum(threshold_minor, 0) + margin_minor,
        threshold_minor=threshold_minor,
        register_wh=_first_register_wh(numbers),
    )


def serial_of(number: int) -> str:
    """Return the serial of an account's meter, which is also the account's number as consumers know it."""
    return f"{SERIAL_PREFIX}{number:0{SERIAL_DIGITS}d}"


def shards_of(numbers: Int64Column) -> Int64Column:
    """Return the shards of the meters' serials; `protocols.topics.shard_of`, for many at once."""
    digest = np.full(len(numbers), _FNV_OFFSET_BASIS, dtype=np.uint64)
    prefix = [np.uint64(byte) for byte in SERIAL_PREFIX.encode()]
    digits = [(numbers // 10**place % 10 + ord("0")).astype(np.uint64) for place in reversed(range(SERIAL_DIGITS))]
    for byte in (*prefix, *digits):
        digest = (digest ^ byte) * np.uint64(_FNV_PRIME) & np.uint64(0xFFFFFFFF)
    return (digest % np.uint64(SHARDS)).astype(np.int64)


def readings_at(numbers: Int64Column, step: int, opened_ms: int) -> ReadingColumns:
    """Return one reading each of some meters, `step` half hours after the opening: six channels, no export.

    A register rises by 62 to 166 Wh each half hour, give or take 6.
    """
    power_w = 580 + (numbers * 31 + step * 17) % 41
    voltage_mv = 228_000 + (numbers * 131 + step * 797) % 4_001
    return ReadingColumns.of(
        numbers,
        np.full(len(numbers), opened_ms + step * STEP_MS, dtype=np.int64),
        _first_register_wh(numbers) + _step_wh(numbers) * step + (numbers * 31 + step * 17) % 7,
        voltage_mv=voltage_mv,
        current_ma=power_w * 1_000_000 // voltage_mv,
        power_w=power_w,
        pf_milli=950 + (numbers + step) % 50,
        freq_mhz=49_950 + (numbers + step * 7) % 100,
    )


def arrivals(numbers: Int64Column, batch: int, rng: np.random.Generator) -> list[Int64Column]:
    """Cut meters into batches as they arrive in: in random order over all of them, each batch sorted.

    A sweep in the order of ids would be kinder to the key's index than meters ever are.
    """
    arriving = rng.permutation(numbers)
    return [np.sort(arriving[first : first + batch]) for first in range(0, len(arriving), batch)]


def _step_wh(numbers: Int64Column) -> Int64Column:
    return 62 + numbers * 7 % 105


def _first_register_wh(numbers: Int64Column) -> Int64Column:
    return 1_000 + numbers * 37 % 5_000_000
