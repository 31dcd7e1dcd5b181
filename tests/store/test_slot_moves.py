"""Slots that change hands: what is refused meanwhile, what moves along, and that nothing is lost, doubled or told twice."""

from __future__ import annotations

import numpy as np
import pytest

from tests.store.slot_support import ALL, NONE, Node, accepted, copy_over, finished, move, own, release, slots_of_names
from tests.store.support import Command, create, delete_ids, dump, nearest, upsert
from tests.store.test_replay import through_an_image
from vecmem.errors import MovedError, SlotMovingError, VecmemError
from vecmem.slots import slot_of
from vecmem.store.slot_sets import mask_of, pack, ranges_of, unpack
from vecmem.store.state_machine import StateMachine, refusal_error
from vecmem.store.v1 import command_pb2
from vecmem.v1 import pipeline_pb2

IDS = ["a", "b", "c", "d"]
SOME = slots_of_names(["a", "b"])


def pair() -> tuple[Node, Node]:
    """Two shards with a collection each; all slots are the first one's."""
    first, second = Node(0, ALL), Node(1, NONE)
    accepted(first.do(create("c", named=["other"])))
    accepted(second.set_slots("INITIAL", NONE))
    accepted(second.do(create("c", named=["other"])))
    return first, second


def uid(node: Node) -> int:
    return node.state.collections["c"].uid


def set_key(*keys: bytes, value: bytes = b"v", request_id: str = "") -> Command:
    command = Command()
    for key in keys:
        operation = command.run_operations.operations.add()
        operation.set_string.key, operation.set_string.value = key, value
    command.request_id, command.request_fingerprint = request_id, 7
    return command


def refused(result: command_pb2.CommandResult) -> VecmemError:
    assert result.HasField("refusal")
    return refusal_error(result.refusal)


def test_what_moves_is_the_same_behind_it_and_told_to_nobody():
    """Keys, points, their versions, expiry and vectors; searches find the points; no change of it is noted."""
    first, second = pair()
    accepted(first.do(upsert(uid(first), {"a": b'{"x":1}', "b": b"", "c": b""}, seed=3, expires_at_unix_ms=9_000)))
    accepted(first.do(set_key(b"a", b"c")))
    before = dump(first.state)["collections"]["c"]["points"]
    keys = dict(first.state.keyspace.values)
    found = dict(nearest(first.state, "c", sequence=first.sequence))
    changes = first.state.changes.dump(), second.state.changes.dump()
    told = [b"".join(one) for one in changes]
    move(first, second, SOME)
    after = [dump(node.state)["collections"]["c"]["points"] for node in (first, second)]
    assert after[1].keys() == {"a", "b"}
    assert after[0] | after[1] == before
    assert (first.state.keyspace.values, second.state.keyspace.values) == ({b"c": keys[b"c"]}, {b"a": keys[b"a"]})
    assert dict(nearest(second.state, "c", sequence=second.sequence)) == {name: found[name] for name in ("a", "b")}
    assert [b"".join(node.state.changes.dump()) for node in (first, second)] == told


def test_versions_grow_across_moves():
    """A target whose log is shorter goes on behind the versions of the source, for points, for keys and in what it answers."""
    first, second = pair()
    for number in range(30):
        accepted(first.do(upsert(uid(first), {"a": b""}, seed=number)))
        accepted(first.do(set_key(b"a")))
    version = first.state.collections["c"].rows.versions[first.state.collections["c"].row_of["a"]]
    key_version = first.state.keyspace.version
    move(first, second, SOME)
    assert second.sequence < version
    result = accepted(second.do(upsert(uid(second), {"a": b""})))
    rows = second.state.collections["c"]
    assert result.version == rows.rows.versions[rows.row_of["a"]] == second.state.version_at(second.sequence) > version
    accepted(second.do(set_key(b"a")))
    assert second.state.keyspace.version > key_version


@pytest.mark.parametrize("kind", ["upsert", "delete", "update", "commit", "keys"])
def test_a_request_on_slots_of_another_shard_is_refused_and_changes_nothing(kind):
    """MOVED with the slot and, where it is known, its owner; not remembered, so that the retry at the owner counts."""
    first, second = pair()
    accepted(first.do(upsert(uid(first), {"a": b"{}", "c": b"{}"})))
    move(first, second, SOME)
    command = {
        "upsert": upsert(uid(first), {"c": b'{"n":1}', "a": b""}, request_id="r"),
        "delete": delete_ids(uid(first), ["c", "a"]),
        "update": Command(),
        "commit": Command(),
        "keys": set_key(b"c", b"a", request_id="r"),
    }[kind]
    command.request_id = "r"
    if kind == "update":
        command.update_payloads.collection_uid = uid(first)
        command.update_payloads.ids.ids.extend(["c", "a"])
        command.update_payloads.replace_json = b'{"n":2}'
    if kind == "commit":
        command.commit_transaction.then.add().delete_points.collection_uid = uid(first)
        command.commit_transaction.then[0].delete_points.ids.ids.append("a")
    before = dump(first.state)
    for _ in range(2):
        error = refused(first.do(command))
        assert isinstance(error, MovedError)
        assert error.metadata == {"slot": str(slot_of(b"a")), "shard": "1"}
    assert dump(first.state) == before
    assert isinstance(refused(second.do(upsert(uid(second), {"c": b""}))), MovedError)


def test_a_blocked_slot_is_read_and_not_written():
    """Whole requests are refused; so is whatever a filter chooses; what expires goes all the same."""
    first, _ = pair()
    accepted(first.do(upsert(uid(first), {"a": b"{}", "c": b"{}"}, expires_at_unix_ms=50)))
    accepted(first.set_slots("BLOCK", SOME))
    before = dump(first.state)
    assert isinstance(refused(first.do(upsert(uid(first), {"c": b"", "a": b""}))), SlotMovingError)
    by_filter = Command()
    by_filter.delete_points.collection_uid = uid(first)
    by_filter.delete_points.filter.all_of.SetInParent()
    assert isinstance(refused(first.do(by_filter)), SlotMovingError)
    assert dump(first.state) == before
    first.state.check_names([b"a"])
    accepted(first.do(delete_ids(uid(first), ["c"])))
    expire = Command(time_unix_ms=60)
    expire.expire_points.collection_uid = uid(first)
    expire.expire_points.ids.append("a")
    assert first.do(expire).deleted_count == 1
    accepted(first.set_slots("UNBLOCK", SOME))
    accepted(first.do(upsert(uid(first), {"a": b""})))


def test_each_operation_of_a_pipeline_has_its_own_outcome():
    """Those on slots that are owned run; the others say why not; under a request id all or nothing happens."""
    first, second = pair()
    move(first, second, slots_of_names(["a"]))
    accepted(first.set_slots("BLOCK", slots_of_names(["b"])))
    result = accepted(first.do(set_key(b"a", b"b", b"c")))
    outcomes = [outcome.error.reason for outcome in result.operation_results]
    assert outcomes == ["MOVED", "SLOT_MOVING", ""]
    assert list(first.state.keyspace.values) == [b"c"]
    assert refused(first.do(set_key(b"a", b"d", request_id="r"))).reason == "MOVED"
    assert list(first.state.keyspace.values) == [b"c"]


def pipeline_of_one(key: bytes, request_id: str) -> Command:
    command = Command()
    operation: pipeline_pb2.Operation = command.run_operations.operations.add(request_id=request_id)
    operation.append_string.key, operation.append_string.value = key, b"x"
    return command


def test_a_repeat_is_known_by_the_new_owner():
    """Of keys and of points; results come along where all slots of the request moved."""
    first, second = pair()
    one = accepted(first.do(pipeline_of_one(b"a", "k")))
    written = accepted(first.do(upsert(uid(first), {"a": b"", "b": b""}, request_id="p", seed=4)))
    move(first, second, SOME)
    again = accepted(second.do(pipeline_of_one(b"a", "k")))
    assert again.operation_results == one.operation_results
    before = dump(second.state)["collections"]
    repeat = accepted(second.do(upsert(uid(second), {"a": b"", "b": b""}, request_id="p", seed=4)))
    assert (repeat.inserted_count, repeat.version) == (2, written.version)
    assert dump(second.state)["collections"] == before
    assert len(first.state.deduplication) == 0


def test_of_a_request_that_was_divided_each_part_counts_once():
    """A batch that one shard applied whole comes again as two parts; then as one to which a slot was new."""
    first, second = pair()
    accepted(first.do(upsert(uid(first), {"a": b"", "c": b""}, request_id="p", seed=4)))
    move(first, second, SOME)
    first_part = accepted(first.do(upsert(uid(first), {"c": b""}, request_id="p", seed=4)))
    second_part = accepted(second.do(upsert(uid(second), {"a": b""}, request_id="p", seed=4)))
    assert (first_part.inserted_count, second_part.inserted_count) == (2, 0)
    # The second shard gets c before its part of another request came: only that is applied.
    accepted(second.do(upsert(uid(second), {"b": b""}, request_id="q", seed=5)))
    move(first, second, slots_of_names(["c"]))
    before = dump(second.state)["collections"]["c"]["points"]
    both = accepted(second.do(upsert(uid(second), {"b": b'{"n":1}', "c": b'{"n":1}'}, request_id="q", seed=5)))
    after = dump(second.state)["collections"]["c"]["points"]
    assert (both.inserted_count, both.updated_count) == (1, 1)
    assert (after["b"], after["c"][1]) == (before["b"], b'{"n":1}')
    assert accepted(second.do(upsert(uid(second), {"c": b""}, request_id="q", seed=5))).updated_count == 1
    assert dump(second.state)["collections"]["c"]["points"] == after


def test_a_filter_is_applied_to_slots_that_had_it_not():
    """A deletion by filter that one shard has done and another not, when slots of the first one move to the second."""
    first, second = pair()
    accepted(first.do(upsert(uid(first), dict.fromkeys(IDS, b"{}"))))
    move(first, second, slots_of_names(["c"]))
    everything = Command(request_id="f", request_fingerprint=1)
    everything.delete_points.filter.all_of.SetInParent()
    everything.delete_points.collection_uid = uid(first)
    assert first.do(everything).deleted_count == 3
    accepted(first.do(upsert(uid(first), {"a": b""})))
    move(first, second, SOME)
    everything.delete_points.collection_uid = uid(second)
    assert second.do(everything).deleted_count == 1
    assert set(second.state.collections["c"].row_of) == {"a"}


def test_a_group_that_changed_is_not_released_and_what_was_tampered_with_is_not_owned():
    first, second = pair()
    accepted(first.do(upsert(uid(first), {"a": b"{}"}, expires_at_unix_ms=50)))
    attempt = copy_over(first, second, SOME)
    digest = first.digest(SOME)
    expire = Command(time_unix_ms=60)
    expire.expire_points.collection_uid = uid(first)
    expire.expire_points.ids.append("a")
    accepted(first.do(expire))
    before = dump(first.state)
    wrong = first.set_slots("RELEASE", SOME, peer_shard=1, attempt=attempt, digest=digest)
    assert refused(wrong).reason == "SLOT_STATE"
    assert dump(first.state) == before
    wrong = second.set_slots("OWN", SOME, peer_shard=0, attempt=attempt, digest=b"another")
    assert refused(wrong).reason == "SLOT_STATE"
    assert second.state.collections["c"].row_of == {}


def test_a_change_that_does_not_fit_is_refused():
    first, second = pair()
    before = [dump(node.state) for node in (first, second)]
    foreign = command_pb2.StageSlots(source_shard=0, attempt=9, slots=ranges_of(SOME))
    foreign.keys.add(key=b"c", type=1, content=bytes(9), size_bytes=9)
    late = command_pb2.StageSlots(source_shard=0, attempt=9, number=3)
    for result in (
        first.set_slots("INITIAL", SOME),
        second.set_slots("BLOCK", SOME),
        second.set_slots("UNBLOCK", SOME),
        second.set_slots("OWN", SOME, peer_shard=0, attempt=1),
        first.set_slots("RELEASE", SOME, peer_shard=1, attempt=1, digest=first.digest(SOME)),
        first.stage(command_pb2.StageSlots(source_shard=1, attempt=1, slots=ranges_of(SOME))),
        second.stage(foreign),
        second.stage(late),
        Node(2).set_slots("BLOCK", SOME),
    ):
        assert refused(result).reason == "SLOT_STATE"
    assert [dump(node.state) for node in (first, second)] == before


def test_what_is_done_is_no_error_when_it_comes_again_and_what_is_over_does_nothing():
    """Every record of a move, twice; and those of an attempt that is over, late."""
    first, second = pair()
    accepted(first.do(upsert(uid(first), {"a": b"{}"})))
    attempt = copy_over(first, second, SOME)
    part = command_pb2.StageSlots(source_shard=0, attempt=attempt, number=0, slots=ranges_of(SOME))
    accepted(second.stage(part))
    old = command_pb2.StageSlots(source_shard=0, attempt=attempt - 1, number=0, slots=ranges_of(SOME))
    assert refused(second.stage(old)).reason == "SLOT_STATE"
    accepted(second.set_slots("DROP_STAGED", SOME, peer_shard=0, attempt=attempt - 1))
    again = release(first, second, SOME, attempt)
    accepted(again)
    accepted(first.set_slots("RELEASE", SOME, peer_shard=1, attempt=attempt, digest=b""))
    before = dump(second.state)["collections"]
    accepted(own(first, second, SOME))
    accepted(own(first, second, SOME))
    owned = dump(second.state)["collections"]
    assert owned != before
    assert refused(second.stage(part)).reason == "SLOT_STATE"
    # The slots go back, and an OWN of the first move that comes only now changes nothing.
    late = own(first, second, SOME)
    accepted(late)
    move(second, first, SOME)
    stale = second.set_slots("OWN", SOME, peer_shard=0, attempt=attempt)
    assert refused(stale).reason == "SLOT_STATE"
    assert (first.state.slots.owned & second.state.slots.owned).sum() == 0


def test_a_dropped_attempt_leaves_nothing():
    first, second = pair()
    accepted(first.do(upsert(uid(first), {"a": b"{}"})))
    attempt = copy_over(first, second, SOME)
    assert second.state.staging.size_bytes
    accepted(second.set_slots("DROP_STAGED", SOME, peer_shard=0, attempt=attempt))
    assert second.state.staging.size_bytes == 0
    assert refused(second.stage(command_pb2.StageSlots(source_shard=0, attempt=attempt, slots=ranges_of(SOME))))
    move(first, second, SOME)
    assert set(second.state.collections["c"].row_of) == {"a"}


def test_a_value_larger_than_a_record_moves_in_parts():
    first, second = pair()
    large = bytes(range(256)) * 20_000
    accepted(first.do(set_key(b"a", value=large)))
    move(first, second, SOME)
    assert second.state.keyspace.string(b"a", 1) == large
    assert second.state.staging.size_bytes == 0


def test_sets_of_slots_have_three_forms():
    """Equal sets have equal bytes, small ones and large ones."""
    rng = np.random.default_rng(5)
    for size in (0, 1, 1_023, 1_024, 16_384):
        slots = np.sort(rng.permutation(16_384)[:size])
        assert unpack(pack(slots)).tolist() == slots.tolist()
        assert len(pack(slots)) <= 2_048
        mask = mask_of(slots.tolist())
        assert sum(part.last - part.first + 1 for part in ranges_of(mask)) == size


def test_slots_come_back_from_a_checkpoint():
    """Owned, blocked, given away, staged in part: all of it, and the records behind it do the same."""
    first, second = pair()
    accepted(first.do(upsert(uid(first), {"a": b"{}", "c": b"{}", "d": b""}, request_id="r")))
    accepted(first.do(set_key(b"a", b"c", b"d")))
    move(first, second, slots_of_names(["d"]))
    attempt = copy_over(first, second, SOME)
    loaded = []
    for node in (first, second):
        copy = Node(node.shard)
        copy.state = through_an_image(node.state, node.sequence, node.log[-1].running_crc)
        copy.log = list(node.log)
        assert copy.state.slots.dump() == node.state.slots.dump()
        assert dump(copy.state) == dump(node.state)
        loaded.append(copy)
    accepted(release(first, second, SOME, attempt))
    accepted(release(*loaded, SOME, attempt))
    for nodes in ((first, second), loaded):
        accepted(own(*nodes, SOME))
    for node, copy in zip((first, second), loaded, strict=True):
        assert dump(copy.state) == dump(node.state)
        assert copy.state.slots.dump() == node.state.slots.dump()


def test_a_single_shard_knows_nothing_of_slots():
    state = StateMachine()
    assert state.slots is None
    assert state.version_at(5) == 5
    state.check_names([b"a"])
    assert finished(iter(())) is None
