"""Fixtures for all tests of the server."""

import signal

import pytest
from hypothesis import settings

from tests.support.fixtures import collection_name, own_server, server, skip_where_shards_matter
from tests.support.nats import nats_cluster, nats_server, own_nats_server

__all__ = ["collection_name", "nats_cluster", "nats_server", "own_nats_server", "own_server", "server"]

# Whoever runs the tests in the background of a shell has it ignored, and so would every program that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# No test is about wall-clock time: machines are shared.
settings.register_profile("vecmem", deadline=None)
settings.load_profile("vecmem")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """See `one_shard` among the markers."""
    skip_where_shards_matter(items)
