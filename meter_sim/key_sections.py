"""The sections of a key change as a meter collects them: in any order, each kept for ten minutes.

Enters: opened key change tokens with the time they came. Leaves: the new key with its attributes once the set is
whole. Never: whether the new key works, which only the next credit shows: a section carries nothing that ties it to
its set, so sections of two sets mixed within ten minutes make a key that nobody has.

Standard: IEC 62055-41, class 2 subclasses 3, 4, 8 and 9. The ten minutes follow a maker's manual.
"""

from dataclasses import dataclass, field

from meter_sim.token_blocks import number

SECTION_SUBCLASSES = (3, 4, 8, 9)
SECTION_MS = 600_000
_FIRST, _SECOND, _THIRD, _FOURTH = SECTION_SUBCLASSES


@dataclass(frozen=True, slots=True, kw_only=True)
class NewKey:
    """What a whole set says: the key, and what goes with it."""

    key: bytes = field(repr=False)
    key_type: int
    krn: int
    ken: int
    tariff_index: int
    sgc: int
    roll_over: bool


class KeySections:
    """The sections held.

    Invariants: at most one of each number; none is older than ten minutes when looked at.
    """

    def __init__(self, *, key_bytes: int) -> None:
        """Collect for a cipher whose keys have 8 bytes (two or three sections) or 16 (four)."""
        self._is_long = key_bytes == 16
        self._held: dict[int, tuple[str, int]] = {}

    def __repr__(self) -> str:
        return f"KeySections(held {sorted(map(section_number, self._held))})"

    def put(self, subclass: int, body: str, now_ms: int) -> None:
        """Hold a section; the same number again replaces it."""
        self._forget_old(now_ms)
        self._held[subclass] = (body, now_ms)

    def missing(self, now_ms: int) -> tuple[int, ...]:
        """Return the numbers of the sections that the set still lacks."""
        self._forget_old(now_ms)
        needed = [_FIRST, _SECOND]
        first = self._held.get(_FIRST)
        if self._is_long:
            needed += [_THIRD, _FOURTH]
        elif first is not None and number(first[0], 9, 1):
            needed.append(_THIRD)
        return tuple(section_number(each) for each in needed if each not in self._held)

    def take(self) -> NewKey:
        """Put a whole set together and hold nothing any more."""
        first, second = self._held[_FIRST][0], self._held[_SECOND][0]
        high, low = first[12:], second[12:]
        sgc = 0
        if self._is_long:
            third, fourth = self._held[_THIRD][0], self._held[_FOURTH][0]
            bits = high + third[12:] + fourth[12:] + low
            sgc = number(fourth[:12] + third[:12], 0, 24)
        else:
            bits = high + low
            if number(first, 9, 1):
                sgc = number(self._held[_THIRD][0], 0, 24)
        self.forget()
        return NewKey(
            key=int(bits, 2).to_bytes(len(bits) // 8, "big"),
            key_type=number(first, 10, 2),
            krn=number(first, 4, 4),
            ken=number(first[:4] + second[:4], 0, 8),
            tariff_index=number(second, 4, 8),
            sgc=sgc,
            roll_over=first[8] == "1",
        )

    def forget(self) -> None:
        """Hold nothing any more."""
        self._held.clear()

    def _forget_old(self, now_ms: int) -> None:
        self._held = {each: held for each, held in self._held.items() if now_ms - held[1] < SECTION_MS}


def section_number(subclass: int) -> int:
    """Return which token of the set a subclass is, 1 to 4."""
    return SECTION_SUBCLASSES.index(subclass) + 1
