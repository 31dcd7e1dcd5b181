"""The raw API of a real server."""

from __future__ import annotations

import os

import grpc
import pytest

from tests.support.api import connect
from vecmem.v1 import collections_pb2


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


@pytest.fixture
def collection_name(api):
    """A name that no other test uses; its collection goes with the test, so that the server stays small."""
    name = f"test-{os.urandom(8).hex()}"
    yield name
    try:
        api.call("DeleteCollection", collections_pb2.DeleteCollectionRequest(name=name))
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.NOT_FOUND:
            raise
