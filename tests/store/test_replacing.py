"""A data directory whose content was being replaced: any start goes on with it, and nobody takes it for damage."""

from __future__ import annotations

from pathlib import Path

import pytest

from vecmem.errors import UnavailableError
from vecmem.log.record import Record
from vecmem.store.recovery import recover
from vecmem.store.replacing import RESTORED, RESTORING, is_being_replaced, lock_of
from vecmem.store.state_machine import COMMAND_RECORD
from vecmem.store.v1 import command_pb2
from vecmem.store.verify import verify_data_directory


def write(directory: Path, count: int) -> None:
    recovered = recover(directory)
    command = command_pb2.Command(time_unix_ms=1)
    command.hold_lease.node = "node"
    recovered.log.append([Record(COMMAND_RECORD, command.SerializeToString())] * count, 0)
    recovered.log.close()


def last_sequence(directory: Path) -> int:
    recovered = recover(directory)
    recovered.log.close()
    return recovered.log.last_sequence


@pytest.mark.parametrize("taken", [(), ("log",), ("log", "checkpoints")])
def test_what_is_whole_takes_the_place_of_what_was_there(tmp_path: Path, taken: tuple[str, ...]) -> None:
    data_dir = tmp_path / "data"
    write(data_dir, 3)
    write(data_dir / RESTORED, 5)
    for name in taken:  # as far as an earlier start had come
        (data_dir / name).rename(tmp_path / f"old-{name}")
        (data_dir / RESTORED / name).rename(data_dir / name)
    with pytest.raises(UnavailableError, match="the next start of the node completes it"):
        verify_data_directory(data_dir)
    assert last_sequence(data_dir) == 5
    assert not is_being_replaced(data_dir)
    assert verify_data_directory(data_dir).damage == []


def test_what_is_not_whole_is_removed(tmp_path: Path) -> None:
    write(tmp_path, 3)
    write(tmp_path / RESTORING, 5)
    assert last_sequence(tmp_path) == 3
    assert not is_being_replaced(tmp_path)


def test_it_waits_for_nobody_who_is_at_it(tmp_path: Path) -> None:
    write(tmp_path, 3)
    write(tmp_path / RESTORED, 5)
    lock = lock_of(tmp_path)
    with pytest.raises(UnavailableError, match="is open in this process already"):
        recover(tmp_path)
    lock.release()
    assert last_sequence(tmp_path) == 5
