"""A server that dies at each failpoint: nothing acknowledged is lost, and the next start leaves nothing lying about.

Those in the writing of a checkpoint lie in a child of the server: there the server lives on and says that the checkpoint failed.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import get_args

import grpc
import pytest

from tests.crash.traffic import Connection
from tests.crash.workload import Writer
from tests.support.server import ServerProcess
from vecmem.log import failpoints
from vecmem.log.rocks_verify import verify_rocks_log

IN_THE_CHILD = {"before_checkpoint_seal", "after_checkpoint_seal"}
WITH_A_CHECKPOINT = {
    "before_memtable_flush",
    "after_memtable_flush",
    "before_checkpoint_rename",
    "after_checkpoint_rename",
}
ARGUMENTS = ["--log-retention-bytes", "0", "--no-checkpoint-on-exit"]


def server_dying_at(data_dir: Path, failpoint: str) -> ServerProcess:
    return ServerProcess(
        data_dir, arguments=ARGUMENTS, environment={**os.environ, failpoints.ENVIRONMENT_VARIABLE: failpoint}
    )


def write_until_it_dies(server: ServerProcess, writer: Writer, *, checkpoints: bool) -> None:
    with Connection(server.address) as connection:
        try:
            for number in range(200):
                writer.step(connection)
                if checkpoints and number % 5 == 4:
                    connection.checkpoint()
        except grpc.RpcError:
            assert server.wait(30) == -9
            return
    raise AssertionError("the server did not come to its failpoint")


def check_after_restart(data_dir: Path, writer: Writer) -> None:
    assert verify_rocks_log(data_dir / "log").damage == []
    with ServerProcess(data_dir, arguments=ARGUMENTS) as server, Connection(server.address) as connection:
        assert [path.name for path in (data_dir / "checkpoints").iterdir() if path.name.startswith("tmp-")] == []
        writer.check(connection)
        writer.step(connection)
        connection.checkpoint()
        writer.check(connection)


@pytest.mark.parametrize(
    "failpoint", sorted(set(get_args(failpoints.Failpoint)) - IN_THE_CHILD - {"before_tail_repair"})
)
def test_death_at_a_failpoint(tmp_path: Path, failpoint: str) -> None:
    writer = Writer(0, seed=11)
    data_dir = tmp_path / "data"
    count = 1 if failpoint in WITH_A_CHECKPOINT else 17
    server = server_dying_at(data_dir, f"{failpoint}:{count}")
    server.start()
    write_until_it_dies(server, writer, checkpoints=failpoint in WITH_A_CHECKPOINT)
    assert writer.acknowledged_count
    check_after_restart(data_dir, writer)


def test_death_before_a_torn_tail_is_cut(tmp_path: Path) -> None:
    """A write came half to the disk; the start that would repair the tail dies; the one after it repairs it."""
    writer = Writer(0, seed=12)
    data_dir = tmp_path / "data"
    with ServerProcess(data_dir, arguments=ARGUMENTS) as server:
        with Connection(server.address) as connection:
            for _ in range(20):
                writer.step(connection)
            newest = max((data_dir / "log" / "rocksdb").glob("*.log"), key=lambda path: path.name)
            whole_bytes = newest.stat().st_size
            # As if the power had gone before this one was acknowledged: it is pending again.
            writer.pending = writer._upsert(writer.main)
            writer.pending.send(connection)
        server.kill()
    torn_bytes = (newest.stat().st_size - whole_bytes) // 2
    os.truncate(newest, whole_bytes + torn_bytes)
    with pytest.raises(RuntimeError, match="exited with -9"):
        server_dying_at(data_dir, "before_tail_repair").start()
    with ServerProcess(data_dir, arguments=ARGUMENTS) as server, Connection(server.address) as connection:
        assert connection.info().recovery.torn_tail_bytes == torn_bytes
        writer.check(connection)
    check_after_restart(data_dir, writer)


@pytest.mark.parametrize("failpoint", sorted(IN_THE_CHILD))
def test_death_of_the_checkpoint_child(tmp_path: Path, failpoint: str) -> None:
    """The checkpoint fails by name, serving goes on, nothing is left over, and without the failpoint the next one works."""
    writer = Writer(0, seed=13)
    data_dir = tmp_path / "data"
    with server_dying_at(data_dir, failpoint) as server, Connection(server.address) as connection:
        for _ in range(10):
            writer.step(connection)
        with pytest.raises(grpc.RpcError) as failed:
            connection.checkpoint()
        assert failed.value.code() is grpc.StatusCode.INTERNAL
        assert "was not written" in (failed.value.details() or "")
        assert list((data_dir / "checkpoints").iterdir()) == []
        for _ in range(10):
            writer.step(connection)
        writer.check(connection)
    check_after_restart(data_dir, writer)
