"""A server on a disk that fails, fills up or loses power: what was acknowledged stays, and reads go on while writes cannot."""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from tests.crash.harness import Machine
from tests.crash.traffic import Connection, Traffic
from tests.crash.workload import Writer
from tests.support.server import ServerProcess
from vecmem.log.rocks_verify import verify_rocks_log

ARGUMENTS = ["--checkpoint-log-bytes", "60000", "--log-retention-bytes", "0", "--no-checkpoint-on-exit"]


def reason_of(error: grpc.RpcError) -> str:
    """ErrorInfo.reason of a failed call."""
    metadata = dict(error.trailing_metadata())
    status = status_pb2.Status.FromString(metadata["grpc-status-details-bin"])
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    return info.reason


@pytest.mark.parametrize("failure", ["eio", "enospc"])
def test_writes_stop_and_reads_go_on_when_the_disk_fails(tmp_path: Path, failure: str) -> None:
    machine = Machine(tmp_path)
    data_dir = machine.root / "data"
    server = ServerProcess(data_dir, arguments=["--no-checkpoint-on-exit"], environment=machine.environment())
    writer = Writer(0, seed=21)
    with server, Connection(server.address) as connection:
        for _ in range(30):
            writer.step(connection)
        machine.command(failure)
        for _ in range(2):
            with pytest.raises(grpc.RpcError) as stopped:
                writer._upsert(writer.main).send(connection)
            assert stopped.value.code() is grpc.StatusCode.UNAVAILABLE
            assert reason_of(stopped.value) == "WRITES_STOPPED"
        machine.command("")
        with pytest.raises(grpc.RpcError) as stopped:  # the disk is well again, but what it holds is not known
            writer._upsert(writer.main).send(connection)
        assert reason_of(stopped.value) == "WRITES_STOPPED"
        assert "append to the log failed" in connection.info().read_only_reason
        # Comparing reads and searches everything, and the model has nothing pending.
        writer.check(connection)
        server.kill()
    machine.power_cut()
    with ServerProcess(data_dir) as again, Connection(again.address) as connection:
        observed = writer._observe(connection)
        # The refused writes may have reached the disk before it failed, but nothing that was acknowledged may be gone.
        for name, points in writer.state.items():
            for point_id, point in points.items():
                assert observed[name][point_id].version >= point.version
                if observed[name][point_id].version <= writer.last_sequence:
                    assert observed[name][point_id] == point
        assert connection.info().read_only_reason == ""


def test_a_failed_checkpoint_disk_does_not_stop_the_server(tmp_path: Path) -> None:
    """The disk is full while a checkpoint is written: that fails by name, and without the failure the next one works."""
    machine = Machine(tmp_path)
    server = ServerProcess(machine.root / "data", environment=machine.environment())
    writer = Writer(0, seed=22)
    with server, Connection(server.address) as connection:
        for _ in range(10):
            writer.step(connection)
        machine.command("enospc")
        with pytest.raises(grpc.RpcError) as failed:
            connection.checkpoint()
        assert reason_of(failed.value) == "CHECKPOINT_FAILED"
        machine.command("")
        writer.step(connection)
        assert connection.checkpoint().size_bytes > 0
        assert [path.name[:5] for path in (machine.root / "data" / "checkpoints").iterdir()] == ["check"]
        writer.check(connection)


def test_power_cuts_lose_nothing_acknowledged(tmp_path: Path) -> None:
    """Kill, drop every byte and name that was not synced, start again: also in checkpoints and trims, on one directory."""
    seed = random.randrange(2**32)
    print("seed", seed)
    rng = random.Random(seed)
    machine = Machine(tmp_path)
    writers = [Writer(number, rng.randrange(2**32)) for number in range(2)]
    data_dir = machine.root / "data"
    for number in range(6):
        server = ServerProcess(data_dir, arguments=ARGUMENTS, environment=machine.environment())
        with server, Connection(server.address) as connection:
            for writer in writers:
                writer.check(connection)
            traffic = Traffic(writers, connection)
            # The first death comes right after the first writes: the directory itself must be durable by then.
            time.sleep(0.3 if number == 0 else rng.uniform(0.3, 1.0))
            if number % 2:
                published = threading.Event()
                asking = threading.Thread(target=_checkpoints_until_killed, args=(connection, published))
                asking.start()
                assert published.wait(60)
                time.sleep(rng.uniform(0.0, 0.4))
                server.kill()
                asking.join()
            else:
                server.kill()
            traffic.end()
        machine.power_cut()
        assert verify_rocks_log(data_dir / "log").damage == []
    with ServerProcess(data_dir) as server, Connection(server.address) as connection:
        assert connection.info().recovery.checkpoint_sequence
        for writer in writers:
            assert writer.acknowledged_count
            writer.check(connection)


def _checkpoints_until_killed(connection: Connection, published: threading.Event) -> None:
    try:
        while True:
            connection.checkpoint()
            published.set()
    except grpc.RpcError:
        return
