"""Minutes of mixed load over each gRPC engine: nothing acknowledged is lost, and nothing that the server holds grows without end.

Writers, readers, callers that cancel, callers with hardly any time, and connections that come and go, through the raw API. The seed of a failure is printed.
"""

from __future__ import annotations

import os
import random
import threading
import time
from pathlib import Path

import grpc
import numpy as np
import pytest

from tests.support.api import COSINE, Api, connect, packed, params, point, query_message
from tests.support.server import ServerProcess
from vecmem.v1 import points_pb2, points_pb2_grpc

SECONDS = float(os.environ.get("SOAK_SECONDS", "120"))
DIMENSION = 32
IDS_EACH = 2_000
"""Points of each writer: it writes them again and again, so that what the server has to hold stays the same."""
EXPECTED = {
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    # A channel that is closed, or calls over the bound of a connection.
    grpc.StatusCode.UNAVAILABLE,
}


class Load:
    """What the threads share: when to end, what was acknowledged, and what went wrong."""

    def __init__(self, address: str, seed: int) -> None:
        self.address = address
        self.seed = seed
        self.until = time.monotonic() + SECONDS
        self.acknowledged: dict[str, int] = {}
        self.counts: dict[str, int] = {}
        self.errors: list[BaseException] = []

    def count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1

    def guard(self, work, number: int) -> None:
        try:
            work(self, random.Random(f"{self.seed}/{work.__name__}/{number}"), number)
        except BaseException as error:  # noqa: BLE001 - the test raises it
            self.errors.append(error)
            self.until = 0.0

    @property
    def goes_on(self) -> bool:
        return time.monotonic() < self.until


def vector(rng: random.Random) -> list[float]:
    return [rng.gauss(0, 1) for _ in range(DIMENSION)]


def write(load: Load, rng: random.Random, number: int) -> None:
    """Points of its own, each with the round that wrote it; only what was answered counts as acknowledged."""
    with connect(load.address) as api:
        for turn in range(1, 1_000_000):
            if not load.goes_on:
                return
            names = [f"w{number}-{rng.randrange(IDS_EACH)}" for _ in range(rng.choice([1, 1, 1, 20, 100]))]
            api.upsert("c", [point(name, packed(vector(rng)), payload_json=b'{"turn":%d}' % turn) for name in names])
            load.acknowledged.update(dict.fromkeys(names, turn))
            load.count("upserts")


def read(load: Load, rng: random.Random, number: int) -> None:
    """Queries and gets; hits are in order and no fewer than asked for once there are enough points."""
    with connect(load.address) as api:
        while load.goes_on:
            hits = api.query("c", vector(rng), limit=10)
            scores = [hit.score for hit in hits]
            assert scores == sorted(scores, reverse=True)
            load.count("queries")
            known = dict(load.acknowledged)
            if known:
                name, turn = rng.choice(list(known.items()))
                found = api.get("c", name)
                assert found, f"{name} was acknowledged and is gone"
                assert int(found[0].payload_json[8:-1]) >= turn
                load.count("gets")


def abandon(load: Load, rng: random.Random, number: int) -> None:
    """Calls that are cancelled, or whose deadline is nearly over when they are made, on connections that do not last."""
    while load.goes_on:
        with grpc.insecure_channel(load.address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            stub = points_pb2_grpc.PointServiceStub(channel)
            for _ in range(rng.randrange(1, 60)):
                request = points_pb2.QueryBatchRequest(
                    queries=[query_message("c", vector(rng)) for _ in range(rng.choice([1, 32]))]
                )
                call = stub.QueryBatch.future(request, timeout=rng.choice([0.001, 0.01, 5]))
                if rng.random() < 0.5:
                    time.sleep(rng.random() * 0.005)
                    call.cancel()
                if rng.random() < 0.5:
                    error = None if call.cancelled() else call.exception()
                    assert error is None or error.code() in EXPECTED, error
                load.count("abandoned")


def held(pid: int) -> tuple[int, int, int]:
    """Resident bytes, open file descriptors and threads of a process."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
    return int(status["VmRSS"].split()[0]) * 1024, len(list(Path(f"/proc/{pid}/fd").iterdir())), int(status["Threads"])


def everything(api: Api) -> dict[str, int]:
    found: dict[str, int] = {}
    token = ""
    while True:
        request = points_pb2.ScrollRequest(collection="c", page_size=5_000, page_token=token)
        request.with_payload.all = True
        reply = api.call("Scroll", request)
        found |= {one.id: int(one.payload_json[8:-1]) for one in reply.points}
        token = reply.next_page_token
        if not token:
            return found


@pytest.mark.long
@pytest.mark.timeout(SECONDS + 240)
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("engine", ["native", "grpcio"])
def test_mixed_load_for_minutes(engine: str, tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    with ServerProcess(tmp_path / "data", arguments=["--grpc-engine", engine]) as server:
        with connect(server.address) as api:
            api.create("c", params(DIMENSION, COSINE))
        load = Load(server.address, seed)
        workers = [(write, 0), (write, 1), (read, 0), (read, 1), (abandon, 0), (abandon, 1)]
        threads = [threading.Thread(target=load.guard, args=(work, number)) for work, number in workers]
        for thread in threads:
            thread.start()
        measured = []
        while load.goes_on:
            time.sleep(SECONDS / 24)
            measured.append(held(server.pid))
        for thread in threads:
            thread.join()
        if load.errors:
            raise load.errors[0]
        print(
            engine, load.counts, "resident MiB, descriptors, threads:", [(rss >> 20, *rest) for rss, *rest in measured]
        )
        assert min(load.counts[what] for what in ("upserts", "queries", "gets", "abandoned")) > 100
        # By the middle all points are there; what comes later replaces them.
        early, late = np.array(measured[len(measured) // 2 - 3 :][:3]), np.array(measured[-3:])
        assert late[:, 0].mean() < 1.25 * early[:, 0].mean() + 32 * 1024 * 1024, "resident memory grows"
        assert late[:, 1].max() < early[:, 1].max() + 40, "file descriptors stay open"
        assert late[:, 2].max() < early[:, 2].max() + 8, "threads stay"
        with connect(server.address) as api:
            before = everything(api)
        server.kill()
        server.start()
        with connect(server.address) as api:
            after = everything(api)
        assert after == before
        for name, turn in load.acknowledged.items():
            assert after[name] >= turn, f"{name}: {after.get(name)} instead of {turn} or later"
        words = server.log_path.read_text(errors="replace")
        assert "Traceback" not in words, words[-4_000:]
