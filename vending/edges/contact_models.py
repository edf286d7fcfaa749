"""Bodies of contacts, codes and messages from the SMS gateway, as the OpenAPI document shows them."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from vending.edges.models import AnswerBody, RequestBody

ChannelName = Literal["sms", "email"]
LanguageName = Literal["en", "hi", "pa"]


class ContactBody(RequestBody):
    """Where the consumer wants to be reached. It counts once a code that was sent there has come back."""

    channel: ChannelName = Field(examples=["sms"])
    address: str = Field(max_length=254, examples=["98765 43210"])
    language: LanguageName = Field(default="en", description="of the messages", examples=["pa"])
    priority: int = Field(default=1, ge=1, le=9, description="1 is tried first of a channel", examples=[1])


class CodeBody(RequestBody):
    """The code as the contact received it."""

    code: str = Field(max_length=16, examples=["042817"])


class ContactAnswer(AnswerBody):
    """A contact; its address is masked for vendors."""

    id: int = Field(examples=[17])
    channel: ChannelName
    address: str = Field(examples=["+919876543210"])
    language: LanguageName
    priority: int
    verified_at: datetime | None = Field(description="null until a code has come back: no message goes there")
    failed_at: datetime | None = Field(description="since when messages are refused for good, else null")
    stopped_at: datetime | None = Field(description="when the reader sent STOP")


class ContactsAnswer(AnswerBody):
    """All contacts of an account's consumer, those first that are tried first."""

    account_number: str = Field(examples=["100200300"])
    contacts: list[ContactAnswer]


class CodeAnswer(AnswerBody):
    """A code is on its way."""

    contact_id: int = Field(examples=[17])
    expires_at: datetime


class InboundBody(BaseModel):
    """A message that a person sent to us; its text is from outside, and answered whatever it holds."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    message_id: str = Field(pattern=r"^[\x21-\x7e]{1,128}$", description="unique for ever", examples=["MO-20261122-7"])
    sender: str = Field(alias="from", max_length=32, examples=["+919876543210"])
    text: str = Field(max_length=4_000, examples=["BAL"])


class InboundAnswer(AnswerBody):
    """What became of a message; an answer to the person leaves as a notice."""

    message_id: str
    outcome: Literal["answered", "unknown_number", "too_many"]
