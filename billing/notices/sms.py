"""How many segments a text message takes, which is what each one costs.

Stage: beside the texts. Takes a text, returns how it is coded and counted.

Standard: 3GPP TS 23.038 (alphabets) and 23.040 (concatenation), by their common description: 160 septets alone or 153 a
segment in the default alphabet, else 70 or 67 units of UCS-2.
"""

from __future__ import annotations

from dataclasses import dataclass

_BASIC = (
    "@£$¥èéùìòÇ\nØø\rÅåΔ_ΦΓΛΩΠΨΣΘΞÆæßÉ !\"#¤%&'()*+,-./0123456789:;<=>?¡ABCDEFGHIJKLMNOPQRSTUVWXYZÄÖÑÜ§¿"
    "abcdefghijklmnopqrstuvwxyzäöñüà"
)
# Each of these takes an escape and a septet.
_EXTENSION = "\f^{}\\[~]|€"
_GSM_ALONE, _GSM_SEGMENT = 160, 153
_UCS2_ALONE, _UCS2_SEGMENT = 70, 67
_UTF16_BYTES = 2

# A template may never take more, whatever its facts: two in the default alphabet hold 306 characters, three in another
# script 201. A test renders every kind with the greatest facts.
GSM_SEGMENTS_MAX, UCS2_SEGMENTS_MAX = 2, 3


@dataclass(frozen=True, slots=True, kw_only=True)
class SmsLength:
    """The length of a message: units of its alphabet and segments sent."""

    ucs2: bool
    units: int
    segments: int

    @property
    def fits(self) -> bool:
        """Tell whether the message keeps to the rule on the most segments."""
        return self.segments <= (UCS2_SEGMENTS_MAX if self.ucs2 else GSM_SEGMENTS_MAX)


def sms_length(text: str) -> SmsLength:
    """Measure a message; one character outside the default alphabet turns all of it into UCS-2."""
    ucs2 = any(mark not in _BASIC and mark not in _EXTENSION for mark in text)
    if ucs2:
        units, alone, segment = len(text.encode("utf-16-le")) // _UTF16_BYTES, _UCS2_ALONE, _UCS2_SEGMENT
    else:
        units, alone, segment = len(text) + sum(mark in _EXTENSION for mark in text), _GSM_ALONE, _GSM_SEGMENT
    return SmsLength(ucs2=ucs2, units=units, segments=1 if units <= alone else -(-units // segment))
