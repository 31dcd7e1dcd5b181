"""Plain unary calls, 32 in flight on one connection, from h2load, a load generator in C: what a client in C, Go or Rust sees.

Three calls, on each gRPC engine: the standard health check, which does nothing; Get of one point; Query with 10 hits and their
payloads, the same query each time. Every request is sent through the stubs first and has to be answered well, since h2load sees only HTTP
status codes. Rounds take turns, and the median counts. h2load comes with nghttp2 (Debian: nghttp2-client); without it nothing is
measured and `parameters.skipped` says so.
"""

from __future__ import annotations

import re
import shutil
import statistics
import struct
import subprocess
from typing import TYPE_CHECKING, Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from bench.engines.vecmem_server import COLLECTION, Vecmem
from bench.measure import K
from bench.report import Report, note
from bench.scenarios.common import add_common_arguments, begin, engines_of, place
from vecmem.v1 import common_pb2, points_pb2, points_pb2_grpc

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

    from bench.datasets import Dataset

PROGRAM: Final = "h2load"
IN_FLIGHT: Final = 32
ROUNDS: Final = 3
WARM_UP_CALLS: Final = 500
SECONDS_MAX: Final = 300
_FINISHED: Final = re.compile(r"finished in [^,]+, ([\d.]+) req/s")
_STATUSES: Final = re.compile(r"status codes: (\d+) 2xx")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_common_arguments(parser, both_grpc_engines=True)
    parser.set_defaults(grpc_engine="both")
    parser.add_argument("--calls", type=int, default=20_000, help="of each kind and round")


def run(arguments: argparse.Namespace) -> Report:
    """One server, started again with the other engine."""
    report, dataset = begin("rpc", arguments, in_flight=IN_FLIGHT, calls=arguments.calls)
    program = shutil.which(PROGRAM)
    if program is None:
        report.parameters["skipped"] = {PROGRAM: "not installed; it comes with nghttp2 (Debian: nghttp2-client)"}
        note(f"{PROGRAM} is not installed: nothing is measured")
        return report
    served: dict[str, str] = {}
    with place(arguments.work_dir) as here:
        first, *others = engines_of(arguments.grpc_engine)
        with Vecmem(here, grpc_engine=first) as engine:
            engine.load(dataset)
            engine.client.create_checkpoint(timeout_seconds=600)
            _measure(report, "vecmem", engine, dataset, here.directory, program, arguments.calls)
            served["vecmem"] = engine.server.grpc_engine
            for other in (name for name in others if name != engine.server.grpc_engine):
                engine.restart(dataset.queries[0], K, flags=("--grpc-engine", other))
                system = f"vecmem-{other}"
                served[system] = engine.server.grpc_engine
                _measure(report, system, engine, dataset, here.directory, program, arguments.calls)
    report.parameters["grpc_engines"] = served
    return report


def _measure(
    report: Report, system: str, engine: Vecmem, dataset: Dataset, directory: Path, program: str, calls: int
) -> None:
    frames = {
        "empty": ("/grpc.health.v1.Health/Check", health_pb2.HealthCheckRequest().SerializeToString()),
        "get": ("/vecmem.v1.PointService/Get", _get(dataset).SerializeToString()),
        "query": ("/vecmem.v1.PointService/Query", _query(dataset).SerializeToString()),
    }
    _check_answers(engine.server.address, dataset)
    paths: dict[str, Path] = {}
    for name, (_, message) in frames.items():
        paths[name] = directory / f"{name}.frame"
        # A gRPC frame: not compressed, the length, the message.
        paths[name].write_bytes(struct.pack(">BI", 0, len(message)) + message)
    rates: dict[str, list[float]] = {name: [] for name in frames}
    for round_number in range(ROUNDS + 1):
        for name, (method, _) in frames.items():
            count = calls if round_number else min(WARM_UP_CALLS, calls)
            measured = load(program, engine.server.address, method, paths[name], count)
            if round_number:
                rates[name].append(measured)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    for name, value in medians.items():
        report.add(system, f"{name}_calls_per_second_{IN_FLIGHT}_in_flight", value, "1/s")
    for name in ("get", "query"):
        report.add(system, f"{name}_to_empty_call_rate_ratio", medians[name] / medians["empty"], "ratio")


def load(program: str, address: str, method: str, frame: Path, calls: int) -> float:
    """Calls a second. Raises RuntimeError unless every call was answered with HTTP status 200."""
    command = [program, "-n", str(calls), "-c", "1", "-m", str(IN_FLIGHT), "-t", "1", "-d", str(frame)]
    command += ["-H", "content-type: application/grpc", "-H", "te: trailers", f"http://{address}{method}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SECONDS_MAX)
    finished, statuses = _FINISHED.search(done.stdout), _STATUSES.search(done.stdout)
    if done.returncode or finished is None or statuses is None or int(statuses[1]) != calls:
        message = f"{PROGRAM} exited {done.returncode} after {method}:\n{done.stdout[-1_000:]}{done.stderr[-1_000:]}"
        raise RuntimeError(message)
    return float(finished[1])


def _get(dataset: Dataset) -> points_pb2.GetRequest:
    return points_pb2.GetRequest(collection=COLLECTION, ids=[dataset.ids[0]])


def _query(dataset: Dataset) -> points_pb2.QueryRequest:
    packed = dataset.queries[0].astype("<f4").tobytes()
    vector = common_pb2.DenseVector(packed=packed, data_type=common_pb2.DATA_TYPE_FLOAT32)
    nearest = points_pb2.VectorInput(vector=common_pb2.Vector(dense=vector))
    return points_pb2.QueryRequest(query=points_pb2.Query(collection=COLLECTION, nearest=nearest, limit=K))


def _check_answers(address: str, dataset: Dataset) -> None:
    with grpc.insecure_channel(address) as channel:
        health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=60)
        points = points_pb2_grpc.PointServiceStub(channel)
        found = points.Get(_get(dataset), timeout=60)
        hits = points.Query(_query(dataset), timeout=60)
    wanted = min(K, len(dataset))
    if health.status != health_pb2.HealthCheckResponse.SERVING or len(found.points) != 1 or len(hits.hits) != wanted:
        message = f"health {health.status}, {len(found.points)} of 1 point, {len(hits.hits)} of {wanted} hits"
        raise RuntimeError(message)
