"""Orders to a meter by their names: what an engineer asks for in words, as its engine takes it.

Stage: between an interface or command and an engine. Limits are given in watts and coded as the token holds them.

Standard: IEC 62055-41, class 2; OpenPAYGO Token for devices.
"""

from __future__ import annotations

from vending.engines.port import ManagementOrder, PaygoCommand, StsManagement
from vending.engines.records import Capability
from vending.openpaygo.tokens import PaygoKind
from vending.security import ExtendedSet
from vending.sts.amounts import encode_unit_amount
from vending.sts.management import REGISTER_ALL, ManagementKind
from vending.vends import MalformedRequest

_REGISTERS_MAX = 7
_VALUE_MAX = (1 << 16) - 1
_STS: dict[Capability, ManagementKind | ExtendedSet] = {
    Capability.POWER_LIMIT: ManagementKind.SET_POWER_LIMIT,
    Capability.CLEAR_CREDIT: ManagementKind.CLEAR_CREDIT,
    Capability.TARIFF_RATE: ManagementKind.SET_TARIFF_RATE,
    Capability.CLEAR_TAMPER: ManagementKind.CLEAR_TAMPER,
    Capability.UNBALANCE_LIMIT: ManagementKind.SET_UNBALANCE_LIMIT,
    Capability.WATER_FACTOR: ManagementKind.SET_WATER_FACTOR,
    Capability.EXTENDED_SET: ExtendedSet.EXTENDED_SET,
}
_PAYGO = {
    Capability.SET_TIME: PaygoKind.SET_TIME,
    Capability.DISABLE_PAYG: PaygoKind.DISABLE_PAYG,
    Capability.COUNTER_SYNC: PaygoKind.COUNTER_SYNC,
}


def read_order(name: str, value: int) -> ManagementOrder:
    """Read an order by the name of the capability that takes it.

    Units: `value` in W for the two limits, a register (0-7 or 65535 for all) for clear credit, parts of a day for
    setting time; nothing for clear tamper, end of pay-as-you-go and the count.
    Raises: MalformedRequest.
    """
    known = {each.value: each for each in (*_STS, *_PAYGO)}
    capability = known.get(name)
    if capability is None:
        raise MalformedRequest(f"kind: expected one of {', '.join(sorted(known))}, got {name[:40]!r}")
    if capability in _PAYGO:
        kind = _PAYGO[capability]
        return PaygoCommand(kind=kind, value=value if kind.carries_time else None)
    return StsManagement(kind=_STS[capability], value16=_value16(capability, value))


def _value16(capability: Capability, value: int) -> int:
    if capability is Capability.CLEAR_TAMPER:
        return 0
    if capability is Capability.CLEAR_CREDIT and not (0 <= value <= _REGISTERS_MAX or value == REGISTER_ALL):
        raise MalformedRequest(f"register: expected 0 to {_REGISTERS_MAX}, or {REGISTER_ALL} for all, got {value}")
    if capability in (Capability.POWER_LIMIT, Capability.UNBALANCE_LIMIT):
        return encode_unit_amount(value)
    if not 0 <= value <= _VALUE_MAX:
        raise MalformedRequest(f"value: expected 0 to {_VALUE_MAX}, got {value}")
    return value
