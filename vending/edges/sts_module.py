"""The client of a hardware security module: the port `SecurityModule` over the messages of STS 600-8-6.

Stage: an edge below the vending desk. Enters: what to mint or to read. Leaves: tokens that the module made and read
back. Never: a key; a token in a log or an error; two requests on the line at once.

The messages carry no number: nothing in an answer says which request it belongs to. Three rules keep a late or
doubled answer from being taken for another's. One request is on the line at a time, and one that finds anything
unread there does not start. After every disturbance the line is opened anew and an echo with a word of its own is
waited for, past whatever still comes. And no token is given out before the module has read it back under the meter's
own number as what was asked for. A register is held against the settings before its first use after every opening:
another module may answer there by now.

A lost answer is asked for again with the same TID: the token that was lost was given to nobody, and the meter takes
one token of a TID.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import TypeVar

import structlog

from vending.edges.sts_module_line import ModuleLine
from vending.openpaygo.devices import PaygoDevice
from vending.openpaygo.tokens import PaygoKind, PaygoToken
from vending.security import (
    CreditKeyTypeRefused,
    ExtendedSet,
    ModuleAbsent,
    ModuleBusy,
    ModuleRefused,
    ModuleTimeout,
    ModuleUnavailable,
    TokenRefused,
    VendingKeyExpired,
)
from vending.sts.amounts import CurrencyField
from vending.sts.errors import StsError, TokenCrcMismatch, UnsupportedToken
from vending.sts.identity import KeyType, MeterKeyRecord
from vending.sts.key_change import require_key_change
from vending.sts.management import AnyToken, ManagementKind, decode_any_token
from vending.sts.tid import is_key_expired, require_tid
from vending.sts.tokens import CreditService, TokenNumber, split_class
from vending.sts_module_messages import (
    KEY_CHANGE_SUBCLASS_ORDER,
    GarbledReply,
    ModuleIdentity,
    RegisterAttributes,
    Reply,
    Request,
    TokenReading,
    attributes_request,
    currency_credit_request,
    decode_reply,
    echo_request,
    identity_request,
    key_change_request,
    key_change_tokens,
    management_request,
    read_attributes,
    read_echo,
    read_identity,
    read_key_change,
    read_token,
    read_verification,
    reading_of_credit,
    reading_of_currency,
    reading_of_management,
    require_done,
    token_of,
    unit_credit_request,
    verify_request,
)
from vending.sts_module_settings import KeyRegister, RegisterMap

# A vend waits holding one of the six connections of its process. Four may: two are left for whoever only reads, and the
# fifth sale hears at once that it has to come again. More would not be faster, the line takes one request at a time.
QUEUE_MAX = 4
# Three tries outlast a cut line and a lost answer in one request; the time of a request bounds them anyway.
TRIES_MAX = 3
# At most one answer can be under way, twice where a line doubles; past this many, nobody is there who echoes.
STALE_LINES_MAX = 16
# 32 random bits: an echo of an earlier start is not taken for this one's.
_ECHO_BYTES = 4
_TOKEN_CLASS_CLEAR = 1
_TOKEN_CLASS_RESERVED = 3

_log = structlog.get_logger(__name__)
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleTimes:
    """How long the client waits.

    Units: seconds. A minted token takes two exchanges of some 0.15 s at 9600 baud. `request_s` covers waiting for a
    turn, every try and every pause, and lies below the 5 s after which the database ends a vend that waits.
    """

    connect_s: float = 1.5
    answer_s: float = 1.5
    request_s: float = 4.0
    busy_s_first: float = 0.05
    busy_s_max: float = 0.4


@dataclass(slots=True)
class _Trouble:
    """What a request is waiting for: the error it ends with when its time is over."""

    error: ModuleAbsent


class StsModule:
    """A hardware security module.

    Invariants: one request on the line at a time, in the order of asking, with a bounded queue; `_in_step` only while
    the last request sent was answered by a whole reply of its kind; a token given out was read back; `_told` holds the
    registers that were asked for, and agreed with the map, since the line was opened.
    Used within one event loop.
    """

    def __init__(self, line: ModuleLine, registers: RegisterMap, *, times: ModuleTimes | None = None) -> None:
        self._line = line
        self._registers = registers
        self._times = times or ModuleTimes()
        self._turn = asyncio.Lock()
        self._asking = 0
        self._in_step = False
        self._told: dict[int, RegisterAttributes] = {}

    def __repr__(self) -> str:
        return f"StsModule({len(self._registers.registers)} registers)"

    def close(self) -> None:
        """Close the line; the next request opens it again."""
        self._in_step = False
        self._told = {}
        self._line.close()

    async def identify(self) -> ModuleIdentity:
        """Ask which module it is. Raises: ModuleAbsent, ModuleRefused."""
        return await self._converse(self._identity, "identification")

    async def check_registers(self) -> None:
        """Hold every register of the map against what the module tells of it.

        Raises: RegisterMismatch for the first that differs; VendingKeyUnknown for an empty one; ModuleAbsent.
        """
        for register in self._registers.registers:
            whose = f"register {register.number}"
            await self._converse(partial(self._attributes, register), whose)

    async def mint_unit_credit(
        self, meter: MeterKeyRecord, *, service: CreditService, amount16: int, tid: int
    ) -> TokenNumber:
        """Make a class 0 subclass 0-3 token of an encoded amount.

        Raises: ModuleAbsent; VendingKeyExpired, CreditKeyTypeRefused, VendingKeyUnknown, RiskLimitReached,
            ModuleRefused.
        """
        register = self._credit_register(meter, tid)
        request = unit_credit_request(register.number, meter, service=service, amount16=amount16, tid=tid)
        return await self._mint(request, register, meter, reading_of_credit(service, amount16, tid))

    async def mint_currency_credit(
        self, meter: MeterKeyRecord, *, service: CreditService, amount: CurrencyField, tid: int
    ) -> TokenNumber:
        """Make a class 0 subclass 4-7 token of an encoded amount.

        Raises: ModuleAbsent; VendingKeyExpired, CreditKeyTypeRefused, VendingKeyUnknown, RiskLimitReached,
            ModuleRefused.
        """
        register = self._credit_register(meter, tid)
        request = currency_credit_request(register.number, meter, service=service, amount=amount, tid=tid)
        return await self._mint(request, register, meter, reading_of_currency(service, amount, tid))

    async def mint_management(
        self, meter: MeterKeyRecord, *, kind: ManagementKind | ExtendedSet, value16: int, tid: int
    ) -> TokenNumber:
        """Make a class 2 token with a TID.

        Raises: ModuleAbsent; VendingKeyExpired, VendingKeyUnknown, ModuleRefused.
        """
        _require_in_force(meter, tid)
        register = self._registers.of_meter(meter)
        request = management_request(register.number, meter, kind=kind, value16=value16, tid=tid)
        return await self._mint(request, register, meter, reading_of_management(kind, value16, tid))

    async def mint_key_change(
        self, old: MeterKeyRecord, new: MeterKeyRecord, *, carry_sgc: bool, issued_at: datetime
    ) -> tuple[TokenNumber, ...]:
        """Make the tokens that move a meter from one key to another; the old one may be expired.

        The new key's KEN and base date go into the tokens as the module's register has them.
        Raises: ModuleAbsent; NewKeyExpired, KeyChangeRefused, VendingKeyUnknown for either key, ModuleRefused.
        """
        require_key_change(old=old, new=new, issued_at=issued_at)
        old_register, new_register = self._registers.of_meter(old), self._registers.of_meter(new)
        if new_register.ken != new.ken:
            raise ModuleRefused(
                f"key change: expected KEN {new.ken} in security module register {new_register.number}, "
                f"got {new_register.ken}, meter {new.drn}"
            )
        tokens = key_change_tokens(new.ea, carry_sgc=carry_sgc)
        request = key_change_request(old_register.number, new_register.number, old, new, tokens=tokens)
        roll_over = new.base_date.starts_at > old.base_date.starts_at

        async def mint() -> tuple[TokenNumber, ...]:
            await self._attributes(old_register)
            await self._attributes(new_register)
            minted = read_key_change(await self._ask(request, whose), tokens)
            if minted.roll_over is not roll_over:
                raise GarbledReply(f"key change: expected roll-over {roll_over:d}, got {minted.roll_over:d}, {whose}")
            for number, subclass in zip(minted.tokens, KEY_CHANGE_SUBCLASS_ORDER, strict=False):
                reading = await self._read_back(old_register, old, number)
                # What a section carries are parts of a key, which no module gives out: kind and CRC must do.
                if isinstance(reading, TokenRefused) or (reading.token_class, reading.subclass) != (2, subclass):
                    raise GarbledReply(f"key change: expected section of subclass {subclass}, got another, {whose}")
            return minted.tokens

        whose = f"meter {old.drn}"
        return await self._converse(mint, whose)

    async def verify(self, meter: MeterKeyRecord, number: TokenNumber) -> AnyToken | TokenRefused:
        """Read a token as this meter would; RND, which the module does not tell, as 0.

        A token under an expired key, and a key-change section, are refused.
        Raises: ModuleAbsent; VendingKeyUnknown, ModuleRefused.
        """
        token_class, _ = split_class(number)
        if token_class == _TOKEN_CLASS_RESERVED:
            return TokenRefused(code=UnsupportedToken.code, reason=f"token {number}: expected class 0-2, got 3")
        register = self._registers.of_meter(meter)

        async def read_token_back() -> TokenReading | TokenRefused:
            await self._attributes(register)
            return await self._read_back(register, meter, number)

        try:
            if token_class == _TOKEN_CLASS_CLEAR:
                return decode_any_token(number, None)
            read = await self._converse(read_token_back, f"meter {meter.drn}")
            return read if isinstance(read, TokenRefused) else token_of(read)
        except (TokenCrcMismatch, UnsupportedToken) as error:
            return TokenRefused(code=error.code, reason=str(error))

    async def key_check_value(self, *, sgc: str, krn: int) -> str:
        """Return the check value that the module tells of a key, nothing where it tells none.

        Raises: VendingKeyUnknown without asking where no register is set for the key; ModuleAbsent.
        """
        register = self._registers.of_key(sgc, krn)
        told = await self._converse(partial(self._attributes, register), f"register {register.number}")
        return told.check_value or ""

    async def mint_paygo(
        self, device: PaygoDevice, *, sealed_key: bytes, kind: PaygoKind, value: int | None, count: int
    ) -> PaygoToken:
        """Refuse: the messages of STS have no OpenPAYGO. Raises: ModuleRefused."""
        raise ModuleRefused(f"device {device.serial}: expected a module that makes OpenPAYGO tokens, got an STS one")

    async def verify_paygo(
        self, device: PaygoDevice, *, sealed_key: bytes, digits: str, last_count: int
    ) -> PaygoToken | TokenRefused:
        """Refuse: the messages of STS have no OpenPAYGO. Raises: ModuleRefused."""
        raise ModuleRefused(f"device {device.serial}: expected a module that reads OpenPAYGO tokens, got an STS one")

    async def _mint(
        self, request: Request, register: KeyRegister, meter: MeterKeyRecord, asked: TokenReading
    ) -> TokenNumber:
        whose = f"meter {meter.drn}"

        async def mint() -> TokenNumber:
            await self._attributes(register)
            number = read_token(await self._ask(request, whose))
            if await self._read_back(register, meter, number) != asked:
                raise GarbledReply(f"token {number}: expected to read what was asked for, got something else, {whose}")
            return number

        return await self._converse(mint, whose)

    async def _read_back(
        self, register: KeyRegister, meter: MeterKeyRecord, number: TokenNumber
    ) -> TokenReading | TokenRefused:
        request = verify_request(register.number, meter, number)
        return read_verification(await self._exchange(request), f"meter {meter.drn}")

    async def _identity(self) -> ModuleIdentity:
        return read_identity(await self._ask(identity_request(), "identification"))

    async def _attributes(self, register: KeyRegister) -> RegisterAttributes:
        """Return what a register holds, asked once an opening. Raises: RegisterMismatch."""
        told = self._told.get(register.number)
        if told is None:
            reply = await self._ask(attributes_request(register.number), f"register {register.number}")
            told = read_attributes(reply)
            register.require(told)
            self._told[register.number] = told
        return told

    async def _converse(self, exchanges: Callable[[], Awaitable[_T]], whose: str) -> _T:
        """Have one conversation with the module in its turn, again where an answer was lost, within the time.

        Raises: ModuleBusy when no turn came or the module stayed busy; ModuleTimeout; ModuleUnavailable.
        """
        if self._asking >= QUEUE_MAX:
            raise ModuleBusy(f"security module: expected at most {QUEUE_MAX} requests waiting, got more, {whose}")
        trouble = _Trouble(ModuleBusy(f"security module: expected a turn in time, got none, {whose}"))
        self._asking += 1
        try:
            async with asyncio.timeout(self._times.request_s), self._turn:
                return await self._persist(exchanges, trouble, whose)
        except TimeoutError:
            raise trouble.error from None
        finally:
            self._asking -= 1

    async def _persist(self, exchanges: Callable[[], Awaitable[_T]], trouble: _Trouble, whose: str) -> _T:
        lost = 0
        pause_s = self._times.busy_s_first
        while True:
            try:
                if not self._in_step:
                    await self._get_in_step()
                trouble.error = ModuleTimeout(f"security module: expected an answer in time, got none, {whose}")
                return await exchanges()
            except ModuleBusy as error:
                trouble.error = error
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, self._times.busy_s_max)
            except (GarbledReply, OSError) as error:
                # A time-out of one answer is an OSError, too. That of the whole request comes as a cancellation.
                self.close()
                lost += 1
                _log.warning("security_module_answer_lost", tries=lost, error=type(error).__name__)
                if lost == TRIES_MAX:
                    raise ModuleTimeout(
                        f"security module: expected an answer that holds, got none {lost} times, {whose}"
                    ) from None

    async def _get_in_step(self) -> None:
        """Open the line anew and wait for the echo of a new word, past all that is left from before.

        Raises: ModuleUnavailable where the line does not open; OSError, GarbledReply where nobody echoes.
        """
        self.close()
        try:
            async with asyncio.timeout(self._times.connect_s):
                await self._line.open()
        except OSError as error:
            raise ModuleUnavailable(f"security module: expected a line to it, got {type(error).__name__}") from None
        word = secrets.token_hex(_ECHO_BYTES).upper()
        request = echo_request(word)
        async with asyncio.timeout(self._times.answer_s):
            await self._line.send(request.line)
            for _ in range(STALE_LINES_MAX):
                if self._is_echo(await self._line.receive(), request, word):
                    self._in_step = True
                    return
        raise GarbledReply(f"security module: expected an echo, got {STALE_LINES_MAX} other lines")

    @staticmethod
    def _is_echo(line: bytes, request: Request, word: str) -> bool:
        """Tell whether a line is the echo of a word. Raises: ModuleBusy."""
        try:
            reply = decode_reply(line)
            if not reply.answers(request):
                return False
            require_done(reply, "echo")
            return read_echo(reply) == word
        except (ModuleBusy, ModuleUnavailable):
            raise
        except StsError:
            return False

    async def _ask(self, request: Request, whose: str) -> Reply:
        """Return the reply that reports success. Raises: what `_exchange` and `require_done` raise."""
        reply = await self._exchange(request)
        require_done(reply, whose)
        return reply

    async def _exchange(self, request: Request) -> Reply:
        """Send a request and return the next line, if it can be the answer.

        Raises: GarbledReply; OSError, TimeoutError among them.
        """
        if self._line.has_unread:
            raise GarbledReply("security module: expected a quiet line, got something nobody asked for")
        # Until the answer is here, whatever ends this leaves the line out of step.
        self._in_step = False
        async with asyncio.timeout(self._times.answer_s):
            await self._line.send(request.line)
            reply = decode_reply(await self._line.receive())
        if not reply.answers(request):
            raise GarbledReply(f"security module: expected an answer to {request.command}, got {reply.header}")
        self._in_step = True
        return reply

    def _credit_register(self, meter: MeterKeyRecord, tid: int) -> KeyRegister:
        _require_in_force(meter, tid)
        if meter.kt in (KeyType.INITIALISATION, KeyType.DEFAULT):
            raise CreditKeyTypeRefused(f"credit: expected key type 2 or 3, got {meter.kt:d}, meter {meter.drn}")
        return self._registers.of_meter(meter)


def _require_in_force(meter: MeterKeyRecord, tid: int) -> None:
    require_tid(tid)
    if is_key_expired(tid, meter.ken):
        raise VendingKeyExpired(
            f"key of SGC {meter.sgc} KRN {meter.krn}: expected TID block up to KEN {meter.ken}, "
            f"got {tid >> 16}, meter {meter.drn}"
        )
