"""docs/limits.md tells of every limit, with the value of the code and an error that exists."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from vecmem import errors, limits

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "generate_limits.py"


@pytest.fixture(scope="module")
def generator():
    specification = importlib.util.spec_from_file_location("generate_limits", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_the_page_is_what_the_code_says(generator):
    page = generator.PAGE.read_text(encoding="utf-8")
    assert generator.replace_tables(page) == page, "run: python scripts/generate_limits.py"
    assert f"| `PAYLOAD_BYTES_MAX` | {limits.PAYLOAD_BYTES_MAX:,} | bytes |" in page


def test_a_limit_that_the_page_does_not_know_is_named(generator, monkeypatch):
    monkeypatch.setattr(limits, "WISHES_MAX", 3, raising=False)
    with pytest.raises(ValueError, match="WISHES_MAX"):
        generator.render_tables()


def test_the_errors_that_the_page_names_exist(generator):
    reasons = {each.reason for each in vars(errors).values() if isinstance(each, type) and hasattr(each, "reason")}
    told = {entry.reason for group in generator.GROUPS.values() for entry in group.values()}
    assert told - {""} <= reasons
