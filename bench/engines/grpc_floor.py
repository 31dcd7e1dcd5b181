"""Empty gRPC calls to the same server: what no query over this transport can beat."""

from __future__ import annotations

import asyncio
import time

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from bench.report import Report, percentile_ms


def measure(report: Report, address: str, *, calls: int, callers: int) -> None:
    """Call the standard health service, alone and from many callers."""
    with grpc.insecure_channel(address) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        request = health_pb2.HealthCheckRequest()
        latencies: list[float] = []
        for _ in range(calls):
            began_at = time.perf_counter()
            check(request)
            latencies.append(time.perf_counter() - began_at)
    warm = latencies[calls // 10 :]
    report.add("grpcio", "empty_call_ms_p50_1_caller", percentile_ms(warm, 50), "ms")
    report.add("grpcio", "empty_call_ms_p99_1_caller", percentile_ms(warm, 99), "ms")
    report.add(
        "grpcio", f"empty_calls_per_second_{callers}_callers", asyncio.run(_rate(address, calls, callers)), "1/s"
    )


async def _rate(address: str, calls: int, callers: int) -> float:
    async with grpc.aio.insecure_channel(address) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        request = health_pb2.HealthCheckRequest()
        left = iter(range(calls))

        async def call() -> None:
            for _ in left:
                await check(request)

        await check(request)
        began_at = time.perf_counter()
        await asyncio.gather(*(call() for _ in range(callers)))
        return calls / (time.perf_counter() - began_at)
