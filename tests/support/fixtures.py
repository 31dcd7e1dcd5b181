"""Fixtures with a real server, imported by the conftest modules."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.support.server import ServerProcess

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from _pytest.mark.structures import ParameterSet


SHARDS = os.environ.get("TEST_SHARDS", "1")
"""Of the server that all tests share: what they expect holds whatever their number is."""


def later(value: object) -> ParameterSet:
    """A parameter of a test whose run with it is among the long ones."""
    return pytest.param(value, marks=pytest.mark.long)


def skip_where_shards_matter(items: list[pytest.Item]) -> None:
    """Leave out what one shard promises and several do not; each such test says why."""
    for item in items:
        mark = item.get_closest_marker("one_shard")
        if mark is not None and SHARDS != "1":
            item.add_marker(pytest.mark.skip(reason=mark.kwargs["reason"]))


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server for all tests that leave it running; each uses collections of its own. It must end with exit code 0."""
    with ServerProcess(tmp_path_factory.mktemp("server") / "data", arguments=["--shards", SHARDS]) as process:
        yield process


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[ServerProcess]:
    """A server for one test, to be killed and restarted at will."""
    with ServerProcess(tmp_path / "data") as process:
        yield process


@pytest.fixture
def collection_name() -> str:
    """A name that no other test uses."""
    return f"test-{os.urandom(8).hex()}"
