"""Calls from node to node: the API as it is, with a few words of metadata, and errors that come back as what they were.

A call that carries `vecmem-shard` is one part of another: the node answers for that shard or says MOVED, and passes it on to nobody.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import grpc
from google.rpc import error_details_pb2, status_pb2

from vecmem import limits
from vecmem.errors import DeadlineExceededError, UnavailableError, VecmemError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

SHARD_KEY: Final = "vecmem-shard"
"""Which shard the part is for."""
SLOTS_KEY: Final = "vecmem-slots"
"""Present: the reply's header has to say which slots it speaks for."""
DETAILS_KEY: Final = "grpc-status-details-bin"
ACCEPT_MOVED_KEY: Final = "vecmem-accept-moved"
"""Sent by clients that know where to go: they are told MOVED, and nothing is passed on for them."""
MESSAGE_OVERHEAD_BYTES: Final = 1024 * 1024

Metadata = tuple[tuple[str, str], ...]

_OPTIONS: Final = (
    ("grpc.max_receive_message_length", limits.MESSAGE_BYTES_MAX + MESSAGE_OVERHEAD_BYTES),
    ("grpc.max_send_message_length", limits.MESSAGE_BYTES_MAX + MESSAGE_OVERHEAD_BYTES),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 500),
    # Must not be shorter than what servers allow.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.use_local_subchannel_pool", 1),
)
_CLASSES: dict[str, type[VecmemError]] = {}


class Peers:
    """Connections to other nodes, by their addresses. Lives on one event loop."""

    def __init__(self) -> None:
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._methods: dict[tuple[str, str, bool], Any] = {}

    async def call(
        self, address: str, method: str, request: bytes, *, timeout_seconds: float | None, metadata: Metadata
    ) -> bytes:
        """Call a unary method, `/package.Service/Method`; messages go as bytes. Raises the VecmemError that the other node has raised."""
        try:
            return bytes(
                await self._method(address, method, streams=False)(request, timeout=timeout_seconds, metadata=metadata)
            )
        except grpc.aio.AioRpcError as failure:
            raise error_of(failure) from failure

    async def stream(
        self, address: str, method: str, request: bytes, *, metadata: Metadata
    ) -> AsyncGenerator[bytes, None]:
        """Call a method that answers with a stream. Raises as `call`."""
        call = self._method(address, method, streams=True)(request, metadata=metadata)
        try:
            async for reply in call:
                yield bytes(reply)
        except grpc.aio.AioRpcError as failure:
            raise error_of(failure) from failure
        finally:
            call.cancel()

    async def close(self) -> None:
        """Close all connections."""
        self._methods.clear()
        while self._channels:
            _, channel = self._channels.popitem()
            await channel.close()

    def _method(self, address: str, method: str, *, streams: bool) -> Any:
        key = (address, method, streams)
        found = self._methods.get(key)
        if found is None:
            channel = self._channels.get(address)
            if channel is None:
                channel = self._channels[address] = grpc.aio.insecure_channel(address, options=_OPTIONS)
            found = self._methods[key] = channel.unary_stream(method) if streams else channel.unary_unary(method)
        return found


def error_of(failure: grpc.aio.AioRpcError) -> VecmemError:
    """What another node has raised; without a reason of ours UnavailableError or DeadlineExceededError, or an internal one."""
    packed = dict(failure.trailing_metadata() or ()).get(DETAILS_KEY, b"")
    status = status_pb2.Status.FromString(packed if isinstance(packed, bytes) else b"")
    for detail in status.details:
        info = error_details_pb2.ErrorInfo()
        if detail.Is(info.DESCRIPTOR) and detail.Unpack(info) and info.domain == "vecmem":
            return error_by_reason(info.reason, failure.details() or "", dict(info.metadata))
    code = failure.code()
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineExceededError("another node did not answer in time")
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
        return UnavailableError(f"another node is not there: {failure.details()}")
    return VecmemError(f"another node failed with {code.name}: {failure.details()}")


def error_by_reason(reason: str, message: str, metadata: dict[str, str]) -> VecmemError:
    """An error of the class that has a reason."""
    if not _CLASSES:
        pending: list[type[VecmemError]] = [VecmemError]
        while pending:
            kind = pending.pop()
            _CLASSES[kind.reason] = kind
            pending.extend(kind.__subclasses__())
    error = _CLASSES.get(reason, VecmemError)(message)
    error.metadata.update(metadata)
    return error
