"""Fixtures for the client's tests: a real server, and both clients through one asynchronous face."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.fixtures import collection_name, own_server, server, skip_where_shards_matter
from vecmem_client import AsyncClient, Client, VectorConfig

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from tests.support.server import ServerProcess

__all__ = ["collection_name", "own_server", "server"]

_ITERATORS = {"list_collections", "scroll"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """See `one_shard` among the markers."""
    skip_where_shards_matter(items)


class Awaitable:
    """The sync client with the asynchronous face: each call runs in a thread, iterators step in one."""

    def __init__(self, client: Client) -> None:
        self.sync_client = client

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self.sync_client, name)
        if not callable(attribute):
            return attribute
        if name in _ITERATORS:

            async def iterate(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
                iterator: Iterator[Any] = attribute(*args, **kwargs)
                end = object()
                while (item := await asyncio.to_thread(next, iterator, end)) is not end:
                    yield item

            return iterate

        async def call(*args: Any, **kwargs: Any) -> Any:
            return await asyncio.to_thread(attribute, *args, **kwargs)

        return call


# The synchronous client is generated from the other: `make test` has one of them over one shard, the other one over two.
KINDS = os.environ.get("TEST_CLIENTS", "sync,async").split(",")


@pytest.fixture(params=KINDS)
async def make_client(request: pytest.FixtureRequest) -> AsyncIterator[Callable[..., Any]]:
    """Makes clients of either kind, with the constructor's arguments; all are closed at the end."""
    made: list[Any] = []

    def make(target: str, **kwargs: Any) -> Any:
        client = Awaitable(Client(target, **kwargs)) if request.param == "sync" else AsyncClient(target, **kwargs)
        made.append(client)
        return client

    yield make
    for client in made:
        await client.close()


@pytest.fixture
async def client(make_client: Callable[..., Any], server: ServerProcess) -> Any:
    """A client of the shared server."""
    return make_client(server.address)


@pytest.fixture
async def collection(client: Any, collection_name: str) -> AsyncIterator[str]:
    """A collection with a default vector of 4 elements under cosine, removed at the end."""
    await client.create_collection(collection_name, VectorConfig(4))
    yield collection_name
    await client.delete_collection(collection_name)
