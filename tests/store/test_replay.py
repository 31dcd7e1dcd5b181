"""The state is a fold over the log: whatever way it is computed, the same records give the same state and the same results."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.store.json_histories import draw_json_operation
from tests.store.stream_histories import draw_stream_operation
from tests.store.support import DIMENSION, Command, apply, create, dump, entries, nearest
from vecmem import limits
from vecmem.log import checkpoints
from vecmem.store import image, recovery
from vecmem.store.state_machine import StateMachine
from vecmem.v1 import filter_pb2, pipeline_pb2

IDS = [f"p{i}" for i in range(8)]
KEYS = [b"{k}%d" % number for number in range(4)]
EVERYTHING = filter_pb2.Filter()
EVERYTHING.all_of.SetInParent()


def select(draw: st.DrawFn, operation: Any) -> None:
    if draw(st.booleans()):
        operation.ids.ids.extend(draw(st.lists(st.sampled_from([*IDS, "nobody"]), min_size=1, max_size=4)))
    elif draw(st.booleans()):
        operation.filter.CopyFrom(EVERYTHING)
    else:
        operation.filter.field.path = "a"
        operation.filter.field.match.integer = draw(st.integers(0, 2))


@st.composite
def histories(draw: st.DrawFn) -> list[Command]:
    """Commands as a primary could have logged them, refused ones, repeated and expired ones included."""
    commands = [create("a", named=["other"]), create("b", flat=True)]
    uids = [1, 2]
    now = 1
    for _ in range(draw(st.integers(1, 25))):
        now += draw(st.sampled_from([0, 1, 50, limits.DEDUPLICATION_WINDOW_MS // 2]))
        command = Command(time_unix_ms=now)
        if draw(st.integers(0, 3)) == 0:
            command.request_id = draw(st.sampled_from(["x", "y"]))
            command.request_fingerprint = draw(st.integers(1, 2))
        uid = draw(st.sampled_from(uids))
        kind = draw(
            st.sampled_from(
                [
                    "upsert",
                    "upsert",
                    "delete",
                    "update",
                    "expire",
                    "configure",
                    "drop",
                    "create",
                    "keys",
                    "keys",
                    "sweep",
                    "evict",
                    "commit",
                ]
            )
        )
        match kind:
            case "upsert":
                command.upsert_points.collection_uid = uid
                for point_id in draw(st.lists(st.sampled_from(IDS), min_size=1, max_size=5, unique=True)):
                    point = command.upsert_points.points.add(id=point_id)
                    point.payload_json = draw(st.sampled_from([b"", b'{"a":0}', b'{"a":1,"b":[1,"2"]}', b'{"a":2}']))
                    point.expires_at_unix_ms = draw(st.sampled_from([0, 0, 0, max(1, now - 1), now + 1, now + 60]))
                    if draw(st.integers(0, 4)) == 0:
                        point.expected_version = draw(st.integers(0, 5))
                values = random.Random(draw(st.integers(0, 99)))
                count = len(command.upsert_points.points)
                command.upsert_points.vectors.add(rows=floats(values, count))
                if uid == 1 and draw(st.booleans()):
                    command.upsert_points.vectors.add(name="other", point_indexes=[count - 1], rows=floats(values, 1))
            case "delete":
                command.delete_points.collection_uid = uid
                select(draw, command.delete_points)
            case "update":
                command.update_payloads.collection_uid = uid
                select(draw, command.update_payloads)
                match draw(st.sampled_from(["merge", "replace", "remove"])):
                    case "merge":
                        command.update_payloads.merge_json = b'{"c":3,"a":1}'
                    case "replace":
                        command.update_payloads.replace_json = b'{"a":2}'
                    case _:
                        command.update_payloads.remove.paths.append("b")
            case "expire":
                command.expire_points.collection_uid = uid
                command.expire_points.ids.extend(draw(st.lists(st.sampled_from(IDS), min_size=1)))
            case "keys":
                for _ in range(draw(st.integers(1, 5))):
                    command.run_operations.operations.add().CopyFrom(draw(key_operations(now)))
            case "sweep":
                command.expire_keys.keys.extend(draw(st.lists(st.sampled_from(KEYS), min_size=1)))
            case "evict":
                command.evict_keys.keys.extend(draw(st.lists(st.sampled_from(KEYS), min_size=1, max_size=2)))
            case "commit":
                for branch in (command.commit_transaction.then, command.commit_transaction.otherwise):
                    for _ in range(draw(st.integers(0, 3))):
                        branch.add().operation.CopyFrom(draw(key_operations(now)))
                        branch[-1].operation.request_id = ""
                    if draw(st.booleans()):
                        removed = branch.add().delete_points
                        removed.collection_uid = uid
                        removed.ids.ids.extend(draw(st.lists(st.sampled_from(IDS), min_size=1, max_size=2)))
                compared = command.commit_transaction.compare.add().compare
                compared.key, compared.exists = draw(st.sampled_from(KEYS)), draw(st.booleans())
            case "configure":
                command.update_collection.collection_uid = uid
                command.update_collection.config.CopyFrom(commands[uid - 1].create_collection.config)
                command.update_collection.config.description = "changed"
                command.update_collection.config.vector.storage = draw(st.sampled_from([1, 2]))
                if uid != 2:
                    command.update_collection.config.vector.hnsw.m = 12
            case "drop":
                command.delete_collection.collection_uid = uid
            case _:
                made = create(draw(st.sampled_from(["a", "c"])), flat=draw(st.booleans()))
                command.create_collection.CopyFrom(made.create_collection)
        commands.append(command)
        if kind == "create" and not command.create_collection.config.vector.HasField("flat"):
            uids.append(len(commands))  # a creation may be refused: then its uid stands for nothing
    return commands


@st.composite
def key_operations(draw: st.DrawFn, now: int) -> pipeline_pb2.Operation:
    """Something that writes, refused and repeated ones included."""
    operation = pipeline_pb2.Operation()
    if draw(st.integers(0, 3)) == 0:
        operation.request_id = draw(st.sampled_from(["x", "u", "v"]))
    key = draw(st.sampled_from(KEYS))
    other = draw(st.sampled_from(KEYS))
    kinds = [
        "set",
        "append",
        "add",
        "delete",
        "rename",
        "expire",
        "take",
        "fields",
        "fields",
        "members",
        "members",
        "pop",
        "store",
        "push",
        "push",
        "move",
        "trim",
        "scores",
        "scores",
        "increment",
        "lowest",
        "weigh",
        "stream",
        "stream",
        "stream",
        "enqueue",
        "enqueue",
        "receive",
        "receive",
        "settle",
        "permits",
        "permits",
        "lock",
        "lock",
        "unlock",
        "begin",
        "begin",
        "complete",
        "bit",
        "bits",
        "bit_fields",
        "count",
        "merge",
        "places",
        "places",
        "near",
        "document",
        "document",
        "document",
    ]
    match draw(st.sampled_from(kinds)):
        case "set":
            operation.set_string.key = key
            operation.set_string.value = draw(st.sampled_from([b"", b"7", b"text"]))
            if draw(st.booleans()):
                operation.set_string.expiry.at_unix_ms = draw(st.sampled_from([max(1, now - 1), now + 1, now + 60]))
            if draw(st.booleans()):
                operation.set_string.expected_version = draw(st.integers(0, 3))
        case "append":
            operation.append_string.key, operation.append_string.value = key, b"!"
        case "add":
            operation.add_integer.key, operation.add_integer.delta = key, 3
        case "delete":
            operation.delete_keys.keys.append(key)
        case "rename":
            operation.rename_key.key, operation.rename_key.new_key = key, other
        case "expire":
            operation.expire_key.key, operation.expire_key.expiry.ttl_ms = key, draw(st.sampled_from([1, 50]))
        case "fields":
            operation.set_hash_fields.key = key
            operation.set_hash_fields.fields.add(field=draw(st.sampled_from([b"a", b"b", b""])), value=b"1")
            if draw(st.booleans()):
                operation.set_hash_fields.expiry.ttl_ms = draw(st.sampled_from([1, 50]))
        case "members":
            operation.add_set_members.key = key
            operation.add_set_members.members.extend(draw(st.lists(st.binary(max_size=1), min_size=1, max_size=9)))
        case "pop":
            operation.pop_set_members.key, operation.pop_set_members.count = key, 3
        case "store":
            operation.store_combined_sets.destination = key
            operation.store_combined_sets.keys.extend([key, other])
            operation.store_combined_sets.combination = draw(st.integers(1, 3))
        case "push":
            operation.push_list_items.key, operation.push_list_items.end = key, draw(st.sampled_from([1, 2]))
            operation.push_list_items.items.extend(draw(st.lists(st.binary(max_size=2), min_size=1, max_size=5)))
        case "move":
            operation.move_list_item.key, operation.move_list_item.destination = key, other
            operation.move_list_item.end = draw(st.sampled_from([1, 2]))
            operation.move_list_item.destination_end = draw(st.sampled_from([1, 2]))
        case "trim":
            operation.trim_list.key, operation.trim_list.start = key, draw(st.integers(-2, 2))
        case "scores":
            operation.add_sorted_set_members.key = key
            for member in draw(st.lists(st.binary(max_size=1), min_size=1, max_size=5)):
                score = draw(st.sampled_from([-1.5, -0.0, 0.0, 2.0, float("inf")]))
                operation.add_sorted_set_members.members.add(member=member, score=score)
        case "increment":
            operation.increment_sorted_set_member.key = key
            operation.increment_sorted_set_member.delta = draw(st.sampled_from([1.0, float("-inf")]))
        case "lowest":
            operation.pop_sorted_set_members.key, operation.pop_sorted_set_members.end = key, 1
        case "weigh":
            operation.store_combined_sorted_sets.destination = key
            operation.store_combined_sorted_sets.keys.extend([key, other])
            operation.store_combined_sorted_sets.combination = draw(st.sampled_from([1, 2]))
            operation.store_combined_sorted_sets.weights.extend([1, draw(st.sampled_from([-2.0, 0.0]))])
        case "enqueue":
            operation.enqueue_messages.key = key
            for delay_ms in draw(st.lists(st.sampled_from([0, 1, 50]), min_size=1, max_size=3)):
                operation.enqueue_messages.messages.add(body=b"m", delay_ms=delay_ms)
        case "stream":
            draw_stream_operation(draw, operation, key)
        case "receive":
            operation.receive_messages.key, operation.receive_messages.count = key, 2
            operation.receive_messages.visibility_timeout_ms = draw(st.sampled_from([1, 50]))
            operation.receive_messages.max_deliveries = draw(st.integers(0, 2))
        case "settle":
            settle = draw(st.sampled_from(["acknowledge_messages", "release_messages", "extend_messages"]))
            request = getattr(operation, settle)
            request.key = key
            # Numbers of a keyspace this small: now and then they name a delivery.
            for message_id in range(1, 8):
                for receipt in range(message_id + 1, message_id + 8):
                    request.receipts.add(message_id=message_id, receipt=receipt)
            if settle == "extend_messages":
                request.visibility_timeout_ms = 5
        case "permits":
            operation.acquire_permits.key, operation.acquire_permits.cost = key, draw(st.integers(0, 3))
            if draw(st.booleans()):
                bucket = operation.acquire_permits.token_bucket
                bucket.capacity, bucket.refill_permits, bucket.interval_ms = draw(st.integers(3, 5)), 1, 20
            else:
                window = operation.acquire_permits.sliding_window
                window.limit, window.window_ms = draw(st.integers(3, 2_000)), 60
        case "lock":
            operation.acquire_lock.key, operation.acquire_lock.owner = key, draw(st.sampled_from([b"a", b"b"]))
            operation.acquire_lock.lease_ms = draw(st.sampled_from([1, 60]))
        case "unlock":
            request = getattr(operation, draw(st.sampled_from(["renew_lock", "release_lock"])))
            # Tokens of a keyspace this small: now and then it is the right one, as below.
            request.key, request.owner, request.fencing_token = key, b"a", draw(st.integers(1, 6))
            if operation.HasField("renew_lock"):
                operation.renew_lock.lease_ms = 80
        case "document":
            draw_json_operation(draw, operation, key)
        case "begin":
            operation.begin_idempotent.key = key
            operation.begin_idempotent.fingerprint = draw(st.sampled_from([b"", b"f"]))
            operation.begin_idempotent.lease_ms = draw(st.sampled_from([1, 60]))
            operation.begin_idempotent.retention_ms = 100
        case "complete":
            request = getattr(operation, draw(st.sampled_from(["complete_idempotent", "abandon_idempotent"])))
            request.key, request.token = key, draw(st.integers(1, 6))
        case "bit":
            operation.set_bit.key, operation.set_bit.offset = key, draw(st.integers(0, 20))
            operation.set_bit.bit = draw(st.booleans())
        case "bits":
            operation.combine_bitmaps.destination = key
            operation.combine_bitmaps.keys.extend([key, other])
            operation.combine_bitmaps.combination = draw(st.integers(1, 3))
        case "bit_fields":
            operation.change_bit_fields.key = key
            for place in draw(st.lists(st.integers(0, 9), min_size=1, max_size=3)):
                change = operation.change_bit_fields.changes.add(overflow=draw(st.integers(0, 3)))
                change.field.offset, change.field.width_bits = place, 5
                change.increment = draw(st.integers(-20, 40))
        case "count":
            operation.add_hyper_log_log_items.key = key
            first = draw(st.integers(0, 3_000))
            # Now and then so many that a sketch keeps all registers.
            operation.add_hyper_log_log_items.items.extend(
                b"%d" % item for item in range(first, first + draw(st.sampled_from([1, 5, 1_000])))
            )
        case "merge":
            operation.merge_hyper_log_logs.destination = key
            operation.merge_hyper_log_logs.keys.extend([other, key])
        case "places":
            operation.add_geo_members.key = key
            for member in draw(st.lists(st.binary(max_size=1), min_size=1, max_size=5)):
                place = operation.add_geo_members.members.add(member=member).position
                place.longitude, place.latitude = draw(st.floats(-180, 180)), draw(st.floats(-85, 85))
        case "near":
            operation.store_geo_search.key, operation.store_geo_search.destination = key, other
            operation.store_geo_search.search.position.latitude = draw(st.floats(-85, 85))
            operation.store_geo_search.search.radius_m = draw(st.sampled_from([1e5, 6e6, 1e7]))
            operation.store_geo_search.search.count = draw(st.integers(0, 2))
            operation.store_geo_search.store_distances = draw(st.booleans())
        case _:
            operation.take_string.key = key
    return operation


def floats(values: random.Random, count: int) -> bytes:
    return np.array([values.gauss(0, 1) for _ in range(count * DIMENSION)], dtype="<f4").tobytes()


def through_an_image(state: StateMachine, sequence: int, running_crc: int) -> StateMachine:
    """The state as a checkpoint brings it back."""
    with tempfile.TemporaryDirectory() as directory:
        temporary = Path(directory)
        metadata = image.write_image(state, temporary)
        manifest = checkpoints.seal(temporary, sequence=sequence, running_crc=running_crc, metadata=metadata)
        recovery.check_image(manifest, state)
        return recovery.load_image(checkpoints.load_manifest(manifest.path))


@settings(max_examples=40, deadline=None)
@given(histories(), st.randoms(use_true_random=False))
def test_every_way_to_the_state_is_the_same(commands: list[Command], rng: random.Random) -> None:
    """From the whole log; with rows reclaimed and graphs built on the way; from an image and the tail of the log."""
    log = entries(commands)
    plain, busy = StateMachine(), StateMachine()
    results = [apply(plain, entry) for entry in log]
    cut = rng.randrange(len(log) + 1)
    from_image = through_an_image(plain_prefix(log[:cut]), cut, log[cut - 1].running_crc if cut else 0)
    for entry, expected in zip(log, results, strict=True):
        assert apply(busy, entry) == expected
        if rng.random() < 0.5:
            for collection in busy.collections.values():
                collection.reclaim()
                for index in collection.vectors.values():
                    index.maintain(threads=1, slice_rows=3)
    for entry, expected in zip(log[cut:], results[cut:], strict=True):
        assert apply(from_image, entry) == expected
    assert dump(busy) == dump(plain)
    assert dump(from_image) == dump(plain)
    for name, collection in plain.collections.items():
        for vector in collection.vectors:
            # Twice: what is found now, and what is left when some of it has expired.
            for now in (plain.time_unix_ms, plain.time_unix_ms + 30):
                found = nearest(plain, name, sequence=len(log), now_unix_ms=now, vector=vector)
                assert nearest(busy, name, sequence=len(log), now_unix_ms=now, vector=vector) == found
                assert nearest(from_image, name, sequence=len(log), now_unix_ms=now, vector=vector) == found


def plain_prefix(log: list[Any]) -> StateMachine:
    state = StateMachine()
    for entry in log:
        apply(state, entry)
    return state
