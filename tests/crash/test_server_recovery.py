"""How a server ends and comes up: last checkpoint, damaged data, a second process, checkpoints under full load."""

from __future__ import annotations

import random
import subprocess
import threading
from pathlib import Path

import grpc
import pytest

from tests.crash.test_server_failing_disk import reason_of
from tests.crash.traffic import Connection, Traffic
from tests.crash.workload import Writer, search
from tests.support.server import ServerProcess
from vecmem.log.checkpoints import CheckpointStore
from vecmem.v1 import collections_pb2, points_pb2

TRIMMING = ["--log-retention-bytes", "0", "--no-checkpoint-on-exit"]


def fill(connection: Connection, writers: list[Writer], *, checkpoints: int) -> None:
    for _ in range(checkpoints):
        for writer in writers:
            for _ in range(6):
                writer.step(connection)
        connection.checkpoint()


def flip_in_all(data_dir: Path, name: str) -> None:
    for checkpoint in CheckpointStore.published(data_dir / "checkpoints"):
        content = bytearray((checkpoint / name).read_bytes())
        content[len(content) // 2] ^= 4
        (checkpoint / name).write_bytes(content)


def test_a_stopped_server_has_taken_a_checkpoint_of_everything(tmp_path: Path) -> None:
    """SIGTERM while writes come in: exit code 0, and the next start replays nothing and has all graphs."""
    writers = [Writer(number, seed=31) for number in range(2)]
    with ServerProcess(tmp_path / "data") as server:
        with Connection(server.address) as connection:
            fill(connection, writers, checkpoints=1)
            traffic = Traffic(writers, connection)
            server.stop()
            traffic.end()
        server.start()
        with Connection(server.address) as connection:
            info = connection.info()
            assert info.recovery.replayed_record_count == 0
            assert info.recovery.checkpoint_sequence == info.log_last_sequence > 0
            for writer in writers:
                writer.check(connection)


def test_a_collection_damaged_everywhere_answers_data_loss_and_the_others_serve(tmp_path: Path) -> None:
    good, bad = writers = [Writer(number, seed=32) for number in range(2)]
    server = ServerProcess(tmp_path / "data", arguments=TRIMMING)
    with server:
        with Connection(server.address) as connection:
            fill(connection, writers, checkpoints=3)
            uid = connection.collections.GetCollection(
                collections_pb2.GetCollectionRequest(name=bad.main)
            ).collection.uid
        server.kill()
        flip_in_all(server.data_dir, f"collections/{uid}/0.arena")
        server.start()
        with Connection(server.address) as connection:
            good.check(connection)
            good.step(connection)
            described = connection.collections.GetCollection(
                collections_pb2.GetCollectionRequest(name=bad.main)
            ).collection
            assert "0.arena" in described.damage
            assert bad.main in connection.names()
            assert [note for note in connection.info().recovery.notes if bad.main in note]
            for call in (
                lambda: search(connection, bad.main, bytes(64), 3, exact=False),
                lambda: connection.points.Count(points_pb2.CountRequest(collection=bad.main)),
                lambda: connection.points.Get(points_pb2.GetRequest(collection=bad.main, ids=["p"])),
                lambda: bad._upsert(bad.main).send(connection),
            ):
                with pytest.raises(grpc.RpcError) as refused:
                    call()
                assert refused.value.code() is grpc.StatusCode.DATA_LOSS
                assert reason_of(refused.value) == "COLLECTION_DAMAGED"
            with pytest.raises(grpc.RpcError) as failed:
                connection.checkpoint()
            assert reason_of(failed.value) == "CHECKPOINT_FAILED"


def test_a_second_server_on_the_directory_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    writer = Writer(0, seed=33)
    with ServerProcess(tmp_path / "data") as server, Connection(server.address) as connection:
        fill(connection, [writer], checkpoints=1)
        second = subprocess.run(
            ServerProcess(server.data_dir).command(), capture_output=True, text=True, timeout=60, check=False
        )
        assert second.returncode != 0
        assert "in use by another process" in second.stderr
        assert "ready" not in second.stdout
        for _ in range(5):
            writer.step(connection)
        writer.check(connection)


def test_checkpoints_one_after_another_hurt_no_call(tmp_path: Path) -> None:
    """Forks beside busy gRPC threads: every write and search is answered, rightly, while checkpoints are taken."""
    seed = random.randrange(2**32)
    print("seed", seed)
    writers = [Writer(number, seed + number) for number in range(3)]
    searched = []
    done = threading.Event()
    with ServerProcess(tmp_path / "data", arguments=TRIMMING) as server, Connection(server.address) as connection:
        fill(connection, writers, checkpoints=1)

        def keep_searching() -> None:
            while not done.is_set():
                searched.append(len(search(connection, writers[0].main, b"\0\0\x80\x3f" * 16, 5, exact=False)))

        searching = threading.Thread(target=keep_searching)
        searching.start()
        before = sum(writer.acknowledged_count for writer in writers)
        traffic = Traffic(writers, connection)
        try:
            sequences = [connection.checkpoint().sequence]
            while len(set(sequences)) < 8 and searching.is_alive():
                sequences.append(connection.checkpoint().sequence)
        finally:
            done.set()
            traffic.end()
            searching.join()
        assert sequences == sorted(sequences)
        assert len(searched) > 1
        assert sum(writer.acknowledged_count for writer in writers) >= before + 7
        assert [writer.pending for writer in writers] == [None] * 3
        for writer in writers:
            writer.check(connection)
