"""A second, plain implementation of the STS rules, by bits as text: what the engine's answers are compared with.

It shares nothing with the engine but the substitution tables of MISTY1, which RFC vectors prove. It is slow and follows
the wording: where the engine looks up, this counts.
"""

from __future__ import annotations

import hmac
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache

from cryptography.hazmat.decrepit.ciphers.algorithms import TripleDES
from cryptography.hazmat.primitives.ciphers import Cipher, modes

from vending.sts.misty1 import _S7, _S9

Tables = tuple[Sequence[int], Sequence[int], Sequence[int]]
BASE_YEARS = {"93": 1993, "14": 2014, "35": 2035}


def bits(number: int, width: int) -> str:
    """Write a number as so many bits, most significant first."""
    assert 0 <= number < 2**width, (number, width)
    return format(number, f"0{width}b")


def luhn(digits: str) -> int:
    """Return the check digit that follows."""
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (2 if place % 2 == 0 else 1)
        total += value - 9 if value > 9 else value
    return (10 - total % 10) % 10


def drn_of(maker: str, serial: int) -> str:
    """Return a DRN: maker's code, 8 digits, check digit."""
    body = f"{maker}{serial:08d}"
    return f"{body}{luhn(body)}"


def pan_of(drn: str) -> str:
    """Return the 18 digits of a MeterPAN."""
    number = ("600727" if len(drn) == 11 else "0000") + drn
    return f"{number}{luhn(number)}"


def pan_block(pan: str, kt: int) -> str:
    """Return the PANBlock as 16 digits."""
    iin = pan[:4] if pan.startswith("0000") else pan[:6]
    iain = pan[len(iin) : -1]
    return (iin + ("0" * len(iain) if kt == 3 else iain))[-16:]


def control_block(*, kt: int, sgc: str, ti: int, krn: int) -> str:
    """Return the CONTROLBlock as 16 hexadecimal digits."""
    return f"{kt}{sgc}{ti:02d}{krn}FFFFFF"


def decoder_key(*, dkga: str, vk: str, pan: str, kt: int, sgc: str, ti: int, krn: int, bdt: str, ea: str) -> str:
    """Derive a decoder key; key and outcome in hexadecimal."""
    if dkga == "02":
        data = int(pan_block(pan, kt), 16) ^ int(control_block(kt=kt, sgc=sgc, ti=ti, krn=krn), 16)
        encryptor = Cipher(TripleDES(bytes.fromhex(vk) * 3), modes.ECB()).encryptor()
        ciphered = encryptor.update(data.to_bytes(8, "big")) + encryptor.finalize()
        return f"{int.from_bytes(ciphered, 'big') ^ data ^ int(vk, 16):016x}"
    message = b"\x04" + b"".join(bytes([len(item)]) + item.encode() for item in (dkga, bdt, ea, f"{ti:02d}"))
    message += b"\x00\x04" + b"".join(bytes([len(item)]) + item.encode() for item in (sgc, str(kt), str(krn), pan))
    message += b"\x00\x00\x00\x40" if ea == "07" else b"\x00\x00\x00\x80"
    return hmac.new(bytes.fromhex(vk), message, "sha256").hexdigest()[: 16 if ea == "07" else 32]


def crc(bits50: str, *, currency: bool = False) -> int:
    """Return the CRC as carried, bit by bit."""
    octets = int(bits50, 2).to_bytes(7, "big") + (b"\x01" if currency else b"")
    register = 0xFFFF
    for octet in octets:
        for place in range(8):
            odd = register & 1 ^ octet >> place & 1
            register = register >> 1 ^ (0xA001 if odd else 0)
    return register % 256 * 256 + register // 256


def sta(block: int, key: str, tables: Tables) -> int:
    """Encrypt under EA07 as the standard words it."""
    s1, s2, p = tables
    flags = bits(~int(key, 16) & 2**64 - 1, 64)
    flags = flags[-12:] + flags[:-12]
    state = bits(block, 64)
    for _ in range(16):
        substituted = "".join(
            bits((s2 if flags[place] == "1" else s1)[int(state[place : place + 4], 2)], 4) for place in range(0, 64, 4)
        )
        permuted = ["0"] * 64
        for place in range(64):
            permuted[63 - p[place]] = substituted[63 - place]
        state = "".join(permuted)
        flags = flags[1:] + flags[0]
    return int(state, 2)


def _fi(x: int, k: int) -> int:
    nine, seven = x >> 7, x & 127
    nine = _S9[nine] ^ seven
    seven = _S7[seven] ^ nine & 127
    seven ^= k >> 9
    nine ^= k & 511
    nine = _S9[nine] ^ seven
    return seven << 9 | nine


def _fo(x: int, r: int, k: Sequence[int], ki: Sequence[int]) -> int:
    left, right = x >> 16, x & 0xFFFF
    left = _fi(left ^ k[r % 8], ki[(r + 5) % 8]) ^ right
    right = _fi(right ^ k[(r + 2) % 8], ki[(r + 1) % 8]) ^ left
    left = _fi(left ^ k[(r + 7) % 8], ki[(r + 3) % 8]) ^ right
    return (right ^ k[(r + 4) % 8]) << 16 | left


def _fl(x: int, r: int, k: Sequence[int], ki: Sequence[int]) -> int:
    left, right = x >> 16, x & 0xFFFF
    if r % 2 == 0:
        right ^= left & k[r // 2 % 8]
        left ^= right | ki[(r // 2 + 6) % 8]
    else:
        right ^= left & ki[((r - 1) // 2 + 2) % 8]
        left ^= right | k[((r - 1) // 2 + 4) % 8]
    return left << 16 | right


def misty1(block: int, key: str) -> int:
    """Encrypt under MISTY1 as RFC 2994 words it."""
    k = [int(key[place : place + 4], 16) for place in range(0, 32, 4)]
    ki = [_fi(k[place], k[(place + 1) % 8]) for place in range(8)]
    left, right = block >> 32, block & 0xFFFFFFFF
    for r in range(0, 8, 2):
        left = _fl(left, r, k, ki)
        right = _fl(right, r + 1, k, ki)
        right ^= _fo(left, r, k, ki)
        left ^= _fo(right, r + 1, k, ki)
    return _fl(right, 9, k, ki) << 32 | _fl(left, 8, k, ki)


def plain_block(token_class: int, subclass: int, body: str) -> int:
    """Return the 64-bit block with its CRC, before encryption; the body is 44 bits as text."""
    assert len(body) == 44, len(body)
    currency = token_class == 0 and 4 <= subclass <= 7
    check = crc(bits(token_class, 2) + bits(subclass, 4) + body, currency=currency)
    return int(bits(subclass, 4) + body + bits(check, 16), 2)


def token(token_class: int, subclass: int, body: str, *, key: str = "", tables: Tables | None = None) -> str:
    """Return the 20 digits; a key of 16 hexadecimal digits is EA07, one of 32 EA11."""
    block = plain_block(token_class, subclass, body)
    if token_class != 1:
        if len(key) == 16:
            assert tables is not None
            block = sta(block, key, tables)
        else:
            block = misty1(block, key)
    travelling = bits(block, 64)
    # Counted from the right: bits 28 and 27 go to the top, the class takes their place.
    moved = travelling[35:37]
    return f"{int(moved + travelling[:35] + bits(token_class, 2) + travelling[37:], 2):020d}"


def with_tid(head: int, tid: int, value16: int) -> str:
    """Return the body of a token with a TID."""
    return bits(head, 4) + bits(tid, 24) + bits(value16, 16)


def tid(issued_at: datetime, bdt: str) -> int:
    """Return the TID of a normal token."""
    minutes = int((issued_at - datetime(BASE_YEARS[bdt], 1, 1, tzinfo=UTC)).total_seconds() // 60)
    return minutes + 1 if (issued_at.hour, issued_at.minute) == (0, 1) else minutes


@cache
def _amounts(exponents: int) -> list[int]:
    """Return every amount the field can carry, in order of its code."""
    amounts, start = [], 0
    for exponent in range(exponents):
        step = 10**exponent
        amounts += [start + step * mantissa for mantissa in range(1 << 14)]
        start += (1 << 14) * step
    return amounts


def amount16(steps: int) -> int:
    """Return the code of the least amount that is not below this one, by looking through all there are."""
    return bisect_left(_amounts(4), steps)


def currency_code(amount_e5: int) -> tuple[int, int]:
    """Return sign and exponent nibble, and the 16-bit field."""
    amounts = _amounts(32)
    if amount_e5 < 0:
        code = bisect_right(amounts, -amount_e5) - 1
        return 8 | code >> 16, code & 0xFFFF
    code = bisect_left(amounts, amount_e5)
    return code >> 16, code & 0xFFFF


def key_change(
    *, ea: str, new_key: str, krn: int, kt: int, ti: int, ken: int, sgc: str, ro: int, third: int
) -> list[tuple[int, str]]:
    """Return subclass and body of each section, in order."""
    words = [bits(int(new_key[place : place + 8], 16), 32) for place in range(0, len(new_key), 8)]
    first = (3, bits(ken >> 4, 4) + bits(krn, 4) + str(ro) + str(third) + bits(kt, 2) + words[0])
    second = (4, bits(ken & 15, 4) + bits(ti, 8) + words[-1])
    group = bits(int(sgc), 24)
    if ea == "11":
        return [first, second, (8, group[12:] + words[1]), (9, group[:12] + words[2])]
    return [first, second, (8, group + "0" * 20)] if third else [first, second]
