"""What can be wrong with bytes from a meter: the errors every decoder of this package raises.

An edge that meets one waits for more bytes (`NeedMoreBytes`) or quarantines the raw frame, counts it by
`code` and acknowledges it. Messages say what was expected, what came, and whose it is; they never carry a key
or a whole token.
"""

from typing import ClassVar


class FrameError(Exception):
    """The bytes are wrong.

    Invariants: `code` is stable; stored rows and counters refer to it.
    """

    code: ClassVar[str] = "frame_error"


class NeedMoreBytes(FrameError):
    """The bytes are a clean beginning of a frame; the rest may still come."""

    code: ClassVar[str] = "need_more_bytes"


class Malformed(FrameError):
    """The bytes, or the facts to be encoded, break the rules of their format."""

    code: ClassVar[str] = "malformed"


class IntegrityFailed(FrameError):
    """The frame is well formed, but its checksum or tag does not match."""

    code: ClassVar[str] = "integrity_failed"
