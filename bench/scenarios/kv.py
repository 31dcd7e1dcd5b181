"""Keys: pipelined and single writes and reads, memory and restart, and reads beside a wave of expiries.

Redis, where redis-server is installed, runs in the same way with `appendfsync always`, which keeps what was acknowledged as vecmem does.
Pipelines have PIPELINE operations and PIPELINES_IN_FLIGHT are in flight, from asyncio clients. Single calls go through the generated
stubs, in turns with empty calls and with bare fsyncs in the same directory.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Final

import grpc

from bench.engines.grpc_floor import Floor
from bench.measure import run_tasks
from bench.report import Report, note, percentile_ms
from bench.scenarios.common import add_common_arguments, place
from bench.server import Server, dying_with_parent
from vecmem.v1 import keys_pb2, strings_pb2, strings_pb2_grpc
from vecmem_client import AsyncClient, Client, sorted_sets, strings

if TYPE_CHECKING:
    import argparse
    from collections.abc import Awaitable, Callable, Iterator
    from typing import Self

VALUE: Final = b"v" * 100
PIPELINE: Final = 500
PIPELINES_IN_FLIGHT: Final = 4
WARM_UP_CALLS: Final = 200
MEGABYTE: Final = 1_000_000
REDIS: Final = "redis-server"
RANGE: Final = 100
MEMBERS_PER_CALL: Final = 1_000
SEED: Final = 7
EXPIRY_DELAY_SECONDS: Final = 4
"""Between the load of the keys that expire and their second."""
EXPIRY_SECONDS: Final = 4.0
"""How long reads are measured from that second on; by then all of them are removed."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_common_arguments(parser, queries=3_000, dataset=False)
    parser.add_argument("--operations", type=int, default=200_000, help="pipelined, of each kind")
    parser.add_argument("--keys", type=int, default=1_000_000, help="held while memory and restart are measured")
    parser.add_argument("--members", type=int, default=1_000_000, help="of the sorted set whose ranges are read")
    parser.add_argument("--expiring", type=int, default=100_000, help="keys that expire in one second")


def run(arguments: argparse.Namespace) -> Report:
    """One server for all of it, and redis-server for pipelines."""
    report = Report(
        "kv",
        {
            "value_bytes": len(VALUE),
            "operations": arguments.operations,
            "operations_per_pipeline": PIPELINE,
            "pipelines_in_flight": PIPELINES_IN_FLIGHT,
            "keys": arguments.keys,
            "expiring": arguments.expiring,
            "members": arguments.members,
            "calls": arguments.queries,
        },
    )
    with place(arguments.work_dir) as here:
        with _server(here.directory / "vecmem", arguments.grpc_engine) as server:
            report.parameters["grpc_engine"] = server.grpc_engine
            _pipelines(report, "vecmem", _Vecmem(server.address), arguments.operations)
            _single_calls(report, server, here.directory, arguments.queries)
            _expiries(report, server, arguments.expiring, arguments.queries)
            _sorted_set(report, server, arguments.members, arguments.queries)
        with _server(here.directory / "large", arguments.grpc_engine) as server:
            _memory_and_restart(report, server, arguments.keys)
        program = shutil.which(REDIS)
        if program is None:
            report.parameters["skipped"] = {REDIS: "not installed (Debian: redis-server)"}
            note(f"{REDIS} is not installed")
        else:
            with _redis(program, here.directory) as socket_path:
                _pipelines(report, "redis", _Redis(socket_path), arguments.operations)
    return report


@contextmanager
def _server(data_dir: Path, grpc_engine: str) -> Iterator[Server]:
    with Server(data_dir, "--grpc-engine", grpc_engine) as server:
        server.start()
        yield server


# -- pipelines -------------------------------------------------------------------------------------------------------------


class _Vecmem:
    def __init__(self, address: str) -> None:
        self._address = address

    async def rate(self, kind: str, count: int) -> float:
        """Operations a second."""
        async with AsyncClient(self._address, timeout_seconds=120) as client:

            async def pipeline(first: int) -> None:
                numbers = range(first, first + PIPELINE)
                if kind == "set":
                    operations: list[Any] = [strings.set(_key(number), VALUE) for number in numbers]
                else:
                    operations = [strings.get(_key(number)) for number in numbers]
                results = await client.pipeline(operations)
                assert all(result.written for result in results) if kind == "set" else results == [VALUE] * PIPELINE

            return await _in_flight(pipeline, count)


class _Redis:
    def __init__(self, socket_path: str) -> None:
        self._socket_path = socket_path

    async def rate(self, kind: str, count: int) -> float:
        """Operations a second."""
        from redis.asyncio import Redis

        async with Redis(unix_socket_path=self._socket_path) as client:

            async def pipeline(first: int) -> None:
                async with client.pipeline(transaction=False) as gathered:
                    for number in range(first, first + PIPELINE):
                        if kind == "set":
                            gathered.set(_key(number), VALUE)
                        else:
                            gathered.get(_key(number))
                    results = await gathered.execute()
                assert all(results) if kind == "set" else results == [VALUE] * PIPELINE

            return await _in_flight(pipeline, count)


def _key(number: int) -> bytes:
    return b"key:%09d" % number


async def _in_flight(pipeline: Callable[[int], Awaitable[None]], count: int) -> float:
    """Operations a second, `count` of them, with PIPELINES_IN_FLIGHT; after a warm-up."""

    async def caller(shared: Iterator[int]) -> None:
        for first in shared:
            await pipeline(first)

    async def run_all(total: int) -> float:
        shared = iter(range(0, total, PIPELINE))
        began_at = time.perf_counter()
        await asyncio.gather(*(caller(shared) for _ in range(PIPELINES_IN_FLIGHT)))
        return len(range(0, total, PIPELINE)) * PIPELINE / (time.perf_counter() - began_at)

    await run_all(PIPELINES_IN_FLIGHT * PIPELINE)
    return await run_all(count)


def _pipelines(report: Report, system: str, engine: _Vecmem | _Redis, count: int) -> None:
    for kind in ("set", "get"):
        report.add(system, f"pipelined_{kind}_operations_per_second", run_tasks(engine.rate(kind, count)), "1/s")


@contextmanager
def _redis(program: str, directory: Path) -> Iterator[str]:
    """A redis-server that syncs its log before it answers; yields its socket."""
    # A path of a socket has at most 107 bytes, and the directory is where the data of both lie.
    work = directory / "redis"
    work.mkdir()
    command = [program, "--port", "0", "--unixsocket", "s", "--dir", str(work), "--save", ""]
    command += ["--appendonly", "yes", "--appendfsync", "always", "--logfile", str(work / "log")]
    process = subprocess.Popen(dying_with_parent(command), cwd=work, process_group=0)
    link = os.open(work, os.O_RDONLY | os.O_DIRECTORY)
    try:
        socket_path = Path(f"/proc/self/fd/{link}/s")
        deadline = time.monotonic() + 60
        while not socket_path.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                message = f"{REDIS} did not start: {(work / 'log').read_text(encoding='utf-8')}"
                raise RuntimeError(message)
            time.sleep(0.02)
        yield str(socket_path)
    finally:
        os.close(link)
        process.terminate()
        process.wait()


# -- single calls ----------------------------------------------------------------------------------------------------------


def _single_calls(report: Report, server: Server, directory: Path, count: int) -> None:
    """Latency of each kind of call, taken in turns so that a noisy moment meets all of them."""
    with grpc.insecure_channel(server.address) as channel, Floor(server.address) as floor, _File(directory) as file:
        stub = strings_pb2_grpc.StringServiceStub(channel)
        setting = strings_pb2.SetStringRequest(key=b"single", value=VALUE)
        getting = strings_pb2.GetStringRequest(key=b"single")
        stub.SetString(setting, wait_for_ready=True, timeout=60)
        kinds: dict[str, Callable[[], object]] = {
            "empty_call": lambda: floor.alone(1),
            "get": lambda: stub.GetString(getting),
            "set": lambda: stub.SetString(setting),
            "fsync": file.write_and_sync,
        }
        seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
        for number in range(count + WARM_UP_CALLS):
            for kind, call in kinds.items():
                began_at = time.perf_counter()
                call()
                if number >= WARM_UP_CALLS:
                    seconds[kind].append(time.perf_counter() - began_at)
    for kind, latencies in seconds.items():
        report.add("vecmem", f"{kind}_ms_p50", percentile_ms(latencies, 50), "ms")
        report.add("vecmem", f"{kind}_ms_p99", percentile_ms(latencies, 99), "ms")
    p50 = {kind: percentile_ms(latencies, 50) for kind, latencies in seconds.items()}
    report.add("vecmem", "get_to_empty_call_ratio", p50["get"] / p50["empty_call"], "ratio")
    report.add("vecmem", "set_to_get_plus_fsync_ratio", p50["set"] / (p50["get"] + p50["fsync"]), "ratio")


class _File:
    """A file that grows by small writes, each synced."""

    def __init__(self, directory: Path) -> None:
        self._descriptor = os.open(directory / "synced", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def write_and_sync(self) -> None:
        os.write(self._descriptor, VALUE)
        os.fdatasync(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)


# -- expiries --------------------------------------------------------------------------------------------------------------


def _expiries(report: Report, server: Server, expiring: int, count: int) -> None:
    """Reads idle, and from the second on in which many keys expire until all are removed."""
    with Client(server.address, timeout_seconds=120) as client, grpc.insecure_channel(server.address) as channel:
        stub = strings_pb2_grpc.StringServiceStub(channel)
        getting = strings_pb2.GetStringRequest(key=b"single")
        server.wait_until_idle()
        idle = [_timed(lambda: stub.GetString(getting)) for _ in range(count)]
        pending: list[Any] = []
        # As many as the load takes: none expires before all are there.
        until_seconds = expiring / 10_000 + EXPIRY_DELAY_SECONDS
        at_unix_ms = int((time.time() + until_seconds) * 1e3)
        for number in range(expiring):
            operation = strings.set(b"expiring:%d" % number, VALUE)
            operation.message.set_string.expiry.CopyFrom(keys_pb2.Expiry(at_unix_ms=at_unix_ms))
            pending.append(operation)
            if len(pending) == PIPELINE or number == expiring - 1:
                client.pipeline(pending)
                pending = []
        time.sleep(max(0.0, at_unix_ms / 1e3 - time.time()))
        beside: list[float] = []
        began_at = time.perf_counter()
        while time.perf_counter() - began_at < EXPIRY_SECONDS:
            beside.append(_timed(lambda: stub.GetString(getting)))
    for name, latencies in (("idle", idle), ("expiry", beside)):
        report.add("vecmem", f"get_ms_p99_{name}", percentile_ms(latencies, 99), "ms")
    report.add("vecmem", "get_p99_ratio_to_idle_expiry", percentile_ms(beside, 99) / percentile_ms(idle, 99), "ratio")


def _timed(call: Callable[[], object]) -> float:
    began_at = time.perf_counter()
    call()
    return time.perf_counter() - began_at


# -- a large sorted set ----------------------------------------------------------------------------------------------------


def _sorted_set(report: Report, server: Server, member_count: int, count: int) -> None:
    """Ranges of 100 by rank, at places all over the set."""
    random = Random(SEED)
    with Client(server.address, timeout_seconds=120) as client:
        for first in range(0, member_count, MEMBERS_PER_CALL):
            numbers = range(first, min(member_count, first + MEMBERS_PER_CALL))
            client.run(sorted_sets.add("board", {b"member:%d" % number: random.random() for number in numbers}))
        server.wait_until_idle()
        latencies: list[float] = []
        for _ in range(count):
            start = random.randrange(max(1, member_count - RANGE))
            operation = sorted_sets.get_range("board", sorted_sets.by_rank(start, start + RANGE - 1))
            began_at = time.perf_counter()
            found = client.run(operation)
            latencies.append(time.perf_counter() - began_at)
            assert len(found) == min(RANGE, member_count)
    for percentile in (50, 99):
        report.add("vecmem", f"sorted_set_range_of_100_ms_p{percentile}", percentile_ms(latencies, percentile), "ms")


# -- memory and restart ----------------------------------------------------------------------------------------------------


def _memory_and_restart(report: Report, server: Server, count: int) -> None:
    engine = _Vecmem(server.address)
    run_tasks(engine.rate("set", count))
    with Client(server.address, timeout_seconds=600) as client:
        client.create_checkpoint(timeout_seconds=600)
    server.wait_until_idle()
    report.add("vecmem", "rss_megabytes", server.rss_bytes() / MEGABYTE, "MB")
    server.kill()
    started_at = server.start()
    report.add("vecmem", "restart_seconds", time.perf_counter() - started_at, "s")
    with Client(server.address) as client:
        assert client.run(strings.get(_key(count - count % PIPELINE - 1))) == VALUE
    report.add("vecmem", "rss_megabytes_after_restart", server.rss_bytes() / MEGABYTE, "MB")
