"""Benchmarks and floods."""
