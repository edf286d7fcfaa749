"""Made-up vector cases for every algorithm that `prepaid sts check` must understand, answered by the plain oracle.

A case has the fields that are needed and the optional ones apart, so that a test can leave either out.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from tests import sts_oracle as oracle

# Permutations that are no field meter's and not the samples either.
TABLES: oracle.Tables = (
    (7, 2, 9, 15, 0, 11, 4, 13, 1, 8, 14, 3, 10, 5, 12, 6),
    (3, 12, 6, 9, 15, 0, 10, 5, 8, 1, 13, 7, 2, 14, 11, 4),
    tuple(37 * place % 64 ^ 21 for place in range(64)),
)
KEY_BYTES = {"02": 8, "04": 20}
UNITS_AROUND_EDGES = (
    "0",
    "0.1",
    "1638.3",
    "1638.4",
    "18021.4",
    "18021.5",
    "18022.3",
    "18022.4",
    "181852.5",
    "1820162.4",
)
WATTS_AROUND_EDGES = (0, 1, 16_383, 16_384, 180_214, 180_215, 180_223, 1_818_524, 18_201_624)
CURRENCY_AROUND_EDGES = (0, 1, -1, 100_000, -100_000, 180_215, -180_223, 10**15 + 7, -(10**20), 16_384 * 10**30)


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeCase:
    """One case. `optional` inputs change nothing; every other one is needed."""

    algorithm: str
    inputs: dict[str, Any]
    expected: dict[str, Any]
    optional: frozenset[str] = frozenset()
    # Whether its token can be confirmed only with the tables of this file.
    needs_tables: bool = False
    lies: tuple[dict[str, Any], ...] = field(default=())


def _meter(rng: random.Random, dkga: str) -> dict[str, Any]:
    drn = oracle.drn_of(rng.choice(("07", "0001", "1234")), rng.randrange(10**8))
    return {
        "pan": oracle.pan_of(drn),
        "kt": rng.choice((1, 2, 3) if dkga == "02" else (1, 2)),
        "sgc": f"{rng.randrange(10**6):06d}",
        "ti": f"{rng.randrange(100):02d}",
        "krn": rng.randint(1, 9),
        "vk": rng.randbytes(KEY_BYTES[dkga]).hex(),
        "bdt": rng.choice(("93", "14", "35")),
    }


def _key(meter: dict[str, Any], dkga: str, ea: str) -> str:
    part = {name: meter[name] for name in ("vk", "pan", "kt", "sgc", "krn", "bdt")}
    return oracle.decoder_key(dkga=dkga, ea=ea, ti=int(meter["ti"]), **part)


def _issue_time(rng: random.Random, bdt: str) -> datetime:
    start = datetime(oracle.BASE_YEARS[bdt], 1, 1, tzinfo=UTC)
    at = start + timedelta(seconds=rng.randrange(60 * (1 << 24)))
    return rng.choice((at, at.replace(hour=0, minute=1), at.replace(hour=0, minute=2)))


def _value(rng: random.Random, token_class: int, subclass: int) -> tuple[dict[str, Any], int]:
    """Return the input that holds the value, and its 16 bits."""
    match token_class, subclass:
        case 0, _:
            units = rng.choice((*UNITS_AROUND_EDGES, f"{rng.randrange(18_201_625) / 10:.1f}"))
            return {"units": units}, oracle.amount16(int(Decimal(units) * 10))
        case 2, 0 | 6:
            watts = rng.choice((*WATTS_AROUND_EDGES, rng.randrange(18_201_625)))
            return {"value": watts}, oracle.amount16(watts)
        case 2, 1:
            register = rng.choice((*range(8), 0xFFFF))
            return {"register": register}, register
        case 2, 5:
            return {"pad": 0}, 0
        case 2, 10 if rng.random() < 0.5:
            flag, value = rng.randrange(512), rng.randrange(2)
            return {"ext": f"index 63 flag {flag} value {value}"}, 63 << 10 | flag << 1 | value
        case 2, 10:
            index, value = rng.randrange(63), rng.randrange(1024)
            return {"ext": f"index {index} control value {value}"}, index << 10 | value
        case _:
            raw = rng.randrange(1 << 16)
            return {"value": raw}, raw


KINDS = (*((0, subclass) for subclass in range(8)), *((2, subclass) for subclass in (0, 1, 2, 5, 6, 7, 10)))
CIPHERS = (("02", "07"), ("04", "07"), ("04", "11"))


def _contents(rng: random.Random, token_class: int, subclass: int) -> tuple[dict[str, Any], int, int]:
    """Return the inputs that name the contents, the four bits before the TID and the 16 after it."""
    if token_class == 0 and subclass > 3:
        amount = rng.choice((*CURRENCY_AROUND_EDGES, rng.randrange(-(10**12), 10**12)))
        return {"currency_amount": amount}, *oracle.currency_code(amount)
    value, value16 = _value(rng, token_class, subclass)
    rnd = rng.randrange(16)
    return {"rnd": rnd, **value}, rnd, value16


def derived(rng: random.Random) -> Iterator[MadeCase]:
    """Every credit and management token under a key derived from a vending key."""
    for dkga, ea in CIPHERS:
        for token_class, subclass in KINDS:
            meter = _meter(rng, dkga)
            at = _issue_time(rng, meter["bdt"])
            contents, head, value16 = _contents(rng, token_class, subclass)
            key, tid = _key(meter, dkga, ea), oracle.tid(at, meter["bdt"])
            is_currency = "currency_amount" in contents
            body = oracle.with_tid(head, tid, value16)
            expected = {"decoder_key": key, "tid": tid, "payload16": f"{value16:04x}"}
            expected["token"] = oracle.token(token_class, subclass, body, key=key, tables=TABLES)
            yield MadeCase(
                algorithm=f"class{token_class}/{subclass} {'currency ' if is_currency else ''}DKGA{dkga} EA{ea}",
                inputs={
                    **meter,
                    **contents,
                    "issue_time": at.replace(tzinfo=None).isoformat(),
                    "ken": 255,
                    "ea": ea,
                    "dkga": dkga,
                    "class": token_class,
                    "subclass": subclass,
                },
                expected=expected | ({"sign_exp_nibble": head} if is_currency else {}),
                optional=frozenset({"ken", "ea", "dkga", "class", "subclass"}),
                needs_tables=ea == "07",
            )


def given_key(rng: random.Random) -> Iterator[MadeCase]:
    """Tokens under a given decoder key: contents whole, or not given at all."""
    for token_class, subclass in KINDS:
        for ea, tail in (("07", "from decoder key"), ("11", "from decoder key"), ("07", "with given decoder key")):
            key = rng.randbytes(8 if ea == "07" else 16).hex()
            tid = rng.randrange(1 << 24)
            contents, head, value16 = _contents(rng, token_class, subclass)
            body = oracle.with_tid(head, tid, value16)
            expected = {
                "token": oracle.token(token_class, subclass, body, key=key, tables=TABLES),
                "payload16": f"{value16:04x}",
                "tid": tid,
            }
            block = f"{oracle.plain_block(token_class, subclass, body):016x}"
            optional = frozenset({"tid", *contents})
            name = f"class{token_class}/{subclass} EA{ea} {tail}"
            for inputs in ({"tid": tid, **contents}, {}):
                yield MadeCase(
                    algorithm=name,
                    inputs={"decoder_key": key, **inputs},
                    expected=expected | {"block64": block},
                    optional=optional,
                    needs_tables=ea == "07",
                )


def clear(rng: random.Random) -> Iterator[MadeCase]:
    """Class 1 in both maker lengths, every test, and extended reads."""
    for digits, subclass in ((2, 0), (4, 1)):
        control_bits = 44 - 4 * digits
        for test in range(19):
            control = (1 << control_bits) - 1 if test == 0 else 1 << test - 1
            maker = rng.choice((0, rng.randrange(1 << 4 * digits)))
            body = oracle.bits(control, control_bits) + oracle.bits(maker, 4 * digits)
            inputs = {
                "mfr_code": maker,
                "control_hex": f"{control:x}",
                "control_bits": control_bits,
                "test_number": test,
            }
            yield MadeCase(
                algorithm=f"class1/{subclass} (not encrypted)",
                inputs=inputs,
                expected={"token": oracle.token(1, subclass, body)},
                optional=frozenset({"control_bits", "control_hex", "test_number"}),
            )
    for index in (0, 1, rng.randrange(64), 63):
        yield MadeCase(
            algorithm="class1/2 extended read (not encrypted)",
            inputs={"field44_hex": f"{index << 38:011x}"},
            expected={"token": oracle.token(1, 2, oracle.bits(index << 38, 44))},
        )


def key_change(rng: random.Random) -> Iterator[MadeCase]:
    """Sets of two, three and four, with and without RO, told by name and as a list."""
    for (dkga, ea), third in ((CIPHERS[0], 0), (CIPHERS[0], 1), (CIPHERS[1], 0), (CIPHERS[1], 1), (CIPHERS[2], 0)):
        for listed in (False, True):
            old, new = _meter(rng, dkga), _meter(rng, dkga)
            new["pan"] = old["pan"]
            ken, ro = rng.randrange(256), rng.randrange(2)
            old_key, new_key = _key(old, dkga, ea), _key(new, dkga, ea)
            part = {name: new[name] for name in ("krn", "kt", "sgc")}
            sections = oracle.key_change(ea=ea, new_key=new_key, ti=int(new["ti"]), ken=ken, ro=ro, third=third, **part)
            tokens = [oracle.token(2, subclass, body, key=old_key, tables=TABLES) for subclass, body in sections]
            named = dict(zip(("1st", "2nd", "3rd", "4th"), tokens, strict=False))
            yield MadeCase(
                algorithm=f"class2 key change set DKGA{dkga} EA{ea}",
                inputs={"ea": ea, "ken": ken, "ro": ro, "res_3kct": third, "old": old, "new": new},
                expected={
                    "old_decoder_key": old_key,
                    "new_decoder_key": new_key,
                    "tokens": tokens if listed else named,
                },
                optional=frozenset({"ea"}),
                needs_tables=ea == "07",
                lies=tuple(
                    {"tokens": [*tokens[:place], tokens[place - 1], *tokens[place + 1 :]]}
                    for place in range(len(tokens))
                ),
            )


def decoded(rng: random.Random) -> Iterator[MadeCase]:
    """The fields of every kind of token."""
    for ea in ("07", "11"):
        key = rng.randbytes(8 if ea == "07" else 16).hex()
        extra = {"decoder_key": key, "ea": ea, "bdt": "14"}
        for token_class, subclass in KINDS:
            _, head, value16 = _contents(rng, token_class, subclass)
            tid = rng.randrange(1 << 24)
            body = oracle.with_tid(head, tid, value16)
            nibble = "sign_exp_nibble" if token_class == 0 and subclass > 3 else "rnd"
            expected = {"class": token_class, "subclass": subclass, nibble: head, "tid": tid}
            expected |= {"payload16": f"{value16:04x}", "field44": f"{int(body, 2):011x}", "crc_ok": True}
            digits = oracle.token(token_class, subclass, body, key=key, tables=TABLES)
            yield _decode_case(f"decode class{token_class}/{subclass} EA{ea}", digits, extra, expected)
        for third in (0, 1) if ea == "07" else (0,):
            yield from _decoded_sections(rng, key, ea, extra, third)
    for digits_count, subclass in ((2, 0), (4, 1)):
        width = 44 - 4 * digits_count
        control, maker = rng.randrange(1 << width), rng.randrange(1 << 4 * digits_count)
        body = oracle.bits(control, width) + oracle.bits(maker, 4 * digits_count)
        names = {f"control{width}": f"{control:0{width // 4}x}", "mfrcode": maker}
        expected = {"class": 1, "subclass": subclass, "crc_ok": True, "field44": f"{int(body, 2):011x}", **names}
        digits = oracle.token(1, subclass, body)
        yield _decode_case(f"decode class1/{subclass} (not encrypted)", digits, {}, expected)
        form = {"class": 1, "hex66": f"{int(digits):017X}"}
        yield MadeCase(algorithm="decimal/hex form of a 66-bit token", inputs={"token": digits}, expected=form)


def _decode_case(name: str, digits: str, extra: dict[str, Any], expected: dict[str, Any]) -> MadeCase:
    return MadeCase(
        algorithm=name,
        inputs={"token": digits, **extra},
        expected=expected,
        optional=frozenset({"ea", "bdt"}),
        needs_tables=len(extra.get("decoder_key", "")) == 16,
    )


def _decoded_sections(rng: random.Random, key: str, ea: str, extra: dict[str, Any], third: int) -> Iterator[MadeCase]:
    new_key = rng.randbytes(len(key) // 2).hex()
    krn, kt, ti, ken, ro = (
        rng.randint(1, 9),
        rng.randrange(1, 4),
        rng.randrange(100),
        rng.randrange(256),
        rng.randrange(2),
    )
    sgc = f"{rng.randrange(10**6):06d}"
    words = [new_key[place : place + 8] for place in range(0, len(new_key), 8)]
    high, low = divmod(int(sgc), 1 << 12)
    fields: list[dict[str, Any]] = [
        {"kenho": ken >> 4, "krn": krn, "ro": ro, "res_3kct": third, "kt": kt, "nkho": words[0]},
        {"kenlo": ken & 15, "ti": f"{ti:02d}", "nklo": words[-1]},
    ]
    if ea == "11":
        fields += [{"sgclo": low, "nkmo2": words[1]}, {"sgcho": high, "nkmo1": words[2]}]
    elif third:
        fields.append({"sgc": sgc})
    sections = oracle.key_change(ea=ea, new_key=new_key, krn=krn, kt=kt, ti=ti, ken=ken, sgc=sgc, ro=ro, third=third)
    for (subclass, body), told in zip(sections, fields, strict=True):
        digits = oracle.token(2, subclass, body, key=key, tables=TABLES)
        name = f"decode class2/{subclass} EA{ea}"
        yield _decode_case(name, digits, extra, {"class": 2, "subclass": subclass, "crc_ok": True, **told})


def single_rules(rng: random.Random) -> Iterator[MadeCase]:
    """The rules below the token: CRC, TID, KEN, blocks, check digits, the cipher."""
    plain = rng.getrandbits(50) & ~(1 << 48)
    check = oracle.crc(oracle.bits(plain, 50), currency=plain >> 48 == 0 and 4 <= plain >> 44 <= 7)
    for inputs in ({"bits50_decimal": plain}, {"hex": f"{plain:013x}"}):
        yield MadeCase(algorithm="CRC-16", inputs=inputs, expected={"crc": check, "hex": f"{check:04x}"})
    bdt = rng.choice(("93", "14", "35"))
    at = _issue_time(rng, bdt)
    tid, ken = oracle.tid(at, bdt), rng.randrange(256)
    time = {"issue_time": at.replace(tzinfo=None).isoformat(), "bdt": bdt}
    yield MadeCase(algorithm="TID", inputs=time, expected={"tid": tid})
    expired = {"tid": tid, "tid_msb8": tid >> 16, "expired": tid // 65_536 > ken}
    yield MadeCase(algorithm="KEN check", inputs={**time, "ken": ken}, expected=expired)
    meter = _meter(rng, "02")
    iin = meter["pan"][:4] if meter["pan"].startswith("0000") else meter["pan"][:6]
    block = oracle.pan_block(meter["pan"], meter["kt"])
    numbers = {"iin": iin, "iain": meter["pan"][len(iin) : -1], "kt": meter["kt"]}
    yield MadeCase(algorithm="PANBlock", inputs=numbers, expected={"panblock": block})
    named = {name: meter[name] for name in ("kt", "sgc", "ti", "krn")}
    control = oracle.control_block(kt=meter["kt"], sgc=meter["sgc"], ti=int(meter["ti"]), krn=meter["krn"])
    yield MadeCase(algorithm="CONTROLBlock", inputs=named, expected={"block": control})
    pan = meter["pan"][:-1] + rng.choice((meter["pan"][-1], "0"))
    digit = oracle.luhn(pan[len(iin) : -2])
    checks = {"pan_check_ok": oracle.luhn(pan[:-1]) == int(pan[-1]), "drn_check": digit}
    yield MadeCase(algorithm="MeterPAN check digits", inputs={"pan": pan}, expected=checks)
    digits = str(rng.randrange(1, 10**16))
    follows = oracle.luhn(digits)
    yield MadeCase(algorithm="Luhn mod 10", inputs={"digits": digits}, expected={"check": follows})
    other = (follows + rng.randint(1, 9)) % 10
    yield MadeCase(
        algorithm="Luhn mod 10 negative",
        inputs={"digits": digits},
        expected={"check": other},
        lies=({"check": follows},),
    )
    key, data = rng.randbytes(16).hex(), rng.getrandbits(64)
    ciphered = {"cipher": f"{oracle.misty1(data, key):016x}"}
    yield MadeCase(algorithm="MISTY1 ECB", inputs={"key": key, "plain": f"{data:016x}"}, expected=ciphered)


MAKERS: tuple[Callable[[random.Random], Iterator[MadeCase]], ...] = (
    derived,
    given_key,
    clear,
    key_change,
    decoded,
    single_rules,
)
