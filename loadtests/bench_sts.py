"""`bench sts`: tokens minted and decoded per second by the soft security module, beside the bare ciphers.

Stage: the part of a vend that only computes. Each item is another meter, more meters than the key schedules that are
kept, so that every token pays for its own. The reference does for each item what cannot be left out: one
HMAC-SHA-256 that derives the decoder key, its schedule, and one MISTY1 block in the same pure implementation.
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable
from itertools import starmap
from statistics import median
from typing import Final

from loadtests.bench_machine import machine_facts, measured_at
from vending.security import MASTER_KEY_BYTES, SealedVendingKey, SoftSecurityModule, seal_vending_key
from vending.sts.amounts import CurrencyField
from vending.sts.identity import (
    BaseDate,
    Drn,
    EncryptionAlgorithm,
    KeyDerivation,
    KeyType,
    MeterKeyRecord,
    luhn_check_digit,
)
from vending.sts.keys import VENDING_KEY_BYTES, dkga04_message
from vending.sts.misty1 import Misty1
from vending.sts.tokens import CreditService, CurrencyCredit, TokenNumber

# More than the 4,096 key schedules that stay in memory: taken in turn, none is ever found there.
TOKENS: Final = 5_000
RUNS: Final = 5
SGC: Final = "999999"
KRN: Final = 1
# Keys of this benchmark alone; nothing real is sealed or minted under them.
_MASTER: Final = bytes(range(MASTER_KEY_BYTES))
_VENDING_KEY: Final = bytes(range(VENDING_KEY_BYTES))
_AMOUNT: Final = CurrencyField.encode(50_000_000)
_TID_FIRST: Final = 6_000_000
WORK_PER_TOKEN: Final = {
    "mint": "open the sealed vending key, derive the decoder key, encode, CRC, encrypt, 20 digits",
    "decode": "open the sealed vending key, derive the decoder key, read 20 digits, decrypt, CRC, typed contents",
    "reference": "one HMAC-SHA-256, one key schedule, one MISTY1 block",
}


def bench_sts(tokens: int = TOKENS) -> dict[str, object]:
    """Measure minting and decoding; return the report."""
    facts = machine_facts()
    sealed = SealedVendingKey(sgc=SGC, krn=KRN, sealed=seal_vending_key(_MASTER, SGC, KRN, _VENDING_KEY))
    module = SoftSecurityModule(_MASTER, [sealed], rnd_nibble=lambda: 0)
    meters = [_meter(number) for number in range(tokens)]
    messages = [dkga04_message(meter) for meter in meters]

    def mint(number: int, meter: MeterKeyRecord) -> TokenNumber:
        return module.mint_currency_credit(
            meter, service=CreditService.ELECTRICITY, amount=_AMOUNT, tid=_TID_FIRST + number
        )

    minted = list(starmap(mint, enumerate(meters)))
    pairs = list(zip(meters, minted, strict=True))
    wrong = sum(
        module.verify(meter, number)
        != CurrencyCredit(service=CreditService.ELECTRICITY, tid=_TID_FIRST + place, amount=_AMOUNT)
        for place, (meter, number) in enumerate(pairs)
    )
    # The runs take turns, so that a busy moment of the machine falls on all of them alike.
    jobs: dict[str, Callable[[], object]] = {
        "reference": lambda: [_bare(message) for message in messages],
        "mint": lambda: list(starmap(mint, enumerate(meters))),
        "decode": lambda: list(starmap(module.verify, pairs)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(RUNS):
        for name, job in jobs.items():
            seconds[name].append(_timed(job))
    per_second = {name: round(tokens / median(taken)) for name, taken in seconds.items()}
    both_s = median(seconds["mint"]) + median(seconds["decode"])
    return {
        "benchmark": "sts",
        "measured_at": measured_at(),
        "machine": facts,
        "work_per_token": WORK_PER_TOKEN,
        "tokens": tokens,
        "runs": RUNS,
        "mints_per_second": per_second["mint"],
        "decodes_per_second": per_second["decode"],
        "mint_and_decode_per_second": round(tokens / both_s),
        "reference_per_second": per_second["reference"],
        "ratio_mint": round(per_second["mint"] / per_second["reference"], 3),
        "ratio_decode": round(per_second["decode"] / per_second["reference"], 3),
        "wrong": wrong,
    }


def _bare(message: bytes) -> int:
    key = hmac.digest(_VENDING_KEY, message, "sha256")[:16]
    return Misty1(key).encrypt(0)


def _timed(job: Callable[[], object]) -> float:
    began_s = time.perf_counter()
    job()
    return time.perf_counter() - began_s


def _meter(number: int) -> MeterKeyRecord:
    body = f"99{number:08d}"
    return MeterKeyRecord(
        iin="600727",
        drn=Drn(body + str(luhn_check_digit(body))),
        ea=EncryptionAlgorithm.MISTY1,
        dkga=KeyDerivation.HMAC_SHA256,
        sgc=SGC,
        kt=KeyType.UNIQUE,
        krn=KRN,
        tariff_index=1,
        ken=255,
        base_date=BaseDate.Y2014,
    )
