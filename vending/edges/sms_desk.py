"""Questions by SMS: from a message that a gateway hands over to the notice that answers it.

Stage: between the route and the database, one transaction a message. The gateway's id is stored for ever, so that a
message is answered once however often it comes. Whoever holds a number is trusted as far as its contact is proven:
balance and use go to every number in the books, a whole token only to a proven one, nothing to strangers. Balances are
those of every other answer (`db.accounts.look`). Never: a text, a number or a token in a log.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from enum import StrEnum
from typing import assert_never

from psycopg import AsyncConnection

from billing.calendar import LocalCalendar, from_ms, period_of, to_ms
from billing.notices import (
    BalanceAnswer,
    Facts,
    HelpAnswer,
    Language,
    NoToken,
    Started,
    Stopped,
    TokenResend,
    UseAnswer,
    WhichAccount,
)
from billing.notices.addresses import BadAddress, read_phone
from billing.notices.facts import mask_token
from billing.notices.inbound import Inbound, read_inbound, word_of
from billing.notices.templates import Command
from billing.prepayment import recharge_to_keep
from billing.rating import total
from billing.supply import Mode, restores_with_minor
from db.accounts import AccountView, look, points_around
from db.balances import days_left, read_use
from db.contacts import (
    AccountOfNumber,
    accounts_of_number,
    add_inbound,
    count_inbound_answers,
    find_inbound,
    last_token,
    stop_number,
)
from db.notices import write_answer
from db.prepayment import prepayment_of
from db.reports import bills
from vending.coupon_pins import CouponKeys
from vending.edges.answers import day_use, money_day, supply_state
from vending.edges.contact_errors import AddressRefused
from vending.edges.coupon_sms import redeem_by_sms
from vending.edges.store import Desk
from vending.sts.tokens import TokenNumber
from vending.vends import MessageIdReused

# A family that asks every hour of its day is answered; a loop of two machines is not for long.
ANSWERS_PER_DAY_MAX = 20
_DAY_MS = 86_400_000


class Outcome(StrEnum):
    """What became of a message."""

    ANSWERED = "answered"
    UNKNOWN_NUMBER = "unknown_number"
    TOO_MANY = "too_many"


@dataclass(frozen=True, slots=True, kw_only=True)
class InboundMessage:
    """A message as the gateway hands it over."""

    message_id: str
    sender: str
    text: str

    @property
    def digest(self) -> bytes:
        """What tells the same message from another under its id."""
        return hashlib.sha256(f"{self.sender}\0{self.text}".encode()).digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    """What a message is answered, about which account; None facts for no answer."""

    outcome: Outcome
    about: AccountOfNumber | None = None
    facts: Facts | None = None


async def answer_message(
    conn: AsyncConnection, desk: Desk, message: InboundMessage, keys: CouponKeys | None = None
) -> Outcome:
    """Answer a message once; the same one again gets its stored outcome and no second answer.

    Without `keys` no coupons are redeemed.

    Raises: MessageIdReused for another message under the id; AddressRefused for a sender that is no number.
    """
    try:
        sender = read_phone(message.sender)
    except BadAddress as error:
        raise AddressRefused(str(error)) from None
    now_ms = desk.clock()
    async with conn.transaction():
        asked = read_inbound(message.text)
        digest = message.digest if asked.command is not Command.REDEEM else _keyed(message, keys)
        stored = await find_inbound(conn, message.message_id)
        if stored is not None:
            if stored[0] != digest:
                raise MessageIdReused(f"message_id {message.message_id}: expected the message it was first used with")
            return Outcome(stored[1])
        answer = await _answer(conn, desk, keys, sender, asked, now_ms)
        notice_id = None
        if answer.about is not None and answer.facts is not None:
            notice_id = await write_answer(
                conn,
                answer.about.account_id,
                answer.facts,
                contact_id=answer.about.contact_id,
                language=asked.language,
            )
        await add_inbound(
            conn,
            message_id=message.message_id,
            digest=digest,
            sender=sender,
            command=None if asked.command is None else asked.command.value,
            outcome=answer.outcome.value,
            account_id=None if answer.about is None else answer.about.account_id,
            notice_id=notice_id,
            now_ms=now_ms,
        )
    return answer.outcome


def _keyed(message: InboundMessage, keys: CouponKeys | None) -> bytes:
    """Return a digest of a message with a PIN in it, which nobody can try PINs against."""
    return message.digest if keys is None else hmac.digest(keys.pin_key, b"sms|" + message.digest, "sha256")


async def _answer(
    conn: AsyncConnection, desk: Desk, keys: CouponKeys | None, sender: str, asked: Inbound, now_ms: int
) -> _Answer:
    known = await accounts_of_number(conn, sender)
    if asked.command in (Command.STOP, Command.START):
        await stop_number(conn, sender, stop=asked.command is Command.STOP, now_ms=now_ms)
    if not known:
        return _Answer(outcome=Outcome.UNKNOWN_NUMBER)
    if await count_inbound_answers(conn, sender, since_ms=now_ms - _DAY_MS) >= ANSWERS_PER_DAY_MAX:
        return _Answer(outcome=Outcome.TOO_MANY)
    about = next((each for each in known if each.number.casefold() == asked.account), None)
    if about is None and len(known) > 1 and asked.command in (Command.BALANCE, Command.USE, Command.TOKEN):
        language = asked.language or Language(known[0].language)
        word = word_of(asked.command, language if asked.language else Language.ENGLISH)
        return _Answer(outcome=Outcome.ANSWERED, about=known[0], facts=WhichAccount(command=word))
    about = about or known[0]
    if asked.command is Command.REDEEM:
        facts = HelpAnswer() if keys is None else await redeem_by_sms(conn, desk, keys, sender, asked.rest, known)
        return _Answer(outcome=Outcome.ANSWERED, about=about, facts=facts)
    facts = await _facts(conn, desk.rules.calendar, asked, about, now_ms)
    return _Answer(outcome=Outcome.ANSWERED, about=about, facts=facts)


async def _facts(
    conn: AsyncConnection, calendar: LocalCalendar, asked: Inbound, about: AccountOfNumber, now_ms: int
) -> Facts:
    match asked.command:
        case None | Command.REDEEM:
            return HelpAnswer()
        case Command.STOP:
            return Stopped()
        case Command.START:
            return Started()
        case Command.TOKEN:
            return await _token_facts(conn, about)
        case Command.BALANCE | Command.USE:
            views = await look(conn, [about.account_id], calendar)
            if about.account_id not in views:
                # No meter stands there, so that there is nothing to tell.
                return HelpAnswer()
            view = views[about.account_id]
            if asked.command is Command.USE:
                return await _use_facts(conn, view, calendar)
            return await _balance_facts(conn, view, calendar, now_ms)
        case _:
            assert_never(asked.command)


async def _balance_facts(
    conn: AsyncConnection, view: AccountView, calendar: LocalCalendar, now_ms: int
) -> BalanceAnswer:
    balance_minor = view.balance_minor(calendar)
    prepayment = await prepayment_of(conn, view.id, calendar.day_of(now_ms))
    needed_minor = restores_with_minor(view.levels, balance_minor)
    left = None
    if view.levels.mode is Mode.PREPAID:
        left = days_left(balance_minor, view.levels.cut_at_minor, await read_use(conn, view.id))
    return BalanceAnswer(
        balance_minor=balance_minor,
        at_ms=max(view.points[-1].at_ms, calendar.midnight_ms(view.checkpoint.through)),
        supply=supply_state(view),
        days_left=left,
        restores_minor=recharge_to_keep(needed_minor, prepayment.arrears_minor, prepayment.rules) or None,
    )


async def _use_facts(conn: AsyncConnection, view: AccountView, calendar: LocalCalendar) -> UseAnswer:
    midnight = from_ms(calendar.midnight_ms(money_day(view, calendar)))
    use = day_use(view, await points_around(conn, view.meter, [midnight]), calendar)
    month = (await bills(conn, [view], calendar))[view.id].get(period_of(use.day))
    return UseAnswer(
        day=use.day,
        day_energy_wh=use.energy_wh,
        day_charge_minor=use.charge_minor,
        month_energy_wh=month.energy_wh if month else 0,
        month_charge_minor=total(month.lines) if month else 0,
    )


async def _token_facts(conn: AsyncConnection, about: AccountOfNumber) -> Facts:
    found = await last_token(conn, about.account_id)
    if found is None:
        return NoToken()
    digits, amount_minor, at = found
    grouped = TokenNumber(digits).grouped
    return TokenResend(
        token=grouped if about.verified else mask_token(grouped), amount_minor=amount_minor, at_ms=to_ms(at)
    )
