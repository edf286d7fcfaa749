"""OpenPAYGO-Token: activation time as 9, 12, 15 or 20 digits for pay-as-you-go devices."""
