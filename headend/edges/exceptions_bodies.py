"""Bodies of the routes of exceptions, each with an example that runs, and how they become values.

Stage: between HTTP and the exceptions desk. Refuses what has no form; what does not fit an exception is refused there.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from db.exceptions import ExceptionKey
from headend.edges.exceptions_desk import BULK_ITEMS_MAX, Action, Decision
from headend.estimation.values import INTERVALS_MAX, EstimationRule

REGISTER_WH_MAX = 10**15
MINOR_MAX = 10**12
ITEM_PATTERN = r"^(quarantine|flag|gap)-[0-9]{1,18}$"


def _storable(text: str) -> str:
    # PostgreSQL has no text with a zero in it, and a line of a trail is one line.
    if not text.isprintable():
        raise ValueError("expected printable text")
    return text


Why = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_storable)]
Name = Annotated[str, Field(min_length=1, max_length=64), AfterValidator(_storable)]
Register = Annotated[int, Field(ge=0, le=REGISTER_WH_MAX)]
Item = Annotated[str, Field(pattern=ITEM_PATTERN)]


def _example(example: dict[str, Any]) -> ConfigDict:
    return ConfigDict(extra="forbid", str_strip_whitespace=True, json_schema_extra={"example": example})


class LookBody(BaseModel):
    """A decision to look at: what it would do to money."""

    model_config: ClassVar[ConfigDict] = _example({"action": "estimate", "rule": "average_of_like_days"})

    action: Action
    import_wh: Register | None = Field(default=None, description="of an edit: the register that holds, Wh")
    rule: EstimationRule | None = Field(default=None, description="of an estimate; default: the first that can")
    counted_wh: Annotated[list[Register | None], Field(min_length=1, max_length=INTERVALS_MAX)] | None = Field(
        default=None, description="of an estimate: Wh by interval from another source, null where it has none"
    )
    as_reset: bool = Field(default=False, description="of a release: the register began again at 0")

    def decision(self) -> Decision:
        """Return what is decided."""
        return Decision(
            action=self.action,
            import_wh=self.import_wh,
            rule=self.rule,
            counted_wh=None if self.counted_wh is None else tuple(self.counted_wh),
            as_reset=self.as_reset,
        )


class DecisionBody(LookBody):
    """A decision with its reason."""

    model_config: ClassVar[ConfigDict] = _example({"action": "keep", "why": "an empty home, seen on site"})

    why: Why


class WhyBody(BaseModel):
    """A reason."""

    model_config: ClassVar[ConfigDict] = _example({"why": "the photograph is of another meter"})

    why: Why


class ApprovalBody(BaseModel):
    """What a second person says."""

    model_config: ClassVar[ConfigDict] = _example({"why": "compared with the photograph", "cut_offs": 0})

    why: Why
    cut_offs: int = Field(ge=0, le=1, description="how many supplies the dry run says are cut")


class AssignmentBody(BaseModel):
    """Who is to work on an exception; nobody where left out."""

    model_config: ClassVar[ConfigDict] = _example({"to": "A. Kaur", "why": "her feeder"})

    to: Name | None = None
    why: Why


class BulkBody(LookBody):
    """One decision on many exceptions, none of which is an edit."""

    model_config: ClassVar[ConfigDict] = _example(
        {"items": ["flag-1", "flag-2"], "action": "keep", "why": "feeder was off", "bound_minor": 0}
    )

    items: list[Item] = Field(min_length=1, max_length=BULK_ITEMS_MAX)
    why: Why
    bound_minor: int = Field(ge=0, le=MINOR_MAX, description="money that all together may move, minor units")
    dry_run: bool = Field(default=False, description="only tell what it would do")

    def keys(self) -> list[ExceptionKey]:
        """Return which exceptions."""
        return [ExceptionKey.read(item) for item in self.items]
