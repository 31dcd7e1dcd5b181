"""The server process: recover, listen, serve until SIGTERM, drain, exit.

`serve` listens only when the data is whole and every answer is possible, and returns only when every call was answered or
its grace was over, a last checkpoint is written and the log is closed.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import importlib.metadata
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, cast

import grpc
import uvloop
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from threadpoolctl import threadpool_limits

from vecmem.clock import Clock, SystemClock
from vecmem.cluster.joining import recover_node
from vecmem.config import Settings
from vecmem.errors import ConfigurationError
from vecmem.server.admin_servicer import AdminServicer, ServerFacts
from vecmem.server.channel_servicer import ChannelServicer
from vecmem.server.cluster_node import join
from vecmem.server.cluster_servicer import ClusterServicer
from vecmem.server.collection_servicer import CollectionServicer
from vecmem.server.engine import Engine, make_server
from vecmem.server.keyspace_servicer import SERVICE_NAMES, add_keyspace_servicers
from vecmem.server.open_streams import OpenStreams
from vecmem.server.point_servicer import PointServicer
from vecmem.server.serializers import adapted
from vecmem.server.transaction_servicer import TransactionServicer
from vecmem.server.watch_servicer import WatchServicer
from vecmem.store.lanes import SearchLanes
from vecmem.store.recovery import Recovered
from vecmem.store.shard import Shard
from vecmem.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    channels_pb2,
    channels_pb2_grpc,
    cluster_pb2,
    cluster_pb2_grpc,
    collections_pb2,
    collections_pb2_grpc,
    points_pb2,
    points_pb2_grpc,
    transactions_pb2,
    transactions_pb2_grpc,
    watch_pb2,
    watch_pb2_grpc,
)

GC_THRESHOLDS = (50_000, 50, 100)
"""Points live in few large containers; the collector's default pace would walk over them for nothing."""
SWITCH_INTERVAL_SECONDS = 0.0005
"""How long a thread that comes back from a search waits for the interpreter beside a busy event loop; Python's default is 5 ms."""

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of glibc's mallopt."""
MALLOC_THRESHOLD_BYTES = 256 * 1024
"""Larger blocks go back to the system when freed. By itself glibc raises its bound to 32 MiB: measured, a tenth of memory after a load."""

_logger = logging.getLogger(__name__)


def serve(settings: Settings, engine: Engine, *, on_ready: Callable[[str], None], clock: Clock | None = None) -> None:
    """Serve with a gRPC engine (`engine.choose`) until SIGTERM or SIGINT; `on_ready` gets the bound address.

    Raises DataLossError and UnavailableError for the data directory, ConfigurationError for the address.
    """
    logging.basicConfig(level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    _logger.info("gRPC engine: %s", engine.description)
    _return_freed_memory()
    # One search is one thread's work; BLAS threads would fight over the cores with the other searches.
    with threadpool_limits(limits=1):
        recovered = recover_node(settings)
        gc.collect()
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)
        sys.setswitchinterval(SWITCH_INTERVAL_SECONDS)
        uvloop.run(_serve(recovered, settings, engine, on_ready, clock or SystemClock()))


async def _serve(
    recovered: Recovered, settings: Settings, engine: Engine, on_ready: Callable[[str], None], clock: Clock
) -> None:
    shard = Shard(recovered, settings, clock, leads=not settings.cluster)
    async with shard.closing():
        threads = settings.search_threads or os.cpu_count() or 1
        with _executor(threads) as search_executor:
            lanes = SearchLanes(shard, search_executor, threads)
            server = make_server(engine)
            adapted_server = adapted(server)
            streams = OpenStreams()
            node = await join(shard, settings, adapted_server)
            member = None if node is None else node.member
            methods = adapted_server if node is None else cast("grpc.aio.Server", node.server)
            started_at_unix_ms = _process_started_at_unix_ms()
            facts = ServerFacts(
                importlib.metadata.version("vecmem"),
                engine.name,
                started_at_unix_ms,
                time.time() * 1e3 - started_at_unix_ms,
            )
            collections_pb2_grpc.add_CollectionServiceServicer_to_server(CollectionServicer(shard), methods)
            points_pb2_grpc.add_PointServiceServicer_to_server(PointServicer(shard, lanes), methods)
            admin_pb2_grpc.add_AdminServiceServicer_to_server(AdminServicer(shard, facts, member), methods)
            transactions_pb2_grpc.add_TransactionServiceServicer_to_server(TransactionServicer(shard), methods)
            watch_pb2_grpc.add_WatchServiceServicer_to_server(WatchServicer(shard, streams), methods)
            channels_pb2_grpc.add_ChannelServiceServicer_to_server(ChannelServicer(shard, streams), methods)
            add_keyspace_servicers(shard, methods)
            view = None if node is None else node.view
            cluster_pb2_grpc.add_ClusterServiceServicer_to_server(ClusterServicer(shard, view, None), methods)
            if node is not None:
                node.server.finish()
            names = [
                module.DESCRIPTOR.services_by_name[service].full_name
                for module, service in (
                    (collections_pb2, "CollectionService"),
                    (points_pb2, "PointService"),
                    (transactions_pb2, "TransactionService"),
                    (watch_pb2, "WatchService"),
                    (channels_pb2, "ChannelService"),
                    (cluster_pb2, "ClusterService"),
                    (admin_pb2, "AdminService"),
                )
            ]
            names += SERVICE_NAMES
            healthy = _Health(streams)
            health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
            reflection.enable_server_reflection((*names, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
            for name in ("", *names):
                await healthy.set(name, health_pb2.HealthCheckResponse.SERVING)
            address = await _listen(server, settings.listen)
            stop = asyncio.Event()
            for signal_number in (signal.SIGTERM, signal.SIGINT):
                asyncio.get_running_loop().add_signal_handler(signal_number, stop.set)
            on_ready(address)
            running: asyncio.Task[None] | None = None
            if node is not None:
                running = asyncio.create_task(node.run(settings.advertise or address), name="take part in the cluster")
                running.add_done_callback(lambda _: stop.set())
            await stop.wait()
            _logger.info("draining, for %g s at most", settings.grace_seconds)
            await healthy.enter_graceful_shutdown()
            shard.end_waiting()
            if node is not None and running is not None:
                await node.leave(running)
            await streams.stop(server, settings.grace_seconds)


class _Health(health.aio.HealthServicer):  # type: ignore[misc]  # the library has no types
    """As the library has it; whoever watches is let go at the end."""

    def __init__(self, streams: OpenStreams) -> None:
        super().__init__()
        self._streams = streams

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Any) -> None:  # noqa: N802
        """See the library."""
        with self._streams.open():
            await super().Watch(request, context)


def _return_freed_memory() -> None:
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return
    for parameter in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):
        mallopt(parameter, MALLOC_THRESHOLD_BYTES)


@contextmanager
def _executor(threads: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that search; at the end of the block what nobody waits for any more is not begun."""
    executor = ThreadPoolExecutor(threads, "vecmem-search")
    try:
        yield executor
    finally:
        executor.shutdown(cancel_futures=True)


async def _listen(server: grpc.aio.Server, listen: str) -> str:
    host = listen.rpartition(":")[0]
    try:
        port = server.add_insecure_port(listen)
    except RuntimeError as error:
        raise ConfigurationError(f"cannot listen on {listen}: {error}", key="listen") from error
    await server.start()
    return f"{host}:{port}"


def _process_started_at_unix_ms() -> int:
    try:
        clock_ticks = os.sysconf("SC_CLK_TCK")
        with open("/proc/self/stat") as stat:
            ticks = int(stat.read().rpartition(")")[2].split()[19])
        uptime_seconds = time.clock_gettime(time.CLOCK_BOOTTIME)
        return int((time.time() - (uptime_seconds - ticks / clock_ticks)) * 1000)
    except (OSError, AttributeError):
        # No /proc: this module was imported about when the process started.
        return _IMPORTED_AT_UNIX_MS


_IMPORTED_AT_UNIX_MS = int(time.time() * 1000)
