"""What a gate found, told where people work: one issue for each regression, and one comment on a pull request."""

CHANGES_NUMBERS = False
"""Stored measurements do not depend on this room: it is no part of the source digest (run/source.py)."""
