"""Damaged data directories: the data comes back whole by another way, or what cannot be had is named and the rest serves."""

from __future__ import annotations

import asyncio
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.store.support import apply, create, delete_collection, drained, dump, shard_at, upsert
from vecmem.errors import (
    CheckpointError,
    CollectionDamagedError,
    CorruptionError,
    UnavailableError,
    UnsupportedFormatError,
)
from vecmem.log import checkpoints, record
from vecmem.log.record import Record
from vecmem.log.rocks import RocksLog
from vecmem.store.recovery import recover
from vecmem.store.state_machine import COMMAND_RECORD, StateMachine

GRAPH, FLAT = 1, 2
"""Uids of the two collections."""


async def fill(data_dir: Path, *, retention_bytes: int, checkpoint_count: int = 3) -> dict[str, Any]:
    """A directory with a graph collection, a flat one, some checkpoints and a tail; returns its state."""
    async with shard_at(data_dir, log_retention_bytes=retention_bytes) as shard:
        await shard.write(create("graph", named=["other"]))
        await shard.write(create("flat", flat=True))
        for number in range(checkpoint_count + 1):
            for uid in (GRAPH, FLAT):
                points = {f"p{i}": b'{"n":%d}' % number for i in range(number, number + 30)}
                await shard.write(upsert(uid, points, seed=10 * number + uid, request_id=f"r{number}-{uid}"))
            if number < checkpoint_count:
                await drained(shard)
                await shard.checkpoint()
        return dump(shard.state)


@pytest.fixture(scope="module")
def trimmed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Two checkpoints, and a log that begins behind the older one."""
    return _filled(tmp_path_factory.mktemp("trimmed"), 0)


@pytest.fixture(scope="module")
def untrimmed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Two checkpoints, and a log that holds everything."""
    return _filled(tmp_path_factory.mktemp("untrimmed"), 2**40)


def _filled(directory: Path, retention_bytes: int) -> tuple[Path, dict[str, Any]]:
    return directory / "data", asyncio.run(fill(directory / "data", retention_bytes=retention_bytes))


@pytest.fixture
def copy(tmp_path: Path, trimmed: tuple[Path, dict[str, Any]]) -> Path:
    return Path(shutil.copytree(trimmed[0], tmp_path / "data"))


def published(data_dir: Path) -> list[Path]:
    return list(checkpoints.CheckpointStore.published(data_dir / "checkpoints"))


def files_of(checkpoint: Path) -> list[str]:
    return sorted(path.relative_to(checkpoint).as_posix() for path in checkpoint.rglob("*") if path.is_file())


def flip(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def truncate(path: Path, rng: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size)])


def remove(path: Path, _: random.Random) -> None:
    path.unlink()


def damage_both(data_dir: Path, name: str) -> dict[Path, bytes]:
    """Flip a bit in a file of every checkpoint; returns what all their files hold then."""
    for checkpoint in published(data_dir):
        flip(checkpoint / name, random.Random(1))
    return {path: path.read_bytes() for path in (data_dir / "checkpoints").rglob("*") if path.is_file()}


def recovered_dump(data_dir: Path) -> tuple[dict[str, Any], list[str], int]:
    found = recover(data_dir)
    found.log.close()
    return dump(found.state), found.recovery.notes, found.recovery.checkpoint_sequence


def make_unreadable(path: Path, _: random.Random) -> None:
    """A link to itself: every attempt to open it fails with an OSError, as on a disk that cannot read."""
    path.unlink()
    path.symlink_to(path.name)


@pytest.mark.parametrize("damage", [flip, truncate, remove, make_unreadable])
def test_any_damage_to_the_newest_checkpoint_is_made_good(
    tmp_path: Path, trimmed: tuple[Path, dict[str, Any]], damage: Any
) -> None:
    """Each file in turn: the older checkpoint and the log give the same state, and a note names the damage."""
    seed = random.randrange(2**32)
    print("seed", seed)
    rng = random.Random(seed)
    source, expected = trimmed
    names = files_of(published(source)[0])
    assert len(names) >= 10
    assert {"MANIFEST", "state.bin", "collections/1/0.graph", "collections/2/0.arena"} <= set(names)
    for name in names:
        data_dir = Path(shutil.copytree(source, tmp_path / "data"))
        newest, older = published(data_dir)
        if not (newest / name).stat().st_size:
            continue
        damage(newest / name, rng)
        state, notes, sequence = recovered_dump(data_dir)
        assert state == expected, name
        assert sequence == checkpoints.sequence_of(older), name
        assert [note for note in notes if newest.name in note and name.split("/")[-1] in note], (name, notes)
        shutil.rmtree(data_dir)


@pytest.mark.parametrize("name", ["MANIFEST", "state.bin", "collections/1/0.graph"])
def test_with_the_whole_log_no_checkpoint_is_needed(
    tmp_path: Path, untrimmed: tuple[Path, dict[str, Any]], name: str
) -> None:
    """All checkpoints are damaged, but the log begins at its first record: all of it is replayed."""
    data_dir = Path(shutil.copytree(untrimmed[0], tmp_path / "data"))
    damage_both(data_dir, name)
    state, notes, sequence = recovered_dump(data_dir)
    assert state == untrimmed[1]
    assert sequence == 0
    assert len([note for note in notes if "is damaged" in note]) == 2


async def test_a_collection_damaged_everywhere_is_set_aside_and_the_others_serve(
    copy: Path, trimmed: tuple[Path, dict[str, Any]]
) -> None:
    held = damage_both(copy, "collections/1/0.arena")
    async with shard_at(copy, checkpoint_on_exit=True) as shard:
        state = dump(shard.state)
        assert state["collections"] == {"flat": trimmed[1]["collections"]["flat"]}
        with pytest.raises(CollectionDamagedError, match=r"0\.arena"):
            shard.state.collection("graph")
        assert [note for note in shard.recovery.notes if "'graph' is damaged and set aside" in note]
        await shard.write(upsert(FLAT, {"new": b""}))
        with pytest.raises(CheckpointError, match="'graph'"):
            await shard.checkpoint()
    # Not a byte of any checkpoint has changed, at the exit neither; and the next start finds the same.
    assert {path: path.read_bytes() for path in (copy / "checkpoints").rglob("*") if path.is_file()} == held
    async with shard_at(copy) as shard:
        assert "new" in shard.state.collection("flat").row_of
        assert list(shard.state.damaged) == ["graph"]
        # Given up by its operator, it holds up checkpoints no longer.
        await shard.write(delete_collection(GRAPH))
        await shard.checkpoint()
        assert not set(published(copy)) & {path.parent for path in held}
    state, notes, _ = recovered_dump(copy)
    assert (sorted(state["collections"]), state["damaged"], notes) == (["flat"], {}, [])


def test_no_readable_manifest_and_a_trimmed_log_are_refused(copy: Path) -> None:
    damage_both(copy, "MANIFEST")
    with pytest.raises(CorruptionError, match=r"the log begins at sequence \d+.*MANIFEST") as refused:
        recover(copy)
    for checkpoint in published(copy):
        assert checkpoint.name in refused.value.message
    # The refusal let go of the directory and changed nothing: mended, it opens.
    assert len(published(copy)) == 2


def test_no_checkpoint_at_all_and_a_trimmed_log_are_refused(copy: Path) -> None:
    shutil.rmtree(copy / "checkpoints")
    with pytest.raises(CorruptionError, match="records are missing in between"):
        recover(copy)


def test_a_log_that_ends_before_its_checkpoint_is_refused(copy: Path, tmp_path: Path) -> None:
    """Somebody put an older log back, or it lost its end: going on would give sequences a second meaning."""
    shutil.rmtree(copy / "log")
    log = RocksLog.open(copy / "log")
    log.append([Record(COMMAND_RECORD, create("c").SerializeToString())], 0)
    log.close()
    with pytest.raises(CorruptionError, match="ends at sequence 1"):
        recover(copy)


def test_a_checkpoint_of_another_log_is_refused(untrimmed: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """Same sequences, other records: only the running CRC tells."""
    data_dir = Path(shutil.copytree(untrimmed[0], tmp_path / "data"))
    found = recover(data_dir)
    records = [entry.record for entry in found.log.read(1)]
    found.log.close()
    shutil.rmtree(data_dir / "log")
    log = RocksLog.open(data_dir / "log")
    other = upsert(GRAPH, {"another": b""}, time_unix_ms=1)
    records[2] = Record(COMMAND_RECORD, other.SerializeToString())
    log.append(records, 0)
    log.close()
    with pytest.raises(CorruptionError, match="do not belong together"):
        recover(data_dir)


@pytest.mark.parametrize("what", ["record", "type", "command"])
def test_what_a_newer_version_wrote_is_refused(tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record for newer readers, a record type or a command that this version does not know: never passed over."""
    newer = {
        "record": Record(COMMAND_RECORD, create("c").SerializeToString(), writer_version=record.WRITER_VERSION + 1),
        "type": Record(COMMAND_RECORD + 1, b"new"),
        "command": Record(COMMAND_RECORD, b"\x08\x01\xea\x3f\x00"),
    }[what]
    log = RocksLog.open(tmp_path / "data" / "log")
    with monkeypatch.context() as patched:
        patched.setattr(record, "WRITER_VERSION", record.WRITER_VERSION + 1)
        log.append([newer], 0)
    log.close()
    with pytest.raises(UnsupportedFormatError):
        recover(tmp_path / "data")


async def test_a_damaged_checkpoint_stays_until_a_new_one_is_published(tmp_path: Path) -> None:
    """A new one of the same sequence even; the one that loaded is kept as the second, and the log reaches back to it."""
    async with shard_at(tmp_path) as shard:
        await shard.write(create("c", flat=True))
        for number in range(3):
            await shard.write(upsert(1, {f"p{number}": b""}, seed=number))
            await shard.checkpoint()
        expected = dump(shard.state)
    newest, older = published(tmp_path)
    flip(newest / "collections/1/0.arena", random.Random(3))
    async with shard_at(tmp_path) as shard:
        assert (shard.recovery.checkpoint_sequence, shard.applied_sequence) == (3, 4)
        assert newest.exists()
        assert (await shard.checkpoint()).sequence == 4
        again, second = published(tmp_path)
        assert again.name == f"{newest.name}-001"
        assert second == older
        assert shard.log.first_sequence == 4
    assert recovered_dump(tmp_path) == (expected, [], 4)


async def test_a_directory_in_use_is_refused(tmp_path: Path) -> None:
    async with shard_at(tmp_path / "data") as shard:
        await shard.write(create("c"))
        with pytest.raises(UnavailableError, match="open in this process already"):
            recover(tmp_path / "data")
        await shard.write(upsert(1, {"a": b""}))


async def test_leftovers_of_a_checkpoint_are_removed(copy: Path, trimmed: tuple[Path, dict[str, Any]]) -> None:
    leftover = copy / "checkpoints" / "tmp-00000000000000000009-abc"
    shutil.copytree(published(copy)[0], leftover)
    assert recovered_dump(copy)[0] == trimmed[1]
    assert not leftover.exists()


def test_replay_from_the_beginning_is_the_fold(untrimmed: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """What a shard with its groups, slices and reclaiming came to is what the plain fold over its log gives."""
    data_dir = Path(shutil.copytree(untrimmed[0], tmp_path / "data"))
    log = RocksLog.open(data_dir / "log")
    state = StateMachine()
    for entry in log.read(1):
        apply(state, entry)
    log.close()
    assert dump(state) == untrimmed[1]
