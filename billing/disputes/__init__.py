"""Disputes: what becomes of a complaint about a meter or a bill, until its money is posted (R-18 to R-21, R-28).

Stage: pure, between what engineers enter and what is written. Takes dated rules, the steps of a case and registers of
a meter and its check meter; returns states, clocks, verdicts and what to overhaul. Money itself moves through
corrections and money events, never here.
"""
