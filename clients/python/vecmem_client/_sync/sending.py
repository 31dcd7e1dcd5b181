# Generated from _async/sending.py by scripts/generate_sync.py: change that one and run the script.
"""One RPC on its way: to which node it goes, and what is learned from how it ends."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import grpc

from vecmem.v1 import cluster_pb2
from vecmem_client import _methods
from vecmem_client._errors import VecmemClientError, error_from_rpc

if TYPE_CHECKING:
    from vecmem_client._methods import Method, ReplyT
    from vecmem_client._routing import Routing
    from vecmem_client._sync.transport import Transport

LOOK_SECONDS_MAX = 1.0
"""How long a node may take to tell the topology."""


class Sender:
    """Sends for one client."""

    def __init__(self, transport: Transport, routing: Routing) -> None:
        self._transport = transport
        self._routing = routing

    def send(
        self,
        method: Method[ReplyT],
        request: bytes,
        timeout_seconds: float,
        shard: int | None = None,
        *,
        spread: bool = False,
    ) -> ReplyT:
        """Make one call, to a node of a shard, or (None) to any; `spread`: to one that need not lead. Raises grpc.RpcError."""
        routing = self._routing
        address, metadata = routing.place(shard, spread=spread)
        began = time.monotonic()
        try:
            reply = self._transport.unary(method, request, timeout_seconds, address, metadata)
        except grpc.RpcError as error:
            routing.failed(error_from_rpc(error), address)
            raise
        except VecmemClientError as failure:
            routing.failed(failure, address)
            raise
        routing.answered(reply.header, address, time.monotonic() - began, shard)
        return reply

    def look(self, seconds_max: float) -> None:
        """Learn the topology, if it is time for that; where nobody tells it, go on with what is known."""
        if not self._routing.begins_to_look():
            return
        address, _ = self._routing.place(None, spread=False)
        request = cluster_pb2.GetTopologyRequest().SerializeToString()
        seconds = min(LOOK_SECONDS_MAX, seconds_max / 2)
        gone: list[str] = []
        try:
            reply = self._transport.unary(_methods.GET_TOPOLOGY, request, seconds, address, None)
            gone = self._routing.learn(reply)
        except grpc.RpcError as error:
            self._routing.fail_to_learn(error_from_rpc(error), address)
        except VecmemClientError as error:
            self._routing.fail_to_learn(error, address)
        finally:
            self._routing.end_look()
        self._transport.forget(gone)
