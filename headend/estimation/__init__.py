"""Estimation of readings that are missing or wrong: rules by name, the document that orders them, and their choice.

Stage: pure, beside validation. Takes registers and earlier use as integers; returns energy by interval, marked with the
rule's name and what it was made of, or why a rule cannot. Never books anything: that is the exceptions desk's part.
"""
