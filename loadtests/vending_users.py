"""Stations of a city for locust: they buy, ask again, reprint, mistype, try, and redeem coupons, each request signed.

    STATION_KEY='<key id>.<secret>' STATION_METERS=serials.txt locust -f loadtests/vending_users.py \\
        --host http://127.0.0.1:8080 --headless --users 50 --spawn-rate 10 --run-time 60s

Stage: outside the product, at its vending interface. Meters are serials, one a line. With `STATION_COUPONS`, the print
file of `prepaid coupons issue`, coupons that were sold are redeemed, too. The run ends with status 1 when a limit below
is passed: an answer that may not be, too many failures, too slow.
"""

from __future__ import annotations

import csv
import json
import os
import random
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from locust import FastHttpUser, between, events, task
from locust.env import Environment

from vending.signatures import sign_request

# Limits of a run. A wrong meter and a used coupon are answers and no failures.
P99_MS_MAX: Final = 1_000
FAILURE_SHARE_MAX: Final = 0.001
# A till that hears nothing asks again under the same message id; the tenth try in vain is a failure.
TRIES_MAX: Final = 10
AMOUNTS: Final = ("100.00", "200.00", "500.00", "1000.00")
TENDERS: Final = ("cash", "upi", "card")
# What a sale may be answered by rules, whatever the station does.
REFUSED: Final = (402, 404, 409, 422)
BUSY: Final = (0, 429, 503)

Body = Mapping[str, object]


def _lines(variable: str) -> list[str]:
    path = os.environ.get(variable)
    return [line for line in Path(path).read_text(encoding="utf-8").split() if line] if path else []


def _coupons() -> list[str]:
    path = os.environ.get("STATION_COUPONS")
    if not path:
        return []
    with Path(path).open(encoding="utf-8", newline="") as lines:
        return [row["pin"] for row in csv.DictReader(lines)]


KEY_ID, _, SECRET = os.environ.get("STATION_KEY", "").partition(".")
METERS: Final = _lines("STATION_METERS") or ["PB000123"]
COUPONS: Final = _coupons()


class Station(FastHttpUser):
    """One terminal of a vendor, with a queue before it."""

    wait_time = between(0.5, 2.0)

    def on_start(self) -> None:
        """Give the terminal a name of its own; its message ids begin with it."""
        self.terminal = f"L{secrets.token_hex(4)}"
        self.sold: list[dict[str, Any]] = []
        self.rng = random.Random(self.terminal)

    @task(20)
    def buy(self) -> None:
        """Sell a recharge, asking again under the same id until there is an answer."""
        body = self._order()
        answer = self._ask("/v1/vends", body, name="buy")
        if answer is not None:
            self.sold = [*self.sold[-20:], {"body": body, "answer": answer}]

    @task(4)
    def ask_again(self) -> None:
        """Send a sale again as after a lost answer: it must be answered the same, to the byte."""
        if self.sold:
            sale = self.rng.choice(self.sold)
            self._ask("/v1/vends", sale["body"], name="buy again", same_as=sale["answer"])

    @task(2)
    def reprint(self) -> None:
        """Find a sale again by its message id."""
        if self.sold:
            sale = self.rng.choice(self.sold)
            asked = {"message_id": sale["body"]["message_id"]}
            self._ask("/v1/reprints", asked, name="reprint", same_as=sale["answer"])

    @task(2)
    def mistype(self) -> None:
        """Ask for a meter that does not exist: a refusal, which is an answer."""
        self._ask("/v1/vends", {**self._order(), "meter": "NO-SUCH-METER"}, name="wrong meter", expected=404)

    @task(4)
    def try_out(self) -> None:
        """Show the consumer what a sale would be."""
        self._ask("/v1/trial-vends", self._order(), name="trial")

    @task(2)
    def redeem(self) -> None:
        """Redeem a coupon, twice: the second time is answered as the first."""
        if COUPONS:
            body = {"pin": COUPONS.pop(), "meter": self.rng.choice(METERS)}
            answer = self._ask("/v1/coupons/redeem", body, name="coupon")
            if answer is not None:
                self._ask("/v1/coupons/redeem", body, name="coupon again", same_as=answer)

    def _order(self) -> dict[str, object]:
        return {
            "message_id": f"{self.terminal}-{time.time_ns()}",
            "meter": self.rng.choice(METERS),
            "amount": self.rng.choice(AMOUNTS),
            "tender": self.rng.choice(TENDERS),
            "terminal": self.terminal,
        }

    def _ask(
        self, path: str, body: Body, *, name: str, expected: int | None = None, same_as: bytes | None = None
    ) -> bytes | None:
        """Send until there is an answer; return one of status 200. Whatever may not be is a failure of the run."""
        raw = json.dumps(body).encode()
        for number in range(TRIES_MAX):
            headers = {"content-type": "application/json", **_signed(path, raw)}
            with self.client.post(path, data=raw.decode(), headers=headers, name=name, catch_response=True) as response:
                status, content = response.status_code, response.content
                if status in BUSY and number < TRIES_MAX - 1:
                    response.success()
                elif expected is not None or status != 200:
                    fits = status == expected if expected is not None else status in REFUSED
                    _judge(response, fits, f"{name}: {status} {content[:200]!r}")
                    return None
                else:
                    _judge(response, same_as in (None, content), f"{name}: answered otherwise than before")
                    return bytes(content)
            time.sleep(0.1 * 2**number)
        return None


def _judge(response: Any, fits: bool, otherwise: str) -> None:  # locust's response is untyped.
    if fits:
        response.success()
    else:
        response.failure(otherwise)


def _signed(path: str, raw: bytes) -> dict[str, str]:
    at_s, nonce = int(time.time()), secrets.token_hex(16)
    return sign_request(key_id=KEY_ID, secret=SECRET, method="POST", path=path, body=raw, at_s=at_s, nonce=nonce)


@events.quitting.add_listener  # type: ignore[untyped-decorator]  # locust's events are untyped.
def _judge_run(environment: Environment, **_: object) -> None:
    """End with status 1 when a limit was passed."""
    total = environment.stats.total
    slow = total.get_response_time_percentile(0.99) or 0
    passed = total.num_requests > 0 and total.fail_ratio <= FAILURE_SHARE_MAX and slow <= P99_MS_MAX
    environment.process_exit_code = 0 if passed else 1
