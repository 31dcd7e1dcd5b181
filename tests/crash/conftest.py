"""Options of the crash loops: `pytest tests/crash --rounds 500 --seed 42`."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("crash loops")
    group.addoption("--rounds", type=int, default=None, help="Rounds of a crash loop (default: 20, the soak 200).")
    group.addoption("--seed", type=int, default=None, help="Seed of a crash loop (default: a random one, printed).")
