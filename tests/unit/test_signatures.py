"""Signed requests of vendors, and how many of them may come."""

from __future__ import annotations

import hashlib
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vending.key_custody import open_api_secret, seal_api_secret
from vending.rate_limits import RateLimit, full_bucket
from vending.roles import SCOPES_OF, BadScope, Role, Scope, narrow, scopes_of
from vending.security import SealBroken
from vending.signatures import SignatureFault, digest_request, judge_request, sign_request, signed_by

NOW_S = 1_795_000_000
REQUEST = {"method": "POST", "path": "/v1/vends?x=%20", "body": b'{"a": 1}'}
SECRET = "s" * 43
HEADERS = sign_request(key_id="k1", secret=SECRET, at_s=NOW_S, nonce="n" * 16, **REQUEST)  # type: ignore[arg-type]
MASTER = bytes(range(32))


def test_signature_is_the_documented_one_beside_the_key_id() -> None:
    """Six lines under the secret as it is printed; the key is named in a header of its own."""
    lines = f"v1\n{NOW_S}\n{'n' * 16}\nPOST\n/v1/vends?x=%20\n{hashlib.sha256(REQUEST['body']).hexdigest()}"  # type: ignore[arg-type]
    expected = hmac.new(SECRET.encode(), lines.encode(), hashlib.sha256).hexdigest()
    assert HEADERS["X-Prepaid-Signature"] == f"v1={expected}"
    by = signed_by(HEADERS)
    assert by is not None
    assert (by.key_id, by.nonce) == ("k1", "n" * 16)
    assert judge_request(HEADERS, secret=SECRET.encode(), now_s=NOW_S, **REQUEST) is None  # type: ignore[arg-type]


@pytest.mark.parametrize("key_id", ["", "k 1", "k" * 65, "\u00e9", None])
def test_key_id_of_another_form_is_nobody(key_id: str | None) -> None:
    """What cannot be a key id is not looked for."""
    headers = dict(HEADERS)
    del headers["X-Prepaid-Key"]
    assert signed_by(headers if key_id is None else headers | {"X-Prepaid-Key": key_id}) is None


@pytest.mark.parametrize("part", ["method", "path", "body"])
def test_signature_of_another_request_is_wrong(part: str) -> None:
    """No part of a request can be another one."""
    other = REQUEST | {part: b"{}" if part == "body" else "/PUT"}
    judged = judge_request(HEADERS, secret=SECRET.encode(), now_s=NOW_S, **other)  # type: ignore[arg-type]
    assert judged is SignatureFault.WRONG


def test_digest_of_a_request_is_told_by_nobody_without_the_key() -> None:
    """The trail's digest depends on the key and on every part of the request."""
    digests = {
        digest_request(key, method=method, path=path, body=body)
        for key in (b"k", b"l")
        for method in ("GET", "PUT")
        for path in ("/a", "/b\udcff")
        for body in (b"", b"x")
    }
    assert len(digests) == 16


def test_sealed_secret_opens_as_its_own_keys_only() -> None:
    """A row that is moved to another key id, or another master key, opens nothing."""
    sealed = seal_api_secret(MASTER, "k1", SECRET.encode())
    assert SECRET.encode() not in sealed
    assert open_api_secret(MASTER, "k1", sealed) == SECRET.encode()
    for master, key_id, bytes_ in ((MASTER, "k2", sealed), (bytes(32), "k1", sealed), (MASTER, "k1", sealed[:20])):
        with pytest.raises(SealBroken):
            open_api_secret(master, key_id, bytes_)


@given(
    steps=st.lists(st.integers(min_value=0, max_value=5_000), min_size=1, max_size=200),
    per_s=st.integers(min_value=1, max_value=50),
    burst=st.integers(min_value=1, max_value=20),
)
def test_bucket_lets_through_its_rate_and_burst_and_no_more(steps: list[int], per_s: int, burst: int) -> None:
    """Over any span at most burst + rate x span pass; whoever waits as told is let through."""
    limit = RateLimit(per_s=per_s, burst=burst)
    bucket, now_ms, passed = full_bucket(limit, 0), 0, 0
    for step_ms in steps:
        now_ms += step_ms
        wait_ms = bucket.take(limit, now_ms)
        passed += wait_ms == 0
        assert passed * 1_000 <= burst * 1_000 + per_s * now_ms
        if wait_ms:
            now_ms += wait_ms
            assert bucket.take(limit, now_ms) == 0
            passed += 1


def test_roles_have_their_scopes_and_a_key_may_have_fewer() -> None:
    """No role but a vendor's sells, none but an auditor reads the trail; a key is narrowed within its role."""
    assert {role for role in Role if Scope.SELL in SCOPES_OF[role]} == {Role.VENDOR, Role.SUPERVISOR}
    assert {role for role in Role if Scope.READ_TRAIL in SCOPES_OF[role]} == {Role.AUDITOR}
    assert {role for role in Role if Scope.DEPOSIT in SCOPES_OF[role]} == {Role.CASHIER}
    assert {role for role in Role if Scope.CANCEL in SCOPES_OF[role]} == {Role.SUPERVISOR}
    assert set(SCOPES_OF) == set(Role)
    assert scopes_of(Role.VENDOR, None) == SCOPES_OF[Role.VENDOR]
    assert narrow(Role.VENDOR, ["read_own"]) == {Scope.READ_OWN}
    # What a role has lost since is no longer in its keys.
    assert scopes_of(Role.VENDOR, ["read_own", "deposit"]) == {Scope.READ_OWN}
    for asked in ([], ["deposit"], ["read_own", "nothing"]):
        with pytest.raises(BadScope):
            narrow(Role.VENDOR, asked)
