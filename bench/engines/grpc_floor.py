"""Empty gRPC calls to the same server from the same kind of client: what no query over this transport can beat."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import grpc
import numpy as np
from grpc_health.v1 import health_pb2, health_pb2_grpc

from bench.measure import calls_by_tasks, run_tasks

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from bench.engines import Vector

_NOTHING = np.empty((1, 0), np.float32)


class Floor:
    """A channel to a server's standard health service."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._channel = grpc.insecure_channel(address)
        self._check = health_pb2_grpc.HealthStub(self._channel).Check
        self._request = health_pb2.HealthCheckRequest()
        self._check(self._request, wait_for_ready=True, timeout=60)

    def alone(self, calls: int) -> list[float]:
        """Seconds that each of so many calls took, one at a time."""
        latencies: list[float] = []
        for _ in range(calls):
            began_at = time.perf_counter()
            self._check(self._request)
            latencies.append(time.perf_counter() - began_at)
        return latencies

    def rate(self, calls: int, callers: int) -> float:
        """Calls a second of so many asyncio tasks on one channel."""

        async def measured() -> float:
            async with grpc.aio.insecure_channel(self._address) as channel:
                check = health_pb2_grpc.HealthStub(channel).Check

                async def one(_query: Vector) -> None:
                    await check(self._request)

                return await calls_by_tasks(one, _NOTHING, callers, calls)

        return run_tasks(measured())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._channel.close()
