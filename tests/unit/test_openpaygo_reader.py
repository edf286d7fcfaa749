"""The simulated pay-as-you-go device: what it takes, once, in which order, and how it slows a guesser."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meter_sim.openpaygo_reader import (
    COUNTS_AHEAD_DEVICE_CODE,
    COUNTS_OLDER_DEVICE_CODE,
    DAY_MS,
    OpenPaygoReader,
    PaygoEntry,
    PaygoMemory,
    PaygoResult,
)
from vending.openpaygo.devices import PaygoDevice
from vending.openpaygo.tokens import PaygoKind, PaygoToken, decode_token, encode_token, next_count

VECTORS = [
    vector
    for line in (Path(__file__).parents[1] / "vectors" / "openpaygo.jsonl").read_text().splitlines()
    if (vector := json.loads(line))["algorithm"] == "OpenPAYGO token"
]
PUBLISHED = [vector for vector in VECTORS if "test_tokens" in vector["origin"]]
QUICK_TEST = [vector for vector in VECTORS if "quick test" in vector["origin"]]
# Origin: EnAccess/OpenPAYGO-python test/test_tokens.jsonl, a published test device.
KEY = bytes.fromhex("bc41ec9530f6dac86b1a29ab82edc5fb")
DEVICE = PaygoDevice(serial="TEST220000001", starting_code=516959010)
NOW_MS = 1_000 * DAY_MS
MINUTE_MS = 60_000
ADD, SET = PaygoKind.ADD_TIME, PaygoKind.SET_TIME
DISABLE, SYNC = PaygoKind.DISABLE_PAYG, PaygoKind.COUNTER_SYNC


class Server:
    """The other side: makes tokens of one device and keeps its count."""

    def __init__(self, count: int = 1) -> None:
        self.count = count

    def token(self, kind: PaygoKind, value: int | None = None, *, skip: int = 0) -> PaygoToken:
        self.count = next_count(self.count + skip, kind)
        return encode_token(KEY, DEVICE, kind=kind, value=value, count=self.count)


def device(**settings_: Any) -> OpenPaygoReader:
    return OpenPaygoReader(KEY, DEVICE.starting_code, **settings_)


def enter(reader: OpenPaygoReader, token: PaygoToken, now_ms: int = NOW_MS) -> PaygoEntry:
    return reader.enter(token.digits, now_ms)


def days_left(reader: OpenPaygoReader, now_ms: int = NOW_MS) -> int | None:
    left_ms = reader.time_left_ms(now_ms)
    return None if left_ms is None else left_ms // DAY_MS


@pytest.mark.parametrize("vector", PUBLISHED, ids=lambda each: each["expected"]["token"])
def test_published_token_is_taken_once_and_only_once(vector: dict[str, Any]) -> None:
    """Each published token does its work on a device at the count told, and is a used one after it."""
    inputs = vector["inputs"]
    reader = OpenPaygoReader(
        bytes.fromhex(inputs["key"]),
        inputs["starting_code"],
        four_keys=inputs["restricted_digits"],
        extended=inputs["extended"],
        memory=PaygoMemory.of_factory(inputs["last_count"]),
    )
    token, value = vector["expected"]["token"], inputs["value"]
    entry = reader.enter(token, NOW_MS)
    assert (entry.result, entry.count) == (PaygoResult.ACCEPTED, vector["expected"]["count"])
    expected_days = {"disable_payg": None, "counter_sync": 0}.get(inputs["kind"], value)
    assert days_left(reader) == expected_days
    assert reader.enter(token, NOW_MS).result is PaygoResult.USED


def test_quick_test_of_the_specification_goes_as_told() -> None:
    """The eight steps by which a maker tries a new device."""
    inputs = QUICK_TEST[0]["inputs"]
    reader = OpenPaygoReader(
        bytes.fromhex(inputs["key"]), inputs["starting_code"], memory=PaygoMemory.of_factory(inputs["last_count"])
    )
    assert reader.enter("123456789", NOW_MS).result is PaygoResult.INVALID
    now_ms = NOW_MS + MINUTE_MS
    days = []
    for vector in QUICK_TEST:
        assert reader.enter(vector["expected"]["token"], now_ms).accepted
        assert reader.enter(vector["expected"]["token"], now_ms).result is PaygoResult.USED
        days.append(days_left(reader, now_ms))
    assert days == [1, 30, 7, None, 0]
    assert not reader.is_active(now_ms)


def test_core_procedure_of_the_specification_goes_as_told() -> None:
    """Set, add, repeat, set anew, switch off, add up, jump by 30 counts, end PAYG and lock again."""
    server, reader = Server(), device()
    first, second = server.token(SET, 1), server.token(ADD, 1)
    assert [(enter(reader, each).accepted, days_left(reader)) for each in (first, second)] == [(True, 1), (True, 2)]
    assert [enter(reader, each).result for each in (second, first)] == [PaygoResult.USED, PaygoResult.USED]
    assert days_left(reader) == 2
    for value in (30, 0):
        assert enter(reader, server.token(SET, value)).accepted
        assert days_left(reader) == value
    for times in (1, 2, 3):
        assert enter(reader, server.token(ADD, 995)).accepted
        assert days_left(reader) == 995 * times
    server.token(SET, 0)
    for value in range(1, 22):
        token = server.token(SET, value, skip=28 if value > 1 else 0)
        assert enter(reader, token).accepted
        assert days_left(reader) == value
    assert enter(reader, server.token(DISABLE)).accepted
    assert (days_left(reader), reader.is_active(NOW_MS + 9_000 * DAY_MS)) == (None, True)
    # Added time does not lock a device that is paid off; set time does.
    assert enter(reader, server.token(ADD, 0)).accepted
    assert days_left(reader) is None
    assert enter(reader, server.token(SET, 0)).accepted
    assert days_left(reader) == 0
    # Days without supply are not made up for.
    late_ms = NOW_MS + 2 * DAY_MS
    assert enter(reader, server.token(ADD, 1), late_ms).accepted
    assert days_left(reader, late_ms) == 1


def test_unordered_procedure_of_the_specification_goes_as_told() -> None:
    """Unused tokens to add time are taken late, but never after a token that sets time or ends PAYG."""
    server, reader = Server(), device()
    enter(reader, server.token(SET, 60))
    ten, five, one = (server.token(ADD, days) for days in (10, 5, 1))
    assert [enter(reader, each).accepted and days_left(reader) for each in (one, ten, five)] == [61, 71, 76]
    old, fresh, newer = server.token(ADD, 5), server.token(SET, 10), server.token(ADD, 3)
    results = [(enter(reader, each).result, days_left(reader)) for each in (fresh, old, newer)]
    assert results == [(PaygoResult.ACCEPTED, 10), (PaygoResult.USED, 10), (PaygoResult.ACCEPTED, 13)]
    old, end = server.token(ADD, 1), server.token(DISABLE)
    assert [enter(reader, each).result for each in (end, old)] == [PaygoResult.ACCEPTED, PaygoResult.USED]


def test_older_tokens_are_taken_within_the_devices_own_reach() -> None:
    """Nine tokens, the last one first: one sixteen counts older is refused, those in between are taken."""
    server, reader = Server(), device(counts_older=COUNTS_OLDER_DEVICE_CODE)
    tokens = [server.token(ADD, 1) for _ in range(9)]
    assert enter(reader, tokens[8]).accepted
    assert enter(reader, tokens[0]).result is PaygoResult.USED
    assert [enter(reader, tokens[at]).accepted for at in (4, 3, 2, 1)] == [True] * 4
    assert days_left(reader) == 5


@pytest.mark.parametrize(("ahead", "settings_"), [(30, {}), (64, {"counts_ahead": COUNTS_AHEAD_DEVICE_CODE})])
def test_token_beyond_the_reach_ahead_is_refused_and_one_at_it_taken(ahead: int, settings_: dict[str, int]) -> None:
    """A server that runs away from its device is not followed further than this."""
    for beyond, result in ((2, PaygoResult.INVALID), (0, PaygoResult.ACCEPTED)):
        reader = device(memory=PaygoMemory.of_factory(2), **settings_)
        token = encode_token(KEY, DEVICE, kind=ADD, value=1, count=2 + ahead + beyond)
        assert enter(reader, token).result is result


def test_counter_synchronisation_brings_a_lost_device_back_once() -> None:
    """Up to 100 counts ahead or less than 30 behind; what was sold before it is then worth nothing; once only."""
    server, reader = Server(), device()
    unused, lost = server.token(ADD, 7), server.token(ADD, 5, skip=68)
    assert enter(reader, lost).result is PaygoResult.INVALID
    now_ms = NOW_MS + MINUTE_MS
    sync = server.token(SYNC)
    assert enter(reader, sync, now_ms).accepted
    assert [enter(reader, each, now_ms).result for each in (sync, unused, lost)] == [PaygoResult.USED] * 3
    assert enter(reader, server.token(ADD, 3), now_ms).accepted
    assert days_left(reader, now_ms) == 3
    # The server has lost its count and stands below the device.
    behind = Server(count=server.count - 20)
    back = behind.token(SYNC)
    assert enter(reader, back, now_ms).accepted
    assert enter(reader, behind.token(ADD, 2), now_ms).accepted
    assert (days_left(reader, now_ms), enter(reader, back, now_ms).result) == (5, PaygoResult.USED)
    too_far = encode_token(KEY, DEVICE, kind=SYNC, value=None, count=reader.memory.count - 31)
    assert enter(reader, too_far, now_ms).result is PaygoResult.USED


def test_reserved_value_does_nothing_and_is_not_held_against_the_user() -> None:
    """996 and 997 wait for their meaning; such a token changes neither count, time nor waiting."""
    ahead = PaygoDevice(serial="V1", starting_code=DEVICE.starting_code + 1)
    token = encode_token(KEY, ahead, kind=ADD, value=995, count=2)
    reader = device()
    assert enter(reader, token).result is PaygoResult.RESERVED
    assert reader.memory == PaygoMemory()


def test_wrong_entries_wait_one_minute_doubling_to_512_through_a_power_cut() -> None:
    """A guesser waits ever longer, also after pulling the plug; a right token ends it, a used one does not."""
    server, reader, now_ms = Server(), device(), NOW_MS
    used = server.token(ADD, 1)
    assert enter(reader, used, now_ms).accepted
    waits = []
    for _ in range(12):
        assert reader.enter("123456789", now_ms).result is PaygoResult.INVALID
        reader = device(memory=reader.memory)
        until_ms = reader.press("*", now_ms)
        assert until_ms is not None
        assert until_ms.wait_until_ms is not None
        assert enter(reader, server.token(ADD, 1), until_ms.wait_until_ms - 1).result is PaygoResult.WAITING
        waits.append((until_ms.wait_until_ms - now_ms) // MINUTE_MS)
        now_ms = until_ms.wait_until_ms
        assert enter(reader, used, now_ms).result is PaygoResult.USED
    assert waits == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 512, 512]
    assert enter(reader, server.token(ADD, 1), now_ms).accepted
    assert reader.memory.wrong_entries == 0


def test_keypad_begins_with_a_star_and_answers_at_the_last_digit() -> None:
    """Keys before a star do nothing, a second star begins anew, and a keypad of four has no 5."""
    token = Server().token(ADD, 7)
    reader = device()
    assert [reader.press(each, NOW_MS) for each in "588*12*"] == [None] * 7
    *early, last = [reader.press(each, NOW_MS) for each in token.digits]
    assert early == [None] * 8
    assert last == PaygoEntry(result=PaygoResult.ACCEPTED, count=2, value=7)
    four = OpenPaygoReader(KEY, DEVICE.starting_code, four_keys=True)
    for key in "*5906" + "314114432231134":
        answer = four.press(key, NOW_MS)
    assert answer == PaygoEntry(result=PaygoResult.ACCEPTED, count=2, value=1)


@pytest.mark.parametrize(
    ("divider", "value", "expected_ms"), [(1, 3, 3 * DAY_MS), (4, 22, 475_200_000), (255, 1, 338_824)]
)
def test_value_counts_parts_of_a_day(divider: int, value: int, expected_ms: int) -> None:
    """22 quarters are five days and a half; a part that is not whole milliseconds is rounded up."""
    reader = device(time_divider=divider)
    enter(reader, Server().token(ADD, value))
    assert reader.time_left_ms(NOW_MS) == expected_ms


@settings(deadline=None, max_examples=60)
@given(
    sold=st.lists(st.sampled_from([ADD, ADD, ADD, SET, DISABLE]), min_size=1, max_size=12),
    typed=st.lists(st.integers(0, 11), max_size=30),
)
def test_tokens_typed_in_any_order_are_taken_by_the_rule_and_never_twice(
    sold: list[PaygoKind], typed: list[int]
) -> None:
    """A newer token is taken; an older one if it adds time, is unused, near, and nothing that sets was taken since."""
    server, reader = Server(), device()
    tokens = [server.token(kind, 1 if kind.carries_time else None) for kind in sold]
    taken: list[PaygoToken] = []
    for at in typed:
        token = tokens[at % len(tokens)]
        highest = max((each.count for each in taken), default=1)
        last_set = max((each.count for each in taken if each.kind is not ADD), default=1)
        may = token.count > highest or (
            token.kind is ADD and token not in taken and last_set < token.count and highest - token.count < 10
        )
        entry = enter(reader, token)
        assert entry.result is (PaygoResult.ACCEPTED if may else PaygoResult.USED)
        taken += [token] if may else []
        reader = device(memory=reader.memory)
    assert len({token.count for token in taken}) == len(taken)


@settings(deadline=None, max_examples=60)
@given(
    key=st.binary(min_size=16, max_size=16),
    starting_code=st.integers(0, 999_999_999),
    four_keys=st.booleans(),
    extended=st.booleans(),
    entries=st.lists(st.text("0123456789*#a٣", max_size=21), max_size=4),
)
def test_any_entry_is_answered(
    key: bytes, starting_code: int, four_keys: bool, extended: bool, entries: list[str]
) -> None:
    """Whatever is typed, the device answers and goes on."""
    reader = OpenPaygoReader(key, starting_code, four_keys=four_keys, extended=extended)
    for at, digits in enumerate(entries):
        assert isinstance(reader.enter(digits, NOW_MS + at * DAY_MS), PaygoEntry)
        for each in digits:
            reader.press(each, NOW_MS + at * DAY_MS)


@settings(deadline=None, max_examples=80)
@given(
    key=st.binary(min_size=16, max_size=16),
    starting_code=st.integers(0, 999_999_999),
    four_keys=st.booleans(),
    extended=st.booleans(),
    kind=st.sampled_from(PaygoKind),
    value=st.integers(0, 995),
    last=st.integers(1, 60),
    skip=st.integers(0, 25),
)
def test_device_reads_what_the_engine_makes(
    key: bytes,
    starting_code: int,
    four_keys: bool,
    extended: bool,
    kind: PaygoKind,
    value: int,
    last: int,
    skip: int,
) -> None:
    """Two implementations of one specification agree on every key, form, kind, value and count."""
    record = PaygoDevice(serial="D1", starting_code=starting_code, restricted_digits=four_keys, extended=extended)
    carried = value if kind.carries_time else None
    token = encode_token(key, record, kind=kind, value=carried, count=next_count(last + skip, kind))
    reader = OpenPaygoReader(
        key, starting_code, four_keys=four_keys, extended=extended, memory=PaygoMemory.of_factory(last)
    )
    entry = reader.enter(token.digits, NOW_MS)
    # Once in a million the hash of a lower count ends in the same digits; then both see that one.
    seen = decode_token(key, record, token.digits, counts=range(last + 1, token.count + 1))
    assert (entry.result, entry.count) == (PaygoResult.ACCEPTED, seen.count)
    assert entry.value == {DISABLE: 998, SYNC: 999}.get(kind, value)
