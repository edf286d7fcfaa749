"""Key change sets: the two, three or four tokens that move a meter to another key.

Enters: the meter's record before and after, with both decoder keys. Leaves: the sections of the set, and the
20 digits of each under the current key. Never: vending keys, TIDs, RND: the digits follow from the two keys
alone, so making a set again gives the same digits.

Standard: IEC 62055-41, class 2 subclasses 3, 4, 8 and 9; confirmed by published sets of four tokens (EA11).
The sets of two and three (EA07) follow the same layout as read in public sources.
"""

from dataclasses import dataclass, field
from datetime import datetime, timedelta

from vending.sts.errors import FieldOutOfRange, KeyChangeRefused, NewKeyExpired, UnsupportedToken
from vending.sts.identity import EncryptionAlgorithm, KeyType, MeterKeyRecord
from vending.sts.keys import DecoderKey
from vending.sts.tokens import TokenFrame, TokenNumber, seal_frame

KEY_CHANGE_SUBCLASSES = (3, 4, 8, 9)
_CLASS = 2
_WORD = 0xFFFFFFFF
# KEN counts blocks of 65,536 minutes, the top byte of the TID.
_KEN_MINUTES = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyChangeFirst:
    """1st section: upper KEN, KRN, roll-over, number of tokens, KT, and the highest 32 bits of the new key."""

    ken_high: int
    krn: int
    roll_over: bool
    third_section: bool
    kt: KeyType
    key_part: int = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyChangeSecond:
    """2nd section: lower KEN, tariff index as a binary number, and the lowest 32 bits of the new key."""

    ken_low: int
    tariff_index: int
    key_part: int = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyChangeThirdSta:
    """3rd section of EA07: the whole supply group code as a 24-bit number; no key bits."""

    sgc: int


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyChangeThird:
    """3rd section of EA11: lower half of the supply group code, and NKMO2, right below the part of the 1st."""

    sgc_low: int
    key_part: int = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyChangeFourth:
    """4th section of EA11: upper half of the supply group code, and NKMO1, right above the part of the 2nd."""

    sgc_high: int
    key_part: int = field(repr=False)


KeyChangeSection = KeyChangeFirst | KeyChangeSecond | KeyChangeThirdSta | KeyChangeThird | KeyChangeFourth


def issue_key_change(
    *,
    old: MeterKeyRecord,
    new: MeterKeyRecord,
    old_key: DecoderKey,
    new_key: DecoderKey,
    carry_sgc: bool,
    issued_at: datetime | None = None,
) -> tuple[TokenNumber, ...]:
    """Make the tokens that move a meter from one record to the other, in the order of their numbers.

    The roll-over flag, by which the meter forgets its TIDs, is set only when the base date moves on.
    `carry_sgc` matters to EA07 only and is a property of the meter: three tokens with the supply group, or two,
    by which the meter's stored supply group becomes 0. EA11 always takes four and carries it.
    Raises: NewKeyExpired when the new key has reached its KEN at the time of issue; KeyChangeRefused.
    """
    require_key_change(old=old, new=new, issued_at=issued_at)
    if (old_key.ea, new_key.ea) != (old.ea, new.ea):
        raise KeyChangeRefused(f"key change: expected keys for EA{old.ea}, got others, meter {old.drn}")
    sections = key_change_sections(
        new,
        new_key,
        roll_over=new.base_date.starts_at > old.base_date.starts_at,
        third_section=carry_sgc and new.ea is EncryptionAlgorithm.STA,
    )
    return tuple(seal_frame(_CLASS, *pack_section(section), old_key) for section in sections)


def require_key_change(*, old: MeterKeyRecord, new: MeterKeyRecord, issued_at: datetime | None) -> None:
    """Refuse a key change that the meter would not take or would lose something by; a module's keys are not asked for.

    Raises: NewKeyExpired when the new key has reached its KEN at the time of issue; KeyChangeRefused.
    """
    if (old.pan, old.ea) != (new.pan, new.ea):
        raise KeyChangeRefused(f"key change: expected one meter and cipher, got meters {old.drn} and {new.drn}")
    if new.kt is KeyType.INITIALISATION:
        raise KeyChangeRefused(f"key change: expected a new key type 1-3, got 0, meter {new.drn}")
    if new.base_date.starts_at < old.base_date.starts_at:
        # The meter would keep its high TIDs, and every token of the earlier era would look old to it.
        raise KeyChangeRefused(
            f"key change: expected no earlier base date, got {new.base_date.starts_at.year}, meter {new.drn}"
        )
    if issued_at is not None:
        _require_key_in_force(new, issued_at)


def key_change_sections(
    new: MeterKeyRecord, new_key: DecoderKey, *, roll_over: bool, third_section: bool
) -> tuple[KeyChangeSection, ...]:
    """Cut the new key and its attributes into two or three sections (EA07) or four (EA11).

    Raises: KeyChangeRefused for the EA07 flag under EA11, or a key that is not for the meter's cipher.
    """
    if new_key.ea is not new.ea or (third_section and new.ea is not EncryptionAlgorithm.STA):
        raise KeyChangeRefused(f"key change sections: expected those of EA{new.ea}, got others, meter {new.drn}")
    key, sgc = int.from_bytes(new_key.key, "big"), int(new.sgc)
    first = KeyChangeFirst(
        ken_high=new.ken >> 4,
        krn=new.krn,
        roll_over=roll_over,
        third_section=third_section,
        kt=new.kt,
        key_part=key >> 8 * len(new_key.key) - 32,
    )
    second = KeyChangeSecond(ken_low=new.ken & 0xF, tariff_index=new.tariff_index, key_part=key & _WORD)
    if new.ea is EncryptionAlgorithm.STA:
        return (first, second, KeyChangeThirdSta(sgc=sgc)) if third_section else (first, second)
    third = KeyChangeThird(sgc_low=sgc & 0xFFF, key_part=key >> 64 & _WORD)
    return first, second, third, KeyChangeFourth(sgc_high=sgc >> 12, key_part=key >> 32 & _WORD)


def join_key_parts(sections: tuple[KeyChangeSection, ...], ea: EncryptionAlgorithm) -> bytes | None:
    """Return the new key that a set carries, as a meter puts it together; nothing while a part is missing."""
    parts = {type(each): each.key_part for each in sections if not isinstance(each, KeyChangeThirdSta)}
    if ea is EncryptionAlgorithm.STA:
        ordered = [parts.get(KeyChangeFirst), parts.get(KeyChangeSecond)]
    else:
        ordered = [parts.get(kind) for kind in (KeyChangeFirst, KeyChangeThird, KeyChangeFourth, KeyChangeSecond)]
    present = [part for part in ordered if part is not None]
    return b"".join(part.to_bytes(4, "big") for part in present) if len(present) == len(ordered) else None


def pack_section(section: KeyChangeSection) -> tuple[int, int]:
    """Return subclass and the 44 bits of a section.

    Raises: FieldOutOfRange when a field does not fit its place.
    """
    match section:
        case KeyChangeFirst():
            flags = section.roll_over << 3 | section.third_section << 2 | section.kt
            head = _fit(section.ken_high, 4, "KENHO") << 8 | _fit(section.krn, 4, "KRN") << 4 | flags
            return 3, head << 32 | _fit(section.key_part, 32, "key part")
        case KeyChangeSecond():
            head = _fit(section.ken_low, 4, "KENLO") << 8 | _fit(section.tariff_index, 8, "TI")
            return 4, head << 32 | _fit(section.key_part, 32, "key part")
        case KeyChangeThirdSta():
            return 8, _fit(section.sgc, 24, "SGC") << 20
        case KeyChangeThird():
            return 8, _fit(section.sgc_low, 12, "SGCLO") << 32 | _fit(section.key_part, 32, "key part")
        case KeyChangeFourth():
            return 9, _fit(section.sgc_high, 12, "SGCHO") << 32 | _fit(section.key_part, 32, "key part")


def unpack_section(frame: TokenFrame, ea: EncryptionAlgorithm) -> KeyChangeSection:
    """Read a section from an opened token; the cipher says what subclass 8 means.

    Raises: UnsupportedToken for another subclass, or a 3rd section of EA07 with bits that must be zero.
    """
    body, part = frame.field44, frame.field44 & _WORD
    match frame.subclass, ea:
        case 3, _:
            return KeyChangeFirst(
                ken_high=body >> 40,
                krn=body >> 36 & 0xF,
                roll_over=bool(body >> 35 & 1),
                third_section=bool(body >> 34 & 1),
                kt=KeyType(body >> 32 & 0b11),
                key_part=part,
            )
        case 4, _:
            return KeyChangeSecond(ken_low=body >> 40, tariff_index=body >> 32 & 0xFF, key_part=part)
        case 8, EncryptionAlgorithm.STA if not body & 0xFFFFF:
            return KeyChangeThirdSta(sgc=body >> 20)
        case 8, EncryptionAlgorithm.MISTY1:
            return KeyChangeThird(sgc_low=body >> 32, key_part=part)
        case 9, EncryptionAlgorithm.MISTY1:
            return KeyChangeFourth(sgc_high=body >> 32, key_part=part)
    raise UnsupportedToken(f"key change section: expected one of EA{ea}, got subclass {frame.subclass}")


def _require_key_in_force(new: MeterKeyRecord, issued_at: datetime) -> None:
    assert issued_at.tzinfo is not None
    # A set may be made before the new era begins; the block is then negative and the key not expired.
    block = (issued_at - new.base_date.starts_at) // timedelta(minutes=_KEN_MINUTES)
    if block > new.ken:
        raise NewKeyExpired(
            f"new key of SGC {new.sgc} KRN {new.krn}: expected TID block up to KEN {new.ken}, "
            f"got {block}, meter {new.drn}"
        )


def _fit(value: int, bits: int, whose: str) -> int:
    if not 0 <= value < 1 << bits:
        # The number is left out: it may be part of a key.
        raise FieldOutOfRange(f"token field {whose}: expected {bits} bits, got more")
    return value
