"""Fixtures for all tests of the server."""

from hypothesis import settings

from tests.support.fixtures import collection_name, own_server, server
from tests.support.nats import nats_cluster, nats_server, own_nats_server

__all__ = ["collection_name", "nats_cluster", "nats_server", "own_nats_server", "own_server", "server"]

# No test is about wall-clock time: machines are shared.
settings.register_profile("vecmem", deadline=None)
settings.load_profile("vecmem")
