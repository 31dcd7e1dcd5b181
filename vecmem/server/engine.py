"""The two gRPC engines, and which of them serves.

grpcio, and pygrpc-native, which does HTTP/2 and framing in Rust outside the interpreter lock. The same servicers, written for grpc.aio,
run on both and nothing may depend on which it is. Methods with a stream of requests go to a grpcio server behind the native one.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from importlib.metadata import version
from typing import cast

import grpc

from vecmem import limits
from vecmem.config import GRPC_ENGINES, Settings, is_loopback, split_address
from vecmem.errors import ConfigurationError

AUTO, GRPCIO, NATIVE = GRPC_ENGINES
NATIVE_MODULE = "pygrpc_native.aio"
NATIVE_DISTRIBUTION = "pygrpc-native"

MESSAGE_OVERHEAD_BYTES = 1024 * 1024
CALLS_PER_CONNECTION_MAX = 1_000
"""Calls in flight on one connection; clients keep further ones back. A client that reads no replies is owed no more of them than this."""
KEEPALIVE_INTERVAL_MS_MIN = 10_000
KEEPALIVE_MS = 2 * 60 * 1_000
"""How long nothing comes from a client before the server asks whether it is still there."""
KEEPALIVE_TIMEOUT_MS = 20 * 1_000
"""How long it may take to answer before its connection is closed and its calls are cancelled."""
CONNECTION_AGE_MS_MAX = 30 * 60 * 1_000
"""Then a connection takes no new calls and clients open another, which lets a load balancer spread them anew."""
CONNECTION_AGE_GRACE_MS = 30 * 1_000
"""For the calls in flight on such a connection; a stream that goes on longer ends with UNAVAILABLE and is taken up again."""


@dataclass(frozen=True, slots=True)
class Engine:
    """One of the two: `name` is GRPCIO or NATIVE; `description` is for the log and says what it does not do."""

    name: str
    description: str


def choose(settings: Settings) -> Engine:
    """The engine that the settings ask for. Raises ConfigurationError for native where it cannot be loaded.

    Left to itself it is native where that is installed and none but this machine's own programs reach the listener: native reads and
    decompresses a message whole before it looks at the limit, so whoever reaches it can have it take any amount of memory.
    """
    grpcio = f"grpcio {grpc.__version__}"
    if settings.grpc_engine == GRPCIO:
        return Engine(GRPCIO, grpcio)
    if settings.grpc_engine == AUTO and not is_loopback(split_address(settings.listen)[0]):
        return Engine(
            GRPCIO, f"{grpcio}, since {settings.listen} is not loopback and native reads messages of any size"
        )
    try:
        importlib.import_module(NATIVE_MODULE)
    except ImportError as error:
        if settings.grpc_engine == NATIVE:
            raise ConfigurationError(
                f"the native gRPC engine cannot be loaded: {error}; pip install 'vecmem[native]', or leave "
                "grpc_engine at auto",
                key="grpc_engine",
            ) from error
        return Engine(GRPCIO, f"{grpcio}, since native cannot be loaded: {error}")
    return Engine(
        NATIVE,
        f"native ({NATIVE_DISTRIBUTION} {version(NATIVE_DISTRIBUTION)}), without: an end of connections by age, limits on clients' "
        f"pings, deflate, a bound on messages while they are read, a sure end of connections whose client "
        f"has vanished; UpsertStream and reflection go to {grpcio} behind it",
    )


def make_server(engine: Engine) -> grpc.aio.Server:
    """A server without methods or address."""
    if engine.name == GRPCIO:
        return grpc.aio.server(options=[*_common_options(), *_grpcio_options()])
    native = importlib.import_module(NATIVE_MODULE)
    return cast("grpc.aio.Server", native.server(options=_common_options()))


def _common_options() -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", limits.MESSAGE_BYTES_MAX),
        ("grpc.max_send_message_length", limits.MESSAGE_BYTES_MAX + MESSAGE_OVERHEAD_BYTES),
        # Two servers on one port would each hold half of the calls.
        ("grpc.so_reuseport", 0),
        ("grpc.max_concurrent_streams", CALLS_PER_CONNECTION_MAX),
        ("grpc.keepalive_time_ms", KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        ("grpc.keepalive_permit_without_calls", 1),
    ]


def _grpcio_options() -> list[tuple[str, int]]:
    return [
        ("grpc.http2.ping_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        ("grpc.http2.min_ping_interval_without_data_ms", KEEPALIVE_INTERVAL_MS_MIN),
        ("grpc.max_connection_age_ms", CONNECTION_AGE_MS_MAX),
        ("grpc.max_connection_age_grace_ms", CONNECTION_AGE_GRACE_MS),
    ]
