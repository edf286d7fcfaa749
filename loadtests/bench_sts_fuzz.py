"""Random digits against the token decoder: nothing may escape it, and no more may pass than the CRC's odds say.

Stage: a check on the pure STS engine, bounded in number and in time. Random digits that are a token of an encrypted or
a clear class pass the CRC once in 65,536; how many did is printed beside that, with the interval in which their true
rate lies.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from vending.sts.errors import MalformedToken, TokenCrcMismatch, UnsupportedToken
from vending.sts.identity import EncryptionAlgorithm
from vending.sts.keys import DecoderKey
from vending.sts.management import decode_any_token
from vending.sts.sta import IEC_SAMPLE_TABLES
from vending.sts.tokens import TOKEN_DIGITS, TokenNumber, split_class

STRINGS: Final = 1_000_000
# A million under both ciphers takes some 25 s on one core; on a slower machine it ends here and says how far it came.
SECONDS_MAX: Final = 60.0
CRC_ODDS: Final = 2.0**-16
# The chance that a decoder without fault is called one.
ERROR_CHANCE: Final = 0.001
# So many strings between two looks at the clock: some 20 ms.
_STRINGS_A_LOOK: Final = 1_000
_RESERVED_CLASS: Final = 3


@dataclass(slots=True, kw_only=True)
class FuzzCounts:
    """What became of the strings.

    Invariants: `no_token + reserved + crc_wrong + intact + escaped == strings`; `accepted <= intact`.
    """

    strings: int = 0
    no_token: int = 0
    reserved: int = 0
    crc_wrong: int = 0
    intact: int = 0
    accepted: int = 0
    escaped: int = 0
    first_escape: str = ""

    @property
    def judged_by_crc(self) -> int:
        """How many had a CRC to be judged by."""
        return self.crc_wrong + self.intact

    @property
    def as_the_odds_say(self) -> bool:
        """Tell whether as many were intact as chance lets pass."""
        low, high = poisson_interval(self.intact)
        return not self.escaped and low <= self.judged_by_crc * CRC_ODDS <= high

    def report(self) -> dict[str, object]:
        """Return the counts and the rate of intact ones with its interval."""
        judged = max(1, self.judged_by_crc)
        low, high = poisson_interval(self.intact)
        return {
            "strings": self.strings,
            "no_token": self.no_token,
            "reserved_class": self.reserved,
            "crc_wrong": self.crc_wrong,
            "intact": self.intact,
            "intact_expected": round(self.judged_by_crc * CRC_ODDS, 2),
            "of_a_known_kind": self.accepted,
            "intact_rate": f"{self.intact / judged:.3g}",
            "intact_rate_interval_99_9": [f"{bound / judged:.3g}" for bound in (low, high)],
            "crc_odds": f"{CRC_ODDS:.3g}",
            "as_the_odds_say": self.as_the_odds_say,
            "escaped": self.escaped,
            **({"first_escape": self.first_escape} if self.escaped else {}),
        }


def fuzz_tokens(
    decoder_key: DecoderKey | None,
    *,
    strings: int,
    rng: random.Random,
    seconds_max: float = SECONDS_MAX,
    clock: Callable[[], float] = time.monotonic,
) -> FuzzCounts:
    """Decode so many random strings of 20 digits, or as many as the time allows."""
    counts = FuzzCounts()
    ends_at = clock() + seconds_max
    while counts.strings < strings and clock() < ends_at:
        for _ in range(min(_STRINGS_A_LOOK, strings - counts.strings)):
            _fuzz_one(f"{rng.randrange(10**TOKEN_DIGITS):0{TOKEN_DIGITS}d}", decoder_key, counts)
    return counts


def _fuzz_one(digits: str, decoder_key: DecoderKey | None, counts: FuzzCounts) -> None:
    counts.strings += 1
    try:
        number = TokenNumber(digits)
        decode_any_token(number, decoder_key)
        counts.intact += 1
        counts.accepted += 1
    except MalformedToken:
        counts.no_token += 1
    except TokenCrcMismatch:
        counts.crc_wrong += 1
    except UnsupportedToken:
        if split_class(number)[0] == _RESERVED_CLASS:
            counts.reserved += 1
        else:
            counts.intact += 1
    except Exception as error:  # noqa: BLE001  # What the engine did not mean to raise is what is looked for here.
        counts.escaped += 1
        counts.first_escape = counts.first_escape or f"{type(error).__name__} on {digits}"


def bench_fuzz(
    strings: int, *, seconds_max: float = SECONDS_MAX, seed: int, on_done: Callable[[int], None] = lambda _: None
) -> dict[str, object]:
    """Decode random digits under both ciphers; return the report."""
    rng = random.Random(seed)
    report: dict[str, object] = {}
    sound = True
    for place, ea in enumerate(EncryptionAlgorithm, start=1):
        is_sta = ea is EncryptionAlgorithm.STA
        tables = IEC_SAMPLE_TABLES if is_sta else None
        key = DecoderKey(ea=ea, key=rng.randbytes(8 if is_sta else 16), sta_tables=tables)
        began_s = time.monotonic()
        counts = fuzz_tokens(key, strings=strings, rng=rng, seconds_max=seconds_max / 2)
        seconds = time.monotonic() - began_s
        whole = {"complete": counts.strings == strings, "per_second": round(counts.strings / max(seconds, 1e-9))}
        report[f"EA{ea}"] = {**counts.report(), **whole}
        sound = sound and counts.as_the_odds_say
        on_done(place)
    return {"seed": seed, "sound": sound, **report}


def poisson_interval(seen: int, *, error_chance: float = ERROR_CHANCE) -> tuple[float, float]:
    """Return the exact (Garwood) interval of the mean that gave this count.

    Source: F. Garwood, Fiducial limits for the Poisson distribution, Biometrika 28 (1936).
    """
    tail = error_chance / 2
    low = 0.0 if seen == 0 else _mean_where(lambda mean: 1 - _at_most(seen - 1, mean) < tail, seen)
    return low, _mean_where(lambda mean: _at_most(seen, mean) > tail, seen)


def _at_most(seen: int, mean: float) -> float:
    """Return the chance of at most so many."""
    return math.fsum(math.exp(count * math.log(mean) - mean - math.lgamma(count + 1)) for count in range(seen + 1))


def _mean_where(still_below: Callable[[float], bool], seen: int) -> float:
    # Ten standard deviations and ten beyond hold every interval asked for here; 60 halvings are exact.
    low, high = 1e-12, seen + 10 * math.sqrt(seen + 1) + 10
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if still_below(middle) else (low, middle)
    return low
