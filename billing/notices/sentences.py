"""What a consumer is told, as English sentences written beside their cause.

Stage: beside the alarm or posting that causes it. Takes amounts; returns a sentence. Amounts are
printed with Rs and two decimals.
"""

from __future__ import annotations

from billing.money import format_minor


def low_notice(account: str, balance_minor: int, threshold_minor: int) -> str:
    """Warn at the balance the consumer chose."""
    return (
        f"Account {account}: your balance is Rs {format_minor(balance_minor)}, at or below the Rs"
        f" {format_minor(threshold_minor)} you asked to be warned at. Please recharge."
    )


def exhausted_notice(account: str, balance_minor: int, restores_minor: int) -> str:
    """Say that supply is being cut, and what brings it back."""
    return (
        f"Account {account}: your credit is used up (balance Rs {format_minor(balance_minor)}). Supply is cut off"
        f" until you recharge Rs {format_minor(restores_minor)} or more. It returns by itself, without any fee."
    )


def restored_notice(account: str, balance_minor: int) -> str:
    """Say that supply is coming back."""
    return (
        f"Account {account}: supply is being restored. Your balance is Rs {format_minor(balance_minor)}."
        " No fee is charged."
    )


def recharged_notice(account: str, amount_minor: int, balance_minor: int) -> str:
    """Confirm a recharge."""
    return (
        f"Account {account}: recharge of Rs {format_minor(amount_minor)} received. Your balance is Rs"
        f" {format_minor(balance_minor)}."
    )
