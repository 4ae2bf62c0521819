"""The methods: one row each. A new method is one file and one line here."""

from __future__ import annotations

import os

from harness.methods import fake
from harness.methods.base import Method

METHODS: dict[str, Method] = {}

if os.environ.get("QUANT_HARNESS_FAKES"):  # scripted method of the tests; see fake.py
    METHODS[fake.METHOD.name] = fake.METHOD
