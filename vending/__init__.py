"""Vends, tokens and receipts; the HTTP API in edges."""
