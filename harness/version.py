"""The version of this distribution; the one of pyproject.toml is the same."""

from __future__ import annotations

__version__ = "0.1.0"
