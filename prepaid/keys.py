"""The soft security module of an installation: its master key file, and vending keys sealed in the database.

Stage: process start. The master key is a file only its owner can read, made at the first start unless the operator
names one. A fresh installation gets one random vending key for its own supply group, for test and small systems.
"""

from __future__ import annotations

# Supply group of meters registered without one of their own; a utility's own groups are given to it by the STS.
DEFAULT_SGC = "000000"
