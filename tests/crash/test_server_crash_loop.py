"""A real server under kill -9: every acknowledged write is there, every other one wholly or not at all, and once.

All rounds use one data directory. A round kills the server while it takes writes, while it opens the directory, while it
writes a checkpoint, or ends it with SIGTERM in the middle of writes; then it starts again and is compared with the model.
`--rounds N` and `--seed S` choose another length and repeat a run.
"""

from __future__ import annotations

import random
import shutil
import statistics
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from tests.crash.key_workload import COLLECTION, KeyWriter, create_collection
from tests.crash.traffic import Connection, Traffic, seed_of
from tests.crash.workload import Operation, Writer
from tests.support.server import ServerProcess
from vecmem.log.rocks_verify import verify_rocks_log
from vecmem.v1 import pipeline_pb2, pipeline_pb2_grpc, points_pb2

ARGUMENTS = ["--checkpoint-log-bytes", "60000", "--log-retention-bytes", "0", "--checkpoint-idle-seconds", "0.3"]


class Loop:
    """One data directory, its server and its writers."""

    def __init__(
        self, directory: Path, rng: random.Random, *, writers: int = 3, size: int = 1, dimension: int = 16
    ) -> None:
        self.rng = rng
        self.server = ServerProcess(directory / "data", arguments=ARGUMENTS)
        self.checkpoints = self.server.data_dir / "checkpoints"
        self.writers = [Writer(n, rng.randrange(2**32), size=size, dimension=dimension) for n in range(writers)]
        self.key_writers = [KeyWriter(n, rng.randrange(2**32)) for n in range(writers)]
        self.events: Counter[str] = Counter()

    def round(self) -> None:
        """Write, die in some way, come back, compare."""
        way = self.rng.choice(
            [self._kill_writing, self._kill_writing, self._kill_opening, self._kill_in_checkpoint, self._stop]
        )
        with Connection(self.server.address) as connection:
            traffic = Traffic([*self.writers, *self.key_writers], connection)
            way(connection)
            traffic.end()
        self.events[way.__name__.strip("_")] += 1
        assert verify_rocks_log(self.server.data_dir / "log").damage == []
        self.server.start()
        self.check()

    def check(self) -> None:
        """Compare the running server with all that its writers know."""
        with Connection(self.server.address) as connection:
            info = connection.info()
            self.events["recovered from a checkpoint"] += bool(info.recovery.checkpoint_sequence)
            self.events["records trimmed"] += info.log_first_sequence > 1
            assert not [note for note in info.recovery.notes if "checkpoint" in note], info.recovery.notes
            self.events["pending"] += sum(writer.pending is not None for writer in self.writers)
            self.events["keys pending"] += sum(writer.pending is not None for writer in self.key_writers)
            for writer in self.writers:
                writer.check(connection)
            for key_writer in self.key_writers:
                key_writer.check(connection)
            assert connection.names() == {COLLECTION, *(name for writer in self.writers for name in writer.state)}

    def _kill_writing(self, _: Connection) -> None:
        time.sleep(self.rng.uniform(0.01, 0.8))
        self.server.kill()

    def _kill_opening(self, connection: Connection) -> None:
        """After a crash, some starts that die before they are ready."""
        self._kill_writing(connection)
        for _ in range(self.rng.randint(1, 3)):
            with self.server.log_path.open("ab") as log:
                opening = subprocess.Popen(self.server.command(), stdout=subprocess.DEVNULL, stderr=log)
            time.sleep(self.rng.uniform(0.0, 1.0))
            opening.kill()
            opening.wait()

    def _kill_in_checkpoint(self, connection: Connection) -> None:
        """Ask for a checkpoint, and kill the server shortly after its temporary directory has come up."""
        time.sleep(self.rng.uniform(0.05, 0.3))
        asking = threading.Thread(target=_ask_for_checkpoint, args=(connection,))
        asking.start()
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline and asking.is_alive():
            if any(name.startswith("tmp-") for name in _names(self.checkpoints)):
                self.events["died with a checkpoint under way"] += 1
                time.sleep(self.rng.choice([0, 0.001, 0.005, 0.02, 0.05]))
                break
        self.server.kill()
        asking.join()

    def _stop(self, _: Connection) -> None:
        time.sleep(self.rng.uniform(0.01, 0.5))
        self.server.stop()


def _ask_for_checkpoint(connection: Connection) -> None:
    try:
        connection.checkpoint()
    except grpc.RpcError:
        return  # the server was killed, as it should be


def _names(directory: Path) -> list[str]:
    return [child.name for child in directory.iterdir()]


def run_loop(loop: Loop, rounds: int) -> None:
    loop.server.start()
    try:
        with Connection(loop.server.address) as connection:
            create_collection(connection)
        for number in range(rounds):
            try:
                loop.round()
            except Exception as error:
                error.add_note(f"in round {number}, after {dict(loop.events)}; {loop.server.last_words()}")
                raise
        loop.server.stop()
    finally:
        if loop.server.running:
            loop.server.kill()
    recall = statistics.fmean(recall for writer in loop.writers for recall in writer.recalls)
    acknowledged_count = sum(writer.acknowledged_count for writer in loop.writers)
    print(dict(loop.events), f"{acknowledged_count} writes acknowledged, recall {recall:.3f}")
    assert recall > 0.9
    assert all(writer.acknowledged_count for writer in [*loop.writers, *loop.key_writers])
    leftovers = [name for name in _names(loop.checkpoints) if not name.startswith("checkpoint-")]
    assert leftovers == []


def test_nothing_acknowledged_is_lost_whenever_the_server_dies(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    rounds = pytestconfig.getoption("--rounds", default=None) or 12
    run_loop(Loop(tmp_path, random.Random(seed_of(pytestconfig))), rounds)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_soak_with_more_data(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    rounds = pytestconfig.getoption("--rounds", default=None) or 200
    loop = Loop(tmp_path, random.Random(seed_of(pytestconfig)), writers=4, size=8, dimension=48)
    run_loop(loop, rounds)


@pytest.fixture
def grown(tmp_path: Path) -> Iterator[tuple[ServerProcess, Writer]]:
    """A running server to which one writer has written something."""
    writer = Writer(0, seed=5)
    with ServerProcess(tmp_path / "data", arguments=ARGUMENTS) as server:
        with Connection(server.address) as connection:
            for _ in range(20):
                writer.step(connection)
        yield server, writer


def test_the_check_notices_a_server_that_forgets(tmp_path: Path, grown: tuple[ServerProcess, Writer]) -> None:
    """Canary: a data directory from before some acknowledged writes is found out."""
    server, writer = grown
    server.kill()
    shutil.copytree(server.data_dir, tmp_path / "old")
    server.start()
    with Connection(server.address) as connection:
        for _ in range(3):
            writer.step(connection)
        writer.check(connection)
    server.kill()
    shutil.rmtree(server.data_dir)
    (tmp_path / "old").rename(server.data_dir)
    server.start()
    with Connection(server.address) as connection, pytest.raises(AssertionError, match="other points"):
        writer.check(connection)


@pytest.mark.parametrize("part", ["half", "twice", "lost"])
def test_the_check_notices_keys_that_are_half_there_twice_or_lost(
    grown: tuple[ServerProcess, Writer], part: str
) -> None:
    """Canary: half of a pipeline, a pipeline applied under another request id as well, and an acknowledged write undone."""
    server, _ = grown
    writer = KeyWriter(7, seed=3)
    with Connection(server.address) as connection:
        create_collection(connection)
        other = KeyWriter(7, seed=4)
        writer.step(connection)
        pending = writer._next_pipeline()
        del pending.operations[:]
        for key in (b"1", b"2"):
            pending.operations.add().add_integer.key = writer.prefix + b"counter" + key
            pending.operations[-1].add_integer.delta = 1
        other.pending = pipeline_pb2.PipelineRequest()
        other.pending.CopyFrom(pending)
        other.pending.write.request_id = "another"
        if part == "half":
            del other.pending.operations[1:]
        if part == "lost":
            other.pending.operations[0].delete_keys.keys.append(min(writer.values))
        stub = pipeline_pb2_grpc.PipelineServiceStub(connection.channel)
        stub.Pipeline(other.pending, timeout=60)
        if part != "lost":
            writer.pending = pending
        with pytest.raises(
            AssertionError, match={"half": "half of", "twice": "other results", "lost": "other keys"}[part]
        ):
            writer.check(connection)


@pytest.mark.parametrize("part", ["half", "twice"])
def test_the_check_notices_what_is_half_there_or_there_twice(grown: tuple[ServerProcess, Writer], part: str) -> None:
    """Canary: of a pending batch only some points are there; a pending write was applied under another request id."""
    server, writer = grown
    pending = writer._upsert(writer.main)
    for point in pending.request.points:
        point.ClearField("expected_version")
    another = pending.request.points.add()
    another.CopyFrom(pending.request.points[0])
    another.id = "another"
    writer.pending = pending
    sent = points_pb2.UpsertRequest()
    sent.CopyFrom(pending.request)
    sent.write.request_id = "other"
    if part == "half":
        del sent.points[-1]
    with Connection(server.address) as connection:
        Operation("Upsert", sent, pending.effect).send(connection)
        with pytest.raises(AssertionError, match="other points" if part == "half" else "and again"):
            writer.check(connection)
