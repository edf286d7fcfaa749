"""What was sold: vends, their journals and their tokens, and the records of meters that tokens are made by.

Stage: one pass over vends, one over tokens and one over meters, in id order. A limited audit
reads those of its accounts and their present meters.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from psycopg import AsyncConnection

from db.audit.reading import Audit, first_row, ranges, rows


async def check_vends(conn: AsyncConnection, audit: Audit) -> None:
    """Check that vends, journals, tokens and the records of meters go together."""
    only: dict[str, object] = {"ids": audit.account_ids, "meter_ids": None}
    if audit.account_ids is not None:
        places = await rows(conn, "audit_places_of", {"ids": audit.account_ids})
        only["meter_ids"] = [place["meter_id"] for place in places if place["meter_id"] is not None]
    async for ids in ranges(conn, "audit_next_vends", most=audit.limits.rows):
        parameters = ids.parameters | only
        audit.book.count("I6", (await first_row(conn, "audit_vends", parameters))[0])
        for row in await rows(conn, "audit_broken_vends", parameters):
            journal_id, account_id = row["journal_id"], row["account_id"]
            audit.book.fail("I6", _broken_vend(row), key=row["id"], account_id=account_id, journal_id=journal_id)
    async for ids in ranges(conn, "audit_next_tokens", most=audit.limits.rows):
        parameters = ids.parameters | only
        audit.book.count("I6-tokens", (await first_row(conn, "audit_tokens", parameters))[0])
        for row in await rows(conn, "audit_broken_tokens", parameters):
            audit.book.fail("I6-tokens", _broken_token(row), key=row["id"], account_id=row["account_id"])
    async for ids in ranges(conn, "audit_next_records", most=audit.limits.rows):
        parameters = ids.parameters | only
        audit.book.count("I6-records", (await first_row(conn, "audit_records", parameters))[0])
        for row in await rows(conn, "audit_broken_records", parameters):
            audit.book.fail("I6-records", _broken_record(row), key=row["id"])


def _broken_vend(row: Mapping[str, Any]) -> str:
    who = f"vend {row['id']} (message {row['message_id']}, account {row['number']}, status {row['status']})"
    if row["repeated"]:
        return f"{who}: its message id is used twice by its vendor"
    if row["journal_id"] is not None and row["journal_ok"] is not True:
        return f"{who}: journal {row['journal_id']} is no vend of its account"
    if row["journal_id"] is not None and row["credited_minor"] != row["amount_minor"]:
        return f"{who}: amount {row['amount_minor']} minor, journal {row['journal_id']} credits {row['credited_minor']}"
    if row["journal_id"] is not None and row["reversals"] != (row["state"] == "reversed"):
        return f"{who}: {row['state']}, and {row['reversals']} reversals of its journal {row['journal_id']}"
    if row["reversals"] and row["reversed_minor"] != -row["amount_minor"]:
        return f"{who}: amount {row['amount_minor']} minor, its reversal takes back {-(row['reversed_minor'] or 0)}"
    if row["moved_to"] not in (None, row["state"]):
        return f"{who}: {row['state']}, and its last move was to {row['moved_to']}"
    if row["journal_id"] is not None and row["tokens"] == 1:
        return f"{who}: funding {row['funding']}, and its journal takes from {row['source']}"
    journals = 0 if row["journal_id"] is None else 1
    return f"{who}: {journals} journals and {row['tokens']} tokens"


def _broken_token(row: Mapping[str, Any]) -> str:
    who = f"token {row['id']} of meter {row['serial']}, TID {row['tid']}"
    if row["repeated"]:
        return f"{who}: another token of the meter has the same TID"
    if not row["sold"]:
        return f"{who}: no accepted vend"
    if not row["at_home"]:
        return f"{who}: the vend is of an account that the meter never stood at"
    if not row["recorded"]:
        return f"{who}: no version of the meter's record fits it"
    return f"{who}: the meter's last TID is {row['last_tid']}"


def _broken_record(row: Mapping[str, Any]) -> str:
    who = f"meter {row['serial']}"
    if row["versions"] != row["last"]:
        return f"{who}: {row['versions']} versions up to {row['last']}"
    if row["active"] != 1:
        return f"{who}: no version in force"
    if row["pending"] is not None:
        return f"{who}: version {row['pending']} is pending without key-change tokens"
    return f"{who}: a version does not begin where the one before it ended"
