"""A shard whose processes die, hang and run out of disk: what clients and readers see has one order, and the log says so too.

And a log service, or a node's own copy, that has lost or changed a record: the node refuses, and says where.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import grpc
import pytest

from tests.cluster.faults.fault_cluster import wait_until
from tests.cluster.faults.fault_run import check_under_faults, seed
from tests.cluster.faults.nemesis import LINK_FAULTS, PROCESS_FAULTS
from tests.cluster.support import SECONDS_MAX, Cluster, get
from tests.support.nats import ask_jetstream, servers_in
from tests.support.server import ServerProcess
from vecmem.cluster.nats_server import NatsServer
from vecmem.log.jetstream import JetStreamLog, JetStreamSettings
from vecmem.log.record import Record
from vecmem_client import Client, RetryPolicy, strings

SOAK_SECONDS = float(os.environ.get("FAULTS_SOAK_SECONDS", "1800"))
STREAM = "vecmem-vecmem-0"
RETRY = RetryPolicy(attempts_max=1_000, backoff_seconds_max=0.2)


@pytest.mark.timeout(600)
def test_a_shard_lives_through_deaths_and_pauses(tmp_path: Path) -> None:
    check_under_faults(tmp_path, seed(), PROCESS_FAULTS)


@pytest.mark.long
@pytest.mark.timeout(int(2 * SOAK_SECONDS) + 600)
@pytest.mark.parametrize("nodes_of_groups", [(3,), (2, 2)], ids=["one shard", "two shards"])
def test_soak_with_all_faults(tmp_path: Path, nodes_of_groups: Sequence[int]) -> None:
    """For FAULTS_SOAK_SECONDS, and some of them together."""
    faults = (*PROCESS_FAULTS, *LINK_FAULTS)
    check_under_faults(tmp_path, seed(), faults, nodes_of_groups=nodes_of_groups, seconds=SOAK_SECONDS)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """One node, and one NATS server."""
    with Cluster(tmp_path, nodes=1) as running:
        yield running


def write(cluster: Cluster, *values: str) -> int:
    """Write values one after the other, each under its own name; returns the last position."""
    with Client(cluster.addresses, retry=RETRY, timeout_seconds=SECONDS_MAX) as client:
        for value in values:
            client.run(strings.set(value, value))
        return client.last_position.sequence


def answers(channel: grpc.Channel, key: bytes, position: int) -> bool:
    with suppress(grpc.RpcError):
        return get(channel, key, anywhere=True, sequence=position)[0] == key
    return False


def end_of(node: ServerProcess) -> str:
    """What a node says that ends by itself, and not well."""
    assert node.wait(SECONDS_MAX) != 0
    return node.last_words()


def files_with(directory: Path, content: bytes) -> list[Path]:
    found = []
    for path in directory.rglob("*"):
        with suppress(FileNotFoundError):  # a node that runs has taken it away
            if path.is_file() and content in path.read_bytes():
                found.append(path)
    return found


def wait_for_copy(node: ServerProcess, content: bytes) -> None:
    """Return when a node's own copy of the log, which comes behind, has a record; what it holds is in no other file there."""
    wait_until(lambda: files_with(node.data_dir / "log", content), "a copy")


def change_on_disk(directory: Path, content: bytes) -> Path:
    """Change one bit of a record where files hold it. Returns one of the files."""
    found = files_with(directory, content)
    for path in found:
        data = path.read_bytes()
        place = data.index(content)
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
    return found[0]


def replace_messages(server: NatsServer, kept: Path) -> None:
    """What a server of its own accord has forgotten is gone when it comes back."""
    server.kill()
    jetstream = server.plan.directory / "jetstream"
    shutil.rmtree(jetstream)
    shutil.copytree(kept, jetstream)
    server.launch()
    server.wait_until_ready()


def test_a_log_that_syncs_lazily_is_refused_and_where_it_is_taken_its_losses_are_found(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, nodes=0)
    cluster.nats = servers_in(tmp_path / "nats", 1, sync_always=False)
    (server,) = cluster.nats.servers
    with cluster:
        assert "nats-1 acknowledge before they sync" in end_of(cluster.add_node())
        cluster.nodes.clear()
        node = cluster.add_node("--cluster-allow-lazy-sync")
        write(cluster, *(f"early {number}" for number in range(5)))
        server.kill()
        shutil.copytree(server.plan.directory / "jetstream", tmp_path / "kept")
        server.launch()
        position = write(cluster, *(f"late {number}" for number in range(5)))
        wait_for_copy(node, b"late 4")
        node.kill()
        replace_messages(server, tmp_path / "kept")
        node.start()
        said = end_of(node)
        assert "before the copy here, which ends with" in said
        assert int(said.rpartition("which ends with ")[2].partition(":")[0]) >= position
        # Somebody who knows nothing of what was lost goes on, past where it ended.
        cluster.nodes.clear()
        other = ServerProcess(tmp_path / "other", arguments=node._arguments)
        cluster.nodes.append(other.start())
        while write(cluster, "other") <= position + 20:
            pass
        cluster.nodes.append(node.start())
        said = end_of(node)
        assert "differ at or before sequence" in said
        assert other.running


def test_a_log_that_seems_shorter_for_a_moment_is_waited_for(cluster: Cluster, tmp_path: Path) -> None:
    """As of a server that is cut off, and led the stream before."""
    (node,), (server,) = cluster.nodes, cluster.nats.servers
    jetstream = server.plan.directory / "jetstream"
    write(cluster, "written early")
    server.kill()
    shutil.copytree(jetstream, tmp_path / "old")
    server.launch()
    position = write(cluster, "written late")
    wait_for_copy(node, b"written late")
    node.kill()
    server.kill()
    shutil.copytree(jetstream, tmp_path / "new")
    replace_messages(server, tmp_path / "old")
    node.start()
    wait_until(lambda: "it is asked again" in node.last_words(), "a log that is too short")
    replace_messages(server, tmp_path / "new")
    with grpc.insecure_channel(node.address) as channel:
        wait_until(lambda: answers(channel, b"written late", position), "the log as it was")
    assert "records are lost" not in node.last_words()


def test_a_record_changed_in_the_stream_is_refused(cluster: Cluster) -> None:
    """A node that has the records goes on; one that has yet to read them stops at the changed one."""
    values = [f"value {number}" for number in range(10)]
    write(cluster, *values[:5])
    position = write(cluster, "changed")
    write(cluster, *values[5:])
    (server,) = cluster.nats.servers
    server.kill()
    change_on_disk(server.plan.directory / "jetstream", b"changed")
    server.launch()
    server.wait_until_ready()
    said = end_of(cluster.add_node())
    del cluster.nodes[1:]
    assert f"sequence {position}" in said
    write(cluster, "more")


def test_a_log_with_another_record_is_not_followed(cluster: Cluster) -> None:
    """Whoever has made it: checksums are right, and content is not what this node was told."""
    write(cluster, "one", "two", "three")
    (node,) = cluster.nodes
    wait_for_copy(node, b"three")
    node.kill()
    settings = JetStreamSettings(
        servers=cluster.nats.urls, stream=STREAM, monitoring_urls=cluster.nats.monitoring_urls, replicas=1
    )
    log = JetStreamLog.open(settings)
    records = [entry.record for entry in log.read(1)]
    log.close()
    ask_jetstream(cluster.nats, f"STREAM.DELETE.{STREAM}")
    changed = next(place for place, record in enumerate(records) if b"two" in record.payload)
    records[changed] = Record(records[changed].record_type, records[changed].payload.replace(b"two", b"TWO"))
    log = JetStreamLog.open(settings, create=True)
    log.append(records, 0)
    log.close()
    node.start()
    assert f"differ at or before sequence {len(records)}" in end_of(node)


def test_a_record_changed_in_a_nodes_own_copy_is_refused_and_a_new_copy_is_read_from_the_log(cluster: Cluster) -> None:
    write(cluster, "value one", "value two", "value three")
    (node,) = cluster.nodes
    wait_for_copy(node, b"value three")
    node.kill()
    damaged = change_on_disk(node.data_dir / "log", b"value two")
    with pytest.raises(RuntimeError, match=f"{damaged}.*position"):
        node.start()
    shutil.rmtree(node.data_dir)
    node.start()
    with grpc.insecure_channel(node.address) as channel:
        assert get(channel, b"value two", anywhere=True, sequence=write(cluster, "four"))[0] == b"value two"
