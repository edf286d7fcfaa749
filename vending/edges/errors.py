"""What the vending interface refuses without storing it: one class and one stable code for each."""

from __future__ import annotations

from vending.vends import Declined, VendingError


class ApiKeyWrong(VendingError):
    """No active key of this id and secret."""

    code = "api_key_wrong"


class NotAllowed(VendingError):
    """The key's role may not do this."""

    code = "not_allowed"


class NonceReused(VendingError):
    """A signed request whose number was used before: a copy."""

    code = "nonce_reused"


class TooManyRequests(VendingError):
    """More requests than a limit allows; nothing was looked at. The same request may come after `retry_after_s`."""

    code = "too_many_requests"

    def __init__(self, message: str, *, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class VendDayFull(TooManyRequests):
    """More vends or money on a local day than a limit allows; nothing is stored under the message id."""

    code = "vend_day_full"


class AccountUnknown(VendingError):
    """No account of that number."""

    code = "unknown_account"


class BadInstant(VendingError):
    """No instant of the calendar, or one that has not passed."""

    code = "bad_instant"


class VendUnknown(VendingError):
    """No vend of that message id by this vendor."""

    code = "unknown_vend"


class AdviceContradicts(VendingError):
    """An advice or decision that goes against what was said of the vend before, or against what its meter shows."""

    code = "advice_contradicts"


class VendNeverConfirmed(VendingError):
    """A confirmation of a held vend that came after it was taken back for the want of one."""

    code = "never_confirmed"


class VendReleased(VendingError):
    """A vend that is to be cancelled though its token was given out."""

    code = "released_already"


class MessageOfAnother(VendingError):
    """A message id that belongs to another kind of request."""

    code = "message_id_reused"


class SecondPersonNeeded(VendingError):
    """An issue above what one person may give out alone."""

    code = "second_person_needed"


class SamePerson(VendingError):
    """A proposed issue that its own proposer would approve."""

    code = "same_person"


class ProposalUnknown(VendingError):
    """No proposed issue of that number."""

    code = "unknown_proposal"


class ProposalDecided(VendingError):
    """A proposed issue that was decided otherwise."""

    code = "proposal_decided"


class FaultReportUnknown(VendingError):
    """No open fault report of that number."""

    code = "unknown_fault_report"


class TokenNotIssued(VendingError):
    """The digits are no token issued here for the meter."""

    code = "token_not_issued"


class TokenUnreadable(VendingError):
    """Digits of the right form that are no token of the meter; `token_code` is the security module's."""

    code = "token_unreadable"

    def __init__(self, token_code: str, message: str) -> None:
        super().__init__(message)
        self.token_code = token_code


class RequestDeclined(VendingError):
    """A refusal met where nothing is stored, as when a meter is only looked up."""

    code = "declined"

    def __init__(self, declined: Declined) -> None:
        super().__init__(declined.message)
        self.declined = declined
