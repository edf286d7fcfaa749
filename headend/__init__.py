"""Validation and the ingest pipeline as values; processes in edges."""
