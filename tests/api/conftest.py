"""The raw API of a real server."""

from __future__ import annotations

import pytest

from tests.support.api import connect


@pytest.fixture(scope="session")
def api(server):
    """Stubs on the server that all tests share; each uses collections of its own."""
    with connect(server.address) as connected:
        yield connected


@pytest.fixture
def own_api(own_server):
    """Stubs on a server of the test's own, as long as it is not restarted."""
    with connect(own_server.address) as connected:
        yield connected
