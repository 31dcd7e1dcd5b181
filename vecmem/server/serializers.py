"""How requests are read and replies written, where gRPC's own way will not do.

gRPC decodes a request before the servicer sees it, and by itself answers UNKNOWN when that fails. So a request that cannot be decoded is
handed to the servicer as the DecodeError, and `vecmem.server.calls` raises what it stands for: INVALID_ARGUMENT and a reason, as for every
other bad request.

A servicer method returns a message, or the bytes that the message would serialize to, which are sent as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import grpc
from google.protobuf.message import DecodeError

from vecmem.errors import InvalidArgumentError


def adapted(server: grpc.aio.Server) -> grpc.aio.Server:
    """What to add servicers to instead of the server itself."""
    return cast("grpc.aio.Server", _Adapted(server))


class _Adapted:
    """Stands between the generated `add_..._to_server` functions and a server, and exchanges the serializers of each method.

    Done once, when the servicers are added, and not by an interceptor, which both gRPC engines would run for every call.
    """

    def __init__(self, server: grpc.aio.Server) -> None:
        self._server = server

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """Nothing: the generated code registers the same methods by name as well."""

    def add_registered_method_handlers(self, service_name: str, method_handlers: Mapping[str, Any]) -> None:
        """Add the methods of a service."""
        handlers = {name: _exchange(handler) for name, handler in method_handlers.items()}
        self._server.add_registered_method_handlers(service_name, handlers)


def check_decoded(request: object) -> None:
    """Raises InvalidArgumentError for a request that could not be decoded."""
    if isinstance(request, DecodeError):
        raise InvalidArgumentError(f"the request cannot be decoded: {request}")


def _exchange(handler: Any) -> Any:
    deserialize: Callable[[bytes], Any] = handler.request_deserializer
    serialize: Callable[[Any], bytes] = handler.response_serializer

    def decode(raw: bytes) -> Any:
        try:
            return deserialize(raw)
        except DecodeError as error:
            return error

    def encode(reply: Any) -> bytes:
        return reply if type(reply) is bytes else serialize(reply)

    return handler._replace(request_deserializer=decode, response_serializer=encode)
