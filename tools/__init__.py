"""Scripts about the code itself; no part of the distribution."""
