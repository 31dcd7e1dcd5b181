"""Fixtures for all tests of the server."""

from tests.support.fixtures import collection_name, own_server, server

__all__ = ["collection_name", "own_server", "server"]
