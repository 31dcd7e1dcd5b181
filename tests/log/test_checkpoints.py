"""Checkpoints: published whole or not at all, every byte checked when read, leftovers of a crash removed."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import google_crc32c
import numpy as np
import pytest

from vecmem.errors import CheckpointError, CorruptionError, UnsupportedFormatError
from vecmem.log.checkpoints import (
    CheckpointManifest,
    CheckpointStore,
    load_manifest,
    read_chunks,
    read_into,
    read_verified,
    seal,
    sequence_of,
    verify_file,
)

VECTORS = np.arange(1200, dtype=np.float32).reshape(100, 12)


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "checkpoints")


def write_checkpoint(store: CheckpointStore, sequence: int) -> Path:
    temporary = store.begin(sequence)
    (temporary / "points").mkdir()
    (temporary / "points" / "vectors").write_bytes(VECTORS.tobytes())
    (temporary / "payloads").write_bytes(b"payload" * 1000)
    (temporary / "empty").touch()
    seal(temporary, sequence=sequence, running_crc=0xABCD, metadata={"collections": ["a", "ü"], "count": 2**60})
    return store.publish(temporary)


def check_all_files(path: Path) -> CheckpointManifest:
    manifest = load_manifest(path)
    for name in manifest.files:
        verify_file(manifest, name)
    return manifest


def test_what_was_sealed_is_read_back(store: CheckpointStore) -> None:
    path = write_checkpoint(store, 1234)
    assert path.name == "checkpoint-00000000000000001234"
    assert (store.list(), sequence_of(path)) == ([path], 1234)
    manifest = check_all_files(path)
    assert (manifest.sequence, manifest.running_crc) == (1234, 0xABCD)
    assert manifest.metadata == {"collections": ["a", "ü"], "count": 2**60}
    assert set(manifest.files) == {"points/vectors", "payloads", "empty"}
    assert manifest.files["payloads"].crc32c == google_crc32c.value(b"payload" * 1000)
    assert read_verified(manifest, "payloads") == b"payload" * 1000
    assert b"".join(read_chunks(manifest, "payloads")) == b"payload" * 1000
    target = np.zeros_like(VECTORS)
    read_into(manifest, "points/vectors", [target[:1], target[1:]])
    assert np.array_equal(target, VECTORS)
    with pytest.raises(CheckpointError):
        read_into(manifest, "points/vectors", [np.zeros(7)])
    with pytest.raises(CorruptionError, match="no such file"):
        read_verified(manifest, "../secret")


def test_any_flipped_bit_and_any_cut_is_noticed(store: CheckpointStore) -> None:
    """Every bit of the manifest; a sample of bits and cuts of each file, through each way to read it."""
    seed = random.randrange(2**32)
    print("seed", seed)
    rng = random.Random(seed)
    path = write_checkpoint(store, 5)
    manifest_file = path / "MANIFEST"
    whole = manifest_file.read_bytes()
    for bit in range(len(whole) * 8):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        manifest_file.write_bytes(damaged)
        with pytest.raises(CorruptionError):
            load_manifest(path)
    for cut in range(len(whole)):
        manifest_file.write_bytes(whole[:cut])
        with pytest.raises(CorruptionError):
            load_manifest(path)
    manifest_file.write_bytes(whole)
    manifest = check_all_files(path)
    for name in ("points/vectors", "payloads"):
        file = path / name
        content = file.read_bytes()
        for _ in range(20):
            damaged = bytearray(content)
            damaged[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
            for wrong in (bytes(damaged), content[: rng.randrange(len(content))], content + b"\0"):
                file.write_bytes(wrong)
                with pytest.raises(CorruptionError, match=name):
                    verify_file(manifest, name)
                with pytest.raises(CorruptionError, match=name):
                    read_verified(manifest, name)
                with pytest.raises(CorruptionError, match=name):
                    read_into(manifest, name, [np.zeros(len(content), np.uint8)])
        file.unlink()
        with pytest.raises(CorruptionError, match="missing"):
            verify_file(manifest, name)


def test_a_manifest_that_names_a_file_outside_is_refused(store: CheckpointStore) -> None:
    path = write_checkpoint(store, 5)
    for name in ("../payloads", "/etc/hostname"):
        rewrite_manifest(path, b'"payloads"', f'"{name}"'.encode())
        with pytest.raises(CorruptionError, match="outside"):
            load_manifest(path)
        rewrite_manifest(path, f'"{name}"'.encode(), b'"payloads"')


def test_a_newer_format_is_refused_and_not_called_damage(store: CheckpointStore) -> None:
    path = write_checkpoint(store, 5)
    rewrite_manifest(path, b'"format_version":1', b'"format_version":2')
    with pytest.raises(UnsupportedFormatError, match="format version 2"):
        load_manifest(path)


def test_a_checkpoint_under_another_sequences_name_is_refused(store: CheckpointStore) -> None:
    path = write_checkpoint(store, 5)
    moved = path.rename(path.with_name("checkpoint-00000000000000000006"))
    with pytest.raises(CorruptionError, match="sequence 5"):
        load_manifest(moved)


def rewrite_manifest(path: Path, old: bytes, new: bytes) -> None:
    body = (path / "MANIFEST").read_bytes().partition(b"\n")[2][:-1].replace(old, new)
    (path / "MANIFEST").write_bytes(b"%08x\n" % google_crc32c.value(body) + body + b"\n")


def test_the_newest_are_kept_and_leftovers_removed(store: CheckpointStore) -> None:
    paths = [write_checkpoint(store, sequence) for sequence in (3, 20, 100)]
    (store.begin(101) / "half").write_bytes(b"written")
    (store.path / "notes.txt").touch()
    assert store.list() == paths[::-1]
    assert store.remove_older_than(keep=2) == paths[:1]
    assert store.list() == [paths[2], paths[1]]
    assert len(store.remove_temporary()) == 1
    assert {child.name for child in store.path.iterdir()} == {paths[1].name, paths[2].name, "notes.txt"}
    check_all_files(paths[1])


def test_what_is_pinned_stays_when_the_checkpoint_goes(store: CheckpointStore) -> None:
    path = write_checkpoint(store, 5)
    pinned = store.pin(path)
    store.remove([path])
    assert store.list() == []
    check_all_files(pinned)
    with pytest.raises(OSError, match="No such file"):
        store.pin(path)
    assert store.remove_temporary() == [pinned]


def test_publishing_needs_a_seal(store: CheckpointStore) -> None:
    temporary = store.begin(7)
    with pytest.raises(CorruptionError, match="manifest is missing"):
        store.publish(temporary)
    seal(temporary, sequence=7, running_crc=0, metadata={})
    published = store.publish(temporary)
    assert store.list() == [published]


def test_a_later_checkpoint_of_the_same_sequence_goes_first(store: CheckpointStore) -> None:
    """It may replace a damaged one, or hold more of the graphs; the names stay in order whatever is removed."""
    paths = [write_checkpoint(store, 7) for _ in range(3)]
    assert store.list() == paths[::-1]
    assert {sequence_of(path) for path in paths} == {7}
    store.remove([paths[0], paths[1], paths[1]])
    paths.append(write_checkpoint(store, 7))
    other = write_checkpoint(store, 6)
    assert store.list() == [paths[3], paths[2], other]


def test_a_forked_child_may_seal(store: CheckpointStore) -> None:
    """In a fresh process with one thread, as a server forks: os.fork beside other threads warns since Python 3.12."""
    code = (
        "import os, sys; from pathlib import Path; from vecmem.log.checkpoints import *\n"
        "temporary = Path(sys.argv[1])\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    (temporary / 'file').write_bytes(b'content')\n"
        "    seal(temporary, sequence=9, running_crc=1, metadata={})\n"
        "    os._exit(0)\n"
        "sys.exit(os.waitpid(child, 0)[1])\n"
    )
    temporary = store.begin(9)
    subprocess.run([sys.executable, "-c", code, temporary], check=True)
    assert read_verified(check_all_files(store.publish(temporary)), "file") == b"content"


@pytest.mark.parametrize(
    ("failpoint", "published"),
    [
        ("before_checkpoint_seal", 0),
        ("after_checkpoint_seal", 0),
        ("before_checkpoint_rename", 0),
        ("after_checkpoint_rename", 1),
    ],
)
def test_death_on_the_way_leaves_a_whole_checkpoint_or_none(tmp_path: Path, failpoint: str, published: int) -> None:
    code = (
        "import sys; from pathlib import Path; from vecmem.log.checkpoints import *\n"
        "store = CheckpointStore(Path(sys.argv[1]))\n"
        "temporary = store.begin(9)\n"
        "(temporary / 'file').write_bytes(b'content')\n"
        "seal(temporary, sequence=9, running_crc=1, metadata={})\n"
        "store.publish(temporary)\n"
    )
    environment = {**os.environ, "VECMEM_FAILPOINT": failpoint}
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "store"], env=environment, check=False)
    assert done.returncode == -9
    store = CheckpointStore(tmp_path / "store")
    assert len(store.list()) == published
    assert len(store.remove_temporary()) == 1 - published
    for path in store.list():
        check_all_files(path)
