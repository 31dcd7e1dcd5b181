"""Where a client sends its calls, without a server: the slot map, what is learned from replies and errors, and the policies of reads."""

from __future__ import annotations

import itertools

import pytest

from vecmem import slots as server_slots
from vecmem.store.keyspace import operation_keys
from vecmem.v1 import cluster_pb2, common_pb2, pipeline_pb2
from vecmem_client import (
    Client,
    InvalidTopologyError,
    MovedError,
    ShuttingDownError,
    UnavailableError,
    UnimplementedError,
    _methods,
    _requests,
    _slots,
    strings,
)
from vecmem_client._operations import request_of
from vecmem_client._routing import (
    ACCEPT_MOVED,
    AGE_SECONDS_MAX,
    EXPLORATION_TURNS,
    LOOK_SECONDS_MAX,
    SUSPICION_SECONDS,
    Routing,
)
from vecmem_client._slot_map import slot_map
from vecmem_client._targets import Targets
from vecmem_client._types import Point, Position

HALF = _slots.SLOTS // 2
LOW, HIGH = "bar", "foo"
"""Keys in the slots 5061 and 12182."""
LEADERS = {0: "a:1", 1: "b:1"}


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def topology(
    epoch=1, *, boundary=HALF, nodes=(("a:1", 0, True), ("a:2", 0, False), ("b:1", 1, True), ("b:2", 1, False))
):
    """Two shards, each with a node that leads and another one."""
    return cluster_pb2.GetTopologyResponse(
        topology=cluster_pb2.Topology(
            cluster="c",
            epoch=epoch,
            shards=[
                cluster_pb2.ShardInfo(number=0, slots=[cluster_pb2.SlotRange(first=0, last=boundary - 1)]),
                cluster_pb2.ShardInfo(number=1, slots=[cluster_pb2.SlotRange(first=boundary, last=_slots.SLOTS - 1)]),
            ],
        ),
        nodes=[
            cluster_pb2.NodeInfo(name=address, address=address, shard=shard, leads=leads)
            for address, shard, leads in nodes
        ],
    )


def header(shard=0, sequence=1, *others):
    positions = [common_pb2.Position(shard=number, sequence=at) for number, at in others]
    return common_pb2.ResponseHeader(position=common_pb2.Position(shard=shard, sequence=sequence), positions=positions)


def routing(policy="primary", target="a:1", *, knows=True):
    clock = Clock()
    made = Routing(Targets(target), policy, clock)
    if knows:
        made.want()
        assert made.begins_to_look()
        made.learn(topology())
        made.end_look()
    return made, clock


def upsert(*ids):
    return _requests.upsert("c", [Point(one, [1.0]) for one in ids], "r")


@pytest.mark.parametrize("key", [b"", b"foo", b"{user:1}x", b"x{user:1}y", b"{}x", b"a{}b{c}", b"{a", "ключ".encode()])
def test_slots_are_the_servers(key):
    assert _slots.slot_of(key) == server_slots.slot_of(key)


def test_keys_are_found_where_the_server_finds_them():
    for field in pipeline_pb2.Operation.DESCRIPTOR.oneofs_by_name["kind"].fields:
        assert _slots._key_paths(field.message_type) == operation_keys.key_paths(field.message_type), field.name


def test_a_map_knows_each_slot_and_node():
    found = slot_map(topology())
    assert {found.shard_of[slot] for slot in range(HALF)} == {0}
    assert {found.shard_of[slot] for slot in range(HALF, _slots.SLOTS)} == {1}
    assert (found.leaders, found.numbers) == (LEADERS, [0, 1])
    assert found.addresses == ["a:1", "a:2", "b:1", "b:2"]
    assert found.shard_of_keys([LOW.encode()]) == 0
    assert found.shard_of_keys([HIGH.encode(), HIGH.encode()]) == 1
    assert found.shard_of_keys([LOW.encode(), HIGH.encode()]) is None
    assert found.shard_of_keys([]) is None


def test_a_server_that_is_alone_has_no_map():
    alone = cluster_pb2.GetTopologyResponse(topology=cluster_pb2.Topology(shards=[cluster_pb2.ShardInfo()]))
    assert slot_map(alone) is None


def test_a_corrected_map_is_another_one():
    found = slot_map(topology())
    corrected = found.corrected(1, "n:1", 7, epoch=3)
    assert (found.epoch, corrected.epoch) == (1, 3)
    assert (found.shard_of[7], found.leaders[1]) == (0, "b:1")
    assert (corrected.shard_of[7], corrected.shard_of[8], corrected.leaders) == (1, 0, {0: "a:1", 1: "n:1"})


def test_requests_go_to_the_shard_that_they_are_about():
    made, _ = routing()
    pipeline = request_of([strings.get(HIGH), strings.set(HIGH, "v")])
    assert made.shard_of(_methods.PIPELINE, pipeline) == 1
    assert made.shard_of(_methods.PIPELINE, request_of([strings.get(HIGH), strings.get(LOW)])) is None
    assert made.shard_of(_methods.UPSERT, upsert(LOW)) == 0
    assert made.shard_of(_methods.UPSERT, upsert(LOW, HIGH)) is None
    assert made.shard_of(_methods.DELETE, _requests.delete("c", [HIGH], None, "r")) == 1
    assert made.shard_of(_methods.QUERY, upsert(LOW)) is None
    assert made.place(1, spread=False) == ("b:1", ACCEPT_MOVED)
    assert made.place(None, spread=False) == ("a:1", None)


def test_nothing_is_asked_before_something_shows_a_cluster():
    made, clock = routing(knows=False)
    made.answered(header(0, 5), "a:1", 0.001, None)
    clock.now += 10 * AGE_SECONDS_MAX
    made.failed(UnavailableError("it restarts"), "a:1")
    assert not made.begins_to_look()
    assert made.place(None, spread=False) == ("a:1", None)


@pytest.mark.parametrize(
    "show",
    [
        lambda made: made.note(header(1, 1)),
        lambda made: made.note(header(0, 1, (0, 1), (1, 4))),
        lambda made: made.failed(MovedError("", metadata={"shard": "1", "owner": "b:1", "epoch": "1"}), "a:1"),
    ],
)
def test_what_shows_a_cluster_has_the_topology_asked_for_once(show):
    made, _ = routing(knows=False)
    show(made)
    assert made.begins_to_look()
    assert not made.begins_to_look(), "somebody asks already"
    made.learn(topology())
    made.end_look()
    assert not made.begins_to_look()


def test_several_addresses_and_policies_have_it_asked_for():
    assert routing(target="a:1,b:1", knows=False)[0].begins_to_look()
    assert routing("nearest", knows=False)[0].begins_to_look()


def test_it_is_asked_for_again_when_it_is_old():
    made, clock = routing()
    clock.now += AGE_SECONDS_MAX / 2
    assert not made.begins_to_look()
    clock.now += AGE_SECONDS_MAX
    assert made.begins_to_look()


def test_failed_questions_are_repeated_ever_more_seldom_and_elsewhere():
    made, clock = routing(target="a:1,b:1", knows=False)
    asked = []
    for _ in range(10):
        while not made.begins_to_look():
            clock.now += 0.01
        asked.append(clock.now)
        made.fail_to_learn(UnavailableError(""), made.place(None, spread=False)[0])
        made.end_look()
    pauses = [later - earlier for earlier, later in itertools.pairwise(asked)]
    assert pauses == sorted(pauses)
    assert pauses[-1] <= LOOK_SECONDS_MAX + 0.02
    assert made.place(None, spread=False)[0] == "a:1", "each failure goes on to the next one"


def test_an_older_server_is_asked_once():
    made, clock = routing(target="a:1,b:1", knows=False)
    assert made.begins_to_look()
    made.fail_to_learn(UnimplementedError(""), "a:1")
    made.end_look()
    clock.now += 10 * LOOK_SECONDS_MAX
    assert not made.begins_to_look()


def test_an_older_topology_changes_nothing():
    made, _ = routing()
    made.learn(topology(5, boundary=10))
    made.learn(topology(4))
    assert (made.known.epoch, made.known.shard_of[11]) == (5, 1)


def test_moved_tells_where_to_go_at_once():
    made, clock = routing()
    metadata = {"shard": "1", "slot": "7", "owner": "b:2", "epoch": "2"}
    made.failed(MovedError("", metadata=metadata), "a:1")
    assert made.known.shard_of[7] == 1
    assert made.place(1, spread=False) == ("b:2", ACCEPT_MOVED)
    clock.now += 1
    assert made.begins_to_look(), "and more may have changed"
    made.learn(topology(1))
    assert made.known.shard_of[7] == 1, "a node that lags knows less"
    made.learn(topology(2))
    assert made.known.shard_of[7] == 0, "one that does not knows better"


@pytest.mark.parametrize(
    "metadata",
    [{}, {"owner": ""}, {"shard": "1", "owner": "b:2", "epoch": "0"}, {"shard": "?", "owner": "b:2", "epoch": "2"}],
)
def test_moved_that_tells_nothing_new_changes_nothing(metadata):
    made, _ = routing()
    made.failed(MovedError("", metadata=metadata), "a:1")
    assert made.known.leaders == LEADERS


def test_a_reply_of_another_shard_shows_that_the_map_is_old():
    made, clock = routing()
    clock.now += 1
    made.answered(header(0, 1), "a:1", 0.001, 0)
    assert not made.begins_to_look()
    made.answered(header(1, 1), "a:1", 0.001, 0)
    assert made.begins_to_look()


@pytest.mark.parametrize("failure", [UnavailableError(""), ShuttingDownError("")])
def test_a_node_that_does_not_answer_is_kept_away_from_for_a_moment(failure):
    made, clock = routing()
    made.failed(failure, "b:1")
    assert made.place(1, spread=False) == ("a:1", None), "which passes it on"
    assert made.place(0, spread=False) == ("a:1", ACCEPT_MOVED)
    clock.now += SUSPICION_SECONDS
    assert made.place(1, spread=False) == ("b:1", ACCEPT_MOVED)


def test_where_nobody_leads_another_node_waits_for_it():
    made, _ = routing()
    made.learn(topology(2, nodes=[("a:1", 0, True), ("b:2", 1, False)]))
    assert made.place(1, spread=False) == ("a:1", None)


def test_addresses_of_nodes_that_are_gone_are_dropped_and_given_ones_kept():
    made, _ = routing()
    made.failed(UnavailableError(""), "b:1")
    made.failed(UnavailableError(""), "a:1")
    gone = made.learn(topology(2, nodes=[("b:2", 1, True)]))
    assert gone == ["b:1"], "of the others nothing bad is known, or the caller has named them"
    assert made._targets.known == ("a:1", "b:2")


def test_policies_are_checked():
    with pytest.raises(ValueError, match="read_policy"):
        Client("127.0.0.1:1", read_policy="secondary")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("policy", "shard", "expected"),
    [
        ("replica", 0, {"a:2"}),
        ("any", 0, {"a:1", "a:2"}),
        ("replica", None, {"a:1", "a:2", "b:1", "b:2"}),
        ("any", None, {"a:1", "a:2", "b:1", "b:2"}),
    ],
)
def test_reads_are_spread_in_turn(policy, shard, expected):
    made, _ = routing(policy)
    assert made.spreads()
    assert {made.place(shard, spread=True)[0] for _ in range(8)} == expected
    assert made.place(0, spread=False) == ("a:1", ACCEPT_MOVED), "writes are not"


def test_without_a_replica_the_node_that_leads_answers():
    made, _ = routing("replica")
    made.failed(UnavailableError(""), "a:2")
    assert made.place(0, spread=True) == ("a:1", ACCEPT_MOVED)


def test_the_nearest_node_answers_and_others_are_tried_now_and_then():
    made, _ = routing("nearest")
    for address, seconds in (("a:1", 0.01), ("a:2", 0.001)):
        made.answered(header(), address, seconds, 0)
    places = [made.place(0, spread=True)[0] for _ in range(4 * EXPLORATION_TURNS)]
    assert places.count("a:2") >= 3 * EXPLORATION_TURNS
    assert places.count("a:1") == 2
    for _ in range(100):
        made.answered(header(), "a:2", 0.1, 0)
    assert made.place(0, spread=True)[0] in {"a:1", "a:2"}
    assert [made.place(0, spread=True)[0] for _ in range(2)] == ["a:1", "a:1"]


def test_the_primary_answers_unless_something_else_is_asked_for():
    made, _ = routing()
    assert not made.spreads()


def test_positions_of_all_shards_are_kept():
    made, _ = routing()
    made.note(header(0, 5))
    made.note(header(1, 3))
    made.note(header(0, 4, (0, 4), (1, 9), (2, 1)))
    assert made.last_positions == (Position(0, 5), Position(1, 9), Position(2, 1))
    assert made.last_position == Position(0, 5), "an older one of the shard that answered last changes nothing"
    demand = made.demand()
    assert demand.preference == common_pb2.READ_PREFERENCE_ANY
    assert [(at.shard, at.sequence) for at in demand.min_positions] == [(0, 5), (1, 9), (2, 1)]


def test_errors_that_say_nothing_of_nodes_change_nothing():
    made, clock = routing()
    clock.now += 1
    made.failed(InvalidTopologyError(""), "b:1")
    assert not made.begins_to_look()
    assert made.place(1, spread=False) == ("b:1", ACCEPT_MOVED)
