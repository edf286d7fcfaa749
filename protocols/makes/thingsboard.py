"""ThingsBoard telemetry: the wrapping of its device and gateway topics taken off.

Stage: below `mapping`, which reads what leaves: rows of the form {"device", "ts", "values"}, `device` and `ts` only
where the payload has them. The device topic never names its device: there the connection's token does, which a
subscriber cannot see.
Source: ThingsBoard documentation, MQTT device API and gateway API, telemetry.
"""

from collections.abc import Iterator

from protocols.errors import Malformed
from protocols.makes.numbers import Json


def telemetry_rows(payload: Json) -> Iterator[dict[str, Json]]:
    """Unwrap `v1/devices/me/telemetry`: flat keys, {"ts", "values"}, or an array of either.

    Raises: Malformed for anything else.
    """
    for row in payload if isinstance(payload, list) else [payload]:
        if not isinstance(row, dict):
            raise Malformed(f"telemetry: expected an object, got {type(row).__name__}")
        values = row.get("values")
        # A flat payload may have a key of the name "ts" or "values" of its own; both together are the wrapping.
        if isinstance(values, dict) and row.keys() <= {"ts", "values"}:
            yield {"values": values, **({"ts": row["ts"]} if "ts" in row else {})}
        else:
            yield {"values": row}


def gateway_rows(payload: Json) -> Iterator[dict[str, Json]]:
    """Unwrap `v1/gateway/telemetry`: rows of several devices under their names.

    Raises: Malformed for anything else.
    """
    if not isinstance(payload, dict):
        raise Malformed(f"gateway telemetry: expected an object by device, got {type(payload).__name__}")
    for device, rows in payload.items():
        if not isinstance(rows, list):
            raise Malformed(f"gateway telemetry: expected an array of rows, got {type(rows).__name__}, device {device}")
        for row in telemetry_rows(rows):
            yield {"device": device, **row}
