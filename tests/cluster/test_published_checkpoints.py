"""Checkpoints in an object store: what is published is whole, what is not is removed, and damage is named."""

from __future__ import annotations

import base64
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.nats import ask_jetstream
from vecmem.cluster import published_checkpoints as module
from vecmem.cluster.nats_server import NatsServer, NatsServers
from vecmem.cluster.published_checkpoints import PublishedCheckpoints
from vecmem.errors import CorruptionError, UnavailableError
from vecmem.filesystem import write_durably
from vecmem.log import checkpoints
from vecmem.log.checkpoints import CheckpointManifest, CheckpointStore
from vecmem.log.nats_connection import NatsConnection
from vecmem.log.object_store import CHUNK_BYTES, ObjectStore

FILES = {"a": b"1" * 3 * CHUNK_BYTES, "deep/b": os.urandom(CHUNK_BYTES + 1), "empty": b"", "z": b"z"}


@pytest.fixture
def bucket() -> str:
    return f"test-{os.urandom(8).hex()}"


@pytest.fixture
def store(nats_server: NatsServers, bucket: str) -> Iterator[ObjectStore]:
    connection = NatsConnection(nats_server.urls)
    assert ObjectStore.open(connection, bucket, 1, create=False) is None
    found = ObjectStore.open(connection, bucket, 1, create=True)
    assert found is not None
    yield found
    connection.close()


@pytest.fixture
def sealed(tmp_path: Path) -> Callable[[int], CheckpointManifest]:
    def seal(sequence: int) -> CheckpointManifest:
        local = CheckpointStore(tmp_path / "local")
        temporary = local.begin(sequence)
        for name, content in FILES.items():
            (temporary / name).parent.mkdir(exist_ok=True)
            write_durably(temporary / name, [content])
        checkpoints.seal(temporary, sequence=sequence, running_crc=sequence + 1, metadata={})
        return checkpoints.load_manifest(local.publish(temporary))

    return seal


def nothing(_: float) -> None:
    """Do not pause."""


def interrupted_after(chunk_count: int) -> Callable[[float], None]:
    left = iter(range(chunk_count))

    def sent(_: float) -> None:
        if next(left, None) is None:
            raise UnavailableError("interrupted")

    return sent


def test_what_is_uploaded_comes_back(store, sealed, tmp_path):
    published = PublishedCheckpoints(store, "node")
    upload = published.upload(sealed(7), nothing)
    assert published.newest_first() == [upload]
    target = tmp_path / "downloaded"
    target.mkdir()
    manifest = published.download(upload, target)
    assert (manifest.sequence, manifest.running_crc) == (7, 8)
    assert {str(p.relative_to(target)) for p in target.rglob("*") if p.is_file()} == {*FILES, "MANIFEST"}
    assert {name: checkpoints.read_verified(checkpoints.load_manifest(target), name) for name in FILES} == FILES


def test_the_newest_two_are_kept(store, sealed):
    published = PublishedCheckpoints(store, "node")
    uploads = [published.upload(sealed(sequence), nothing) for sequence in (5, 900, 70)]
    assert [upload.sequence for upload in published.newest_first()] == [900, 70, 5]
    published.tidy()
    assert published.newest_first() == [uploads[1], uploads[2]]
    assert {name.rpartition("/")[0] for name in store.contents()} == {uploads[1].name, uploads[2].name}


def test_an_upload_that_was_cut_short_is_removed_by_its_node_at_once_and_by_others_in_time(store, sealed, monkeypatch):
    mine, others = PublishedCheckpoints(store, "mine"), PublishedCheckpoints(store, "others")
    with pytest.raises(UnavailableError, match="interrupted"):
        mine.upload(sealed(5), interrupted_after(2))
    assert others.newest_first() == []
    assert others.is_under_way()
    assert not mine.is_under_way()
    others.tidy()
    assert store.contents()
    mine.tidy()
    assert store.contents() == {}
    with pytest.raises(UnavailableError, match="interrupted"):
        mine.upload(sealed(6), interrupted_after(2))
    monkeypatch.setattr(module, "STALE_SECONDS", 0.0)
    assert not others.is_under_way()
    others.tidy()
    assert store.contents() == {}


def test_an_upload_whose_chunks_are_gone_does_not_count_as_published(store, sealed, nats_server, bucket):
    published = PublishedCheckpoints(store, "node")
    older, newer = published.upload(sealed(5), nothing), published.upload(sealed(6), nothing)
    token = base64.urlsafe_b64encode(f"{newer.name}/FILES".encode()).decode()
    ask_jetstream(nats_server, f"STREAM.PURGE.OBJ_{bucket}", {"filter": f"$O.{bucket}.C.{token}"})
    assert published.newest_first() == [older]
    published.tidy()
    assert {name.rpartition("/")[0] for name in store.contents()} == {older.name}


def test_a_file_that_is_damaged_here_is_not_published(store, sealed):
    manifest = sealed(5)
    (manifest.path / "z").write_bytes(b"y")
    published = PublishedCheckpoints(store, "node")
    with pytest.raises(CorruptionError, match="CRC32C"):
        published.upload(manifest, nothing)
    assert published.newest_first() == []
    published.tidy()
    assert store.contents() == {}


def test_files_that_come_back_different_are_not_published(store, sealed, monkeypatch):
    published = PublishedCheckpoints(store, "node")
    get = ObjectStore.get
    monkeypatch.setattr(ObjectStore, "get", lambda self, name: (chunk[::-1] for chunk in get(self, name)))
    with pytest.raises(CorruptionError, match=r"FILES.*file deep/b"):
        published.upload(sealed(5), nothing)
    assert published.newest_first() == []


def made(connection: NatsConnection, bucket: str) -> ObjectStore:
    store = ObjectStore.open(connection, bucket, 3, create=True)
    assert store is not None
    return store


def test_an_upload_goes_on_when_the_server_that_leads_the_bucket_dies(nats_cluster, bucket, sealed, tmp_path):
    connection = NatsConnection(nats_cluster.urls)
    # The leader of a new bucket hears of the others a moment later.
    while len((store := made(connection, bucket)).servers) < 3:
        time.sleep(0.05)
    published = PublishedCheckpoints(store, "node")
    sent = iter(range(100))

    def kill_leader(_: float) -> None:
        if next(sent) == 2:
            name = ask_jetstream(nats_cluster, f"STREAM.INFO.OBJ_{bucket}")["cluster"]["leader"]
            (leader,) = [server for server in nats_cluster.servers if server.plan.name == name]
            leader.kill()
            killed.append(leader)

    killed: list[NatsServer] = []
    try:
        upload = published.upload(sealed(5), kill_leader)
    finally:
        for server in killed:
            server.launch()
            server.wait_until_ready()
    assert killed
    target = tmp_path / "downloaded"
    target.mkdir()
    published.download(upload, target)
    for name, content in FILES.items():
        assert checkpoints.read_verified(checkpoints.load_manifest(target), name) == content
    connection.close()
