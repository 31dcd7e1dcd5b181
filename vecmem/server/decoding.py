"""Requests that are no protobuf of their method get INVALID_ARGUMENT and a reason, as every other bad request does.

gRPC decodes a request before the servicer sees it, and by itself answers UNKNOWN when that fails. So a request that cannot be decoded is
handed to the servicer as the DecodeError, and `vecmem.server.calls` raises what it stands for.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from vecmem.errors import InvalidArgumentError

PREFIX = "/vecmem.v1."


class UndecodableRequests(grpc.aio.ServerInterceptor):
    """Hands undecodable requests on. Looks each method up once."""

    def __init__(self) -> None:
        self._handlers: dict[str, Any] = {}

    async def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]], handler_call_details: Any
    ) -> Any:
        """Return the method's handler, with a deserializer that does not raise."""
        method: str = handler_call_details.method
        known = self._handlers.get(method)
        if known is not None:
            return known
        handler = await continuation(handler_call_details)
        if handler is None or not method.startswith(PREFIX):
            return handler
        self._handlers[method] = handler = handler._replace(
            request_deserializer=_tolerant(handler.request_deserializer)
        )
        return handler


def check_decoded(request: object) -> None:
    """Raises InvalidArgumentError for a request that could not be decoded."""
    if isinstance(request, DecodeError):
        raise InvalidArgumentError(f"the request cannot be decoded: {request}")


def _tolerant(deserialize: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def decode(raw: bytes) -> Any:
        try:
            return deserialize(raw)
        except DecodeError as error:
            return error

    return decode
