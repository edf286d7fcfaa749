"""Slips: what a station prints or a consumer reads on one page; the same blocks as text of 48 columns and as HTML."""
