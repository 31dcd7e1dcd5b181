"""One shard on several nodes: it is led by one of them whoever dies, and what was acknowledged stays."""

from __future__ import annotations

import os
import random
import signal
import threading

import grpc
import pytest

from tests.cluster.support import SECONDS_MAX, Cluster, get
from tests.support.api import expect_refusal
from tests.support.server import ServerProcess
from vecmem.cluster.peers import ACCEPT_MOVED_KEY
from vecmem.log.failpoints import ENVIRONMENT_VARIABLE
from vecmem.log.rocks_verify import verify_rocks_log
from vecmem.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    channels_pb2,
    channels_pb2_grpc,
    lists_pb2,
    lists_pb2_grpc,
    strings_pb2,
    strings_pb2_grpc,
)
from vecmem_client import Client, RetryPolicy, VecmemClientError, counters, strings

RETRY = RetryPolicy(attempts_max=1_000, backoff_seconds_max=0.2)


@pytest.fixture
def cluster(tmp_path):
    with Cluster(tmp_path) as running:
        yield running


def client_of(cluster: Cluster) -> Client:
    return Client(cluster.addresses, retry=RETRY, timeout_seconds=SECONDS_MAX)


def on_every_node(cluster: Cluster, key: bytes, sequence: int) -> list[bytes]:
    found = []
    for node in cluster.nodes:
        with grpc.insecure_channel(node.address) as channel:
            found.append(get(channel, key, anywhere=True, sequence=sequence)[0])
    return found


def test_one_node_answers_and_the_others_say_who_it_is(cluster):
    with client_of(cluster) as client:
        client.run(strings.set("k", "v"))
        assert on_every_node(cluster, b"k", client.last_position.sequence) == [b"v"] * 3
        leader = cluster.leader()
        others = [node for node in cluster.nodes if node is not leader]
        for node in others:
            with grpc.insecure_channel(node.address) as channel:
                stub = strings_pb2_grpc.StringServiceStub(channel)
                calls = {stub.GetString: strings_pb2.GetStringRequest(key=b"k")}
                calls[stub.SetString] = strings_pb2.SetStringRequest(key=b"k", value=b"v")
                for call, request in calls.items():
                    told = {"timeout": SECONDS_MAX, "metadata": ((ACCEPT_MOVED_KEY, "1"),)}
                    refusal = expect_refusal(lambda call=call, request=request, told=told: call(request, **told))
                    assert (refusal.code, refusal.reason) == ("UNAVAILABLE", "MOVED")
                    assert refusal.metadata["owner"] == leader.address
                    # For a client that does not know of nodes the call is passed on.
                    assert call(request, timeout=SECONDS_MAX).header.position.sequence


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_another_node_leads_when_the_first_one_is_gone(cluster, number):
    with client_of(cluster) as client:
        for value in range(3):
            client.run(counters.add("n"))
            leader = cluster.leader()
            if number == signal.SIGKILL:
                leader.kill()
            else:
                leader.stop()
            assert client.run(counters.add("n")).value == 2 * value + 2
            leader.start()
        assert on_every_node(cluster, b"n", client.last_position.sequence) == [b"6"] * 3


def test_who_waits_at_a_leader_goes_where_the_lead_goes(cluster):
    """What comes to the next leader would never come to those who stay."""
    leader = cluster.leader()
    with grpc.insecure_channel(leader.address) as channel:
        subscribed = channels_pb2_grpc.ChannelServiceStub(channel).Subscribe(
            channels_pb2.SubscribeRequest(channels=[b"news"]), timeout=SECONDS_MAX
        )
        assert not next(subscribed).messages
        lists = lists_pb2_grpc.ListServiceStub(channel)
        popped = lists.PopListItems.future(
            lists_pb2.PopListItemsRequest(keys=[b"line"], end=lists_pb2.LIST_END_LEFT, wait_ms=int(SECONDS_MAX * 1e3)),
            timeout=2 * SECONDS_MAX,
        )
        admin_pb2_grpc.AdminServiceStub(channel).HandOver(admin_pb2.HandOverRequest(), timeout=SECONDS_MAX)
        refusal = expect_refusal(lambda: next(subscribed))
        assert (refusal.code, refusal.reason) == ("UNAVAILABLE", "MOVED")
        others = [node for node in cluster.nodes if node is not leader]
        with grpc.insecure_channel(others[0].address) as other:
            pushed = lists_pb2.PushListItemsRequest(key=b"line", items=[b"at last"], end=lists_pb2.LIST_END_LEFT)
            lists_pb2_grpc.ListServiceStub(other).PushListItems(pushed, timeout=SECONDS_MAX)
        assert list(popped.result().items) == [b"at last"]


@pytest.mark.parametrize("failpoint", ["before_append_write:30", "after_append_sync:30"])
def test_what_is_answered_is_kept_though_the_copy_here_was_not_made_yet(tmp_path, failpoint):
    """A leader answers when the log has a write; it dies when its own copy does not, or only just has it."""
    with Cluster(tmp_path, nodes=0) as cluster:
        node = cluster.new_node(environment=os.environ | {ENVIRONMENT_VARIABLE: failpoint}).start()
        answered: list[bytes] = []
        with Client(node.address, retry=RetryPolicy(attempts_max=1), timeout_seconds=SECONDS_MAX) as client:
            cluster.leader()

            def write() -> None:
                for number in range(1_000):
                    client.run(strings.set(f"k{number}", str(number)))
                    answered.append(str(number).encode())
                    if number == 10:
                        client.create_checkpoint()

            with pytest.raises(VecmemClientError):
                write()
        assert node.wait(SECONDS_MAX) == -signal.SIGKILL
        assert answered
        node.environment = None
        node.start()
        with grpc.insecure_channel(node.address) as channel:
            # Nothing older than before, whoever leads.
            assert get(channel, b"k%d" % (len(answered) - 1), anywhere=True)[0] == answered[-1]
        with client_of(cluster) as client:
            found = [client.run(strings.get(f"k{number}")) for number in range(len(answered))]
            assert found == answered
            client.run(strings.set("k", "v"))
            assert on_every_node(cluster, b"k", client.last_position.sequence) == [b"v"]
        node.stop()
        assert verify_rocks_log(node.data_dir / "log").damage == []


def test_a_leader_that_was_away_answers_nothing_old(cluster):
    """It is stopped for longer than its lease: when it goes on it must know that others have gone further."""
    with client_of(cluster) as client:
        client.run(strings.set("k", "old"))
        leader = cluster.leader()
        leader.send_signal(signal.SIGSTOP)
        with grpc.insecure_channel(leader.address) as channel:
            stub = strings_pb2_grpc.StringServiceStub(channel)
            told = {"timeout": SECONDS_MAX, "metadata": ((ACCEPT_MOVED_KEY, "1"),)}
            waiting = [stub.GetString.future(strings_pb2.GetStringRequest(key=b"k"), **told) for _ in range(5)]
            waiting.append(stub.SetString.future(strings_pb2.SetStringRequest(key=b"k", value=b"late"), **told))
            others = Client(
                ",".join(node.address for node in cluster.nodes if node is not leader),
                retry=RETRY,
                timeout_seconds=SECONDS_MAX,
            )
            with others:
                others.run(strings.set("k", "new"))
                leader.send_signal(signal.SIGCONT)
                for call in waiting:
                    refusal = expect_refusal(call.result)
                    assert refusal.code == "UNAVAILABLE"
                assert others.run(strings.get("k")) == b"new"
                position = others.last_position
        assert on_every_node(cluster, b"k", position.sequence) == [b"new"] * 3


def test_counts_are_exact_whoever_dies_and_hangs(cluster):
    """Clients add to a counter, each once, while leaders are killed and stopped for a while."""
    stop = threading.Event()
    counts = [0] * 3
    rng = random.Random(int.from_bytes(os.urandom(4)))

    def add(place: int) -> None:
        with client_of(cluster) as client:
            while not stop.is_set():
                client.run(counters.add("n"))
                counts[place] += 1

    threads = [threading.Thread(target=add, args=(place,)) for place in range(len(counts))]
    for thread in threads:
        thread.start()
    try:
        for _ in range(4):
            before = list(counts)
            leader = cluster.leader()
            if rng.random() < 0.5:
                leader.kill()
                leader.start()
            else:
                hang(leader)
            cluster.leader()
            while any(now == then for now, then in zip(counts, before, strict=True)):
                assert all(thread.is_alive() for thread in threads)
                stop.wait(0.02)
    finally:
        stop.set()
        for thread in threads:
            thread.join(SECONDS_MAX)
    assert not any(thread.is_alive() for thread in threads)
    with client_of(cluster) as client:
        assert client.run(counters.add("n", 0)).value == sum(counts)
        expected = str(sum(counts)).encode()
        assert on_every_node(cluster, b"n", client.last_position.sequence) == [expected] * 3


def hang(node: ServerProcess) -> None:
    """Stop a node for longer than its lease and the time until another one claims it."""
    node.send_signal(signal.SIGSTOP)
    threading.Event().wait(2.5)
    node.send_signal(signal.SIGCONT)
