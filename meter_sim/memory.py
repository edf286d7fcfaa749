"""A meter's memory that outlives its supply: one image at a time, written so that a failure leaves the old or the new.

Enters: the image to keep, as bytes. Leaves: the latest image that was written whole. The two slots are written in
turn; a slot counts once the check value behind it agrees, and of two that do, the one with the higher number. Never:
what the image means.
"""

from binascii import crc32
from typing import Final

# A small page of a meter's memory; the supply can fail between any two.
PAGE_BYTES: Final = 64
_NUMBER_BYTES: Final = 8
_CHECK_BYTES: Final = 4


class PowerFailed(Exception):
    """The supply failed while the memory was written; the meter in hand is dead, only its memory lives on."""


class MeterMemory:
    """Two slots.

    Invariants: `read` gives the image of the last `write` that came to its end. `fails_after` is a fault a test may
    set: so many steps of the next writes still succeed, at the one after them the supply fails. `steps` counts those of
    the last write.
    """

    def __init__(self) -> None:
        self.fails_after: int | None = None
        self.steps = 0
        self._slots = [b"", b""]
        self._number = 0

    def write(self, image: bytes) -> None:
        """Keep an image.

        Raises: PowerFailed.
        """
        self.steps = 0
        slot = (self._number + 1) % 2
        content = (self._number + 1).to_bytes(_NUMBER_BYTES) + image
        self._step()
        self._slots[slot] = b""
        for first in range(0, len(content), PAGE_BYTES):
            self._step()
            self._slots[slot] += content[first : first + PAGE_BYTES]
        self._step()
        self._slots[slot] += crc32(content).to_bytes(_CHECK_BYTES)
        self._number += 1
        self._step()

    def read(self) -> bytes | None:
        """Return the image kept, or None of a memory never written; also go on from it, as after a restart."""
        whole = [slot for slot in self._slots if _is_whole(slot)]
        if not whole:
            return None
        latest = max(whole)
        self._number = int.from_bytes(latest[:_NUMBER_BYTES])
        return latest[_NUMBER_BYTES:-_CHECK_BYTES]

    def _step(self) -> None:
        if self.fails_after is not None:
            if self.fails_after == 0:
                self.fails_after = None
                raise PowerFailed(f"supply failed at step {self.steps} of a write")
            self.fails_after -= 1
        self.steps += 1


def _is_whole(slot: bytes) -> bool:
    content, check = slot[:-_CHECK_BYTES], slot[-_CHECK_BYTES:]
    return len(slot) > _NUMBER_BYTES + _CHECK_BYTES and crc32(content).to_bytes(_CHECK_BYTES) == check
