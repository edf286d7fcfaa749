"""Modbus meters: maps of registers as data, frames, values, the reads that fetch them, and whether they make sense."""
