"""What an XMLVend message is refused for by itself, before any desk is asked."""

from __future__ import annotations

from typing import ClassVar

from vending.vends import VendingError


class NotAMessage(VendingError):
    """Bytes that are no SOAP message: there is nobody to whom a SOAP fault could be told."""

    code: ClassVar[str] = "malformed"


class SchemaRefused(VendingError):
    """A SOAP message that is no XMLVend request of its form."""

    code: ClassVar[str] = "malformed"


class UseCaseUnsupported(VendingError):
    """A use case of XMLVend that is not offered here."""

    code: ClassVar[str] = "use_case_unsupported"


class MeterDataMissing(VendingError):
    """A request that names its meter, or its customer, in a way that is not read here."""

    code: ClassVar[str] = "meter_data_missing"


class ClientMismatch(VendingError):
    """A message whose clientID or terminalID is not the caller's."""

    code: ClassVar[str] = "client_mismatch"
