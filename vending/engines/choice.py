"""Which engine makes a meter's tokens: the one its record names, whoever sells.

Stage: between the record and the sale. Never: a choice by station, channel or setting.
"""

from __future__ import annotations

from typing import assert_never

from vending.engines.paygo import PaygoEngine
from vending.engines.port import TokenEngine
from vending.engines.records import MeterRecord, PaygoFacts, StsFacts
from vending.engines.sts import StsEngine
from vending.security import SecurityModule


def engine_of(meter: MeterRecord, module: SecurityModule) -> TokenEngine:
    """Return the engine of a meter's record, working with an installation's security module."""
    match meter.facts:
        case StsFacts():
            return StsEngine(module)
        case PaygoFacts():
            return PaygoEngine(module)
        case _:
            assert_never(meter.facts)
