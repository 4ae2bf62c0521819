"""Who starts what: from a plan to records, one child at a time."""
