"""The vending API over HTTP."""
