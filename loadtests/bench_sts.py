"""`bench sts`: tokens issued and decoded per second under each cipher, and random digits against the decoder.

Stage: the part of a vend that only computes. `module` is what a vend pays: the soft security module opens the sealed
vending key, derives the meter's key and makes the token. `engine` is the bare engine under a decoder key at hand. Each
item is another meter, and nothing of a key is kept, so that every token pays for its own. The reference does for each
item what cannot be left out: one HMAC-SHA-256 that derives the decoder key, its schedule and one block of the same
cipher.
"""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Final

from loadtests.bench_machine import machine_facts, measured_at
from loadtests.bench_sts_fuzz import SECONDS_MAX, STRINGS, bench_fuzz
from vending.key_custody import MASTER_KEY_BYTES, SealedVendingKey, seal_vending_key
from vending.soft_module import SoftSecurityModule
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
from vending.sts.keys import VENDING_KEY_BYTES, DecoderKey, derive_decoder_key, dkga04_message
from vending.sts.management import decode_any_token, encode_any_token
from vending.sts.sta import IEC_SAMPLE_TABLES
from vending.sts.tokens import CreditService, CurrencyCredit, TokenNumber

TOKENS: Final = 5_000
RUNS: Final = 5
FUZZ_SEED: Final = 62_055
SGC: Final = "999999"
KRN: Final = 1
# Keys of this benchmark alone; nothing real is sealed or minted under them.
_MASTER: Final = bytes(range(MASTER_KEY_BYTES))
_VENDING_KEY: Final = bytes(range(VENDING_KEY_BYTES))
_AMOUNT: Final = CurrencyField.encode(50_000_000)
_TID_FIRST: Final = 6_000_000
WORK_PER_TOKEN: Final = {
    "module_issue": "open the sealed vending key, derive the decoder key, encode, CRC, encrypt, 20 digits",
    "module_decode": "open the sealed vending key, derive the decoder key, read 20 digits, decrypt, CRC, typed fields",
    "engine_issue": "key schedule, encode, CRC, encrypt, 20 digits",
    "engine_decode": "key schedule, read 20 digits, decrypt, CRC, typed fields",
    "reference": "one HMAC-SHA-256, one key schedule, one block of the cipher",
}


def bench_sts(
    tokens: int = TOKENS,
    *,
    fuzz_strings: int = STRINGS,
    fuzz_seconds_max: float = SECONDS_MAX,
    on_step: Callable[[str, int, int], None] = lambda *_: None,
) -> dict[str, object]:
    """Measure both ciphers and try random digits; return the report."""
    facts = machine_facts()
    ciphers: dict[str, _CipherFigures] = {}
    for place, ea in enumerate((EncryptionAlgorithm.STA, EncryptionAlgorithm.MISTY1), start=1):
        ciphers[f"EA{ea}"] = _measure(ea, tokens)
        on_step("ciphers", place, 2)
    fuzz = bench_fuzz(
        fuzz_strings, seconds_max=fuzz_seconds_max, seed=FUZZ_SEED, on_done=lambda place: on_step("fuzz", place, 2)
    )
    return {
        "benchmark": "sts",
        "measured_at": measured_at(),
        "machine": facts,
        "work_per_token": WORK_PER_TOKEN,
        "tokens": tokens,
        "runs": RUNS,
        "ciphers": {name: figures.report() for name, figures in ciphers.items()},
        "wrong": sum(figures.wrong for figures in ciphers.values()),
        "fuzz": fuzz,
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class _CipherFigures:
    """The median rates of one cipher, by job, and how many tokens came out wrong."""

    per_second: dict[str, int]
    wrong: int

    def report(self) -> dict[str, object]:
        """Return each rate with its ratio to the reference."""
        reference = self.per_second["reference"]
        rates = {f"{name}_per_second": rate for name, rate in self.per_second.items()}
        ratios = {
            f"ratio_{name}": round(rate / reference, 3) for name, rate in self.per_second.items() if name != "reference"
        }
        return {**rates, **ratios, "wrong": self.wrong}


def _measure(ea: EncryptionAlgorithm, tokens: int) -> _CipherFigures:
    meters = [_meter(number, ea) for number in range(tokens)]
    keys = [derive_decoder_key(_VENDING_KEY, meter, sta_tables=IEC_SAMPLE_TABLES) for meter in meters]
    messages = [dkga04_message(meter) for meter in meters]
    sealed = SealedVendingKey(sgc=SGC, krn=KRN, sealed=seal_vending_key(_MASTER, SGC, KRN, _VENDING_KEY))
    module = SoftSecurityModule(_MASTER, [sealed], rnd_nibble=lambda: 0, sta_tables=IEC_SAMPLE_TABLES)
    contents = [
        CurrencyCredit(service=CreditService.ELECTRICITY, tid=_TID_FIRST + number, amount=_AMOUNT)
        for number in range(tokens)
    ]
    minted = asyncio.run(_mint_all(module, meters))
    bare = [encode_any_token(each, key) for each, key in zip(contents, keys, strict=True)]
    read = asyncio.run(_verify_all(module, meters, minted))
    wrong = sum(each != told for each, told in zip(read, contents, strict=True))
    wrong += sum(one != other for one, other in zip(minted, bare, strict=True))
    # The runs take turns, so that a busy moment of the machine falls on all of them alike.
    jobs: dict[str, Callable[[], object]] = {
        "reference": lambda: [_bare_block(ea, message) for message in messages],
        "module_issue": lambda: asyncio.run(_mint_all(module, meters)),
        "module_decode": lambda: asyncio.run(_verify_all(module, meters, minted)),
        "engine_issue": lambda: list(map(encode_any_token, contents, keys)),
        "engine_decode": lambda: list(map(decode_any_token, minted, keys)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(RUNS):
        for name, job in jobs.items():
            seconds[name].append(_timed(job))
    return _CipherFigures(
        per_second={name: round(tokens / median(taken)) for name, taken in seconds.items()}, wrong=wrong
    )


async def _mint_all(module: SoftSecurityModule, meters: list[MeterKeyRecord]) -> list[TokenNumber]:
    mint = partial(module.mint_currency_credit, service=CreditService.ELECTRICITY, amount=_AMOUNT)
    return [await mint(meter, tid=_TID_FIRST + number) for number, meter in enumerate(meters)]


async def _verify_all(
    module: SoftSecurityModule, meters: list[MeterKeyRecord], minted: list[TokenNumber]
) -> list[object]:
    return [await module.verify(meter, number) for meter, number in zip(meters, minted, strict=True)]


def _bare_block(ea: EncryptionAlgorithm, message: bytes) -> int:
    derived = hmac.digest(_VENDING_KEY, message, "sha256")
    if ea is EncryptionAlgorithm.STA:
        return DecoderKey(ea=ea, key=derived[:8], sta_tables=IEC_SAMPLE_TABLES).cipher().encrypt(0)
    return DecoderKey(ea=ea, key=derived[:16]).cipher().encrypt(0)


def _timed(job: Callable[[], object]) -> float:
    began_s = time.perf_counter()
    job()
    return time.perf_counter() - began_s


def _meter(number: int, ea: EncryptionAlgorithm) -> MeterKeyRecord:
    body = f"99{number:08d}"
    return MeterKeyRecord(
        iin="600727",
        drn=Drn(body + str(luhn_check_digit(body))),
        ea=ea,
        dkga=KeyDerivation.HMAC_SHA256,
        sgc=SGC,
        kt=KeyType.UNIQUE,
        krn=KRN,
        tariff_index=1,
        ken=255,
        base_date=BaseDate.Y2014,
    )
