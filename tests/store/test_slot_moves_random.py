"""Slots that move back and forth under a random load: three shards together are one, that never moved anything.

The model is a state machine that is the only one. Each request goes to it whole, and to the shards in parts, as a router sends it. A request
may come again, divided as the slots lie then.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.store.slot_support import ALL, NONE, Node, accepted, move
from tests.store.support import DIMENSION, Command, apply, create, dump
from tests.store.test_replay import through_an_image
from vecmem.slots import slot_of
from vecmem.store.slot_sets import mask_of
from vecmem.store.state_machine import StateMachine
from vecmem.store.v1 import command_pb2

IDS = [f"p{number}" for number in range(10)]
KEYS = [b"k%d" % number for number in range(6)]
NAMES = [name.encode() for name in IDS] + KEYS
SLOTS = sorted({slot_of(name) for name in NAMES})


class World:
    """Shards, the model, and what a router knows."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.shards = [Node(0, ALL), Node(1, NONE), Node(2, NONE)]
        self.model = Node(9)
        for node in (*self.shards, self.model):
            # Logs of different lengths, so that versions of one would be old ones in another.
            for _ in range(rng.randrange(20)):
                lease = Command()
                lease.hold_lease.node = "n"
                accepted(node.do(lease))
            accepted(node.do(create("c", named=["other"])))
        self.owner = dict.fromkeys(SLOTS, 0)
        self.now = 1
        self.requests: list[Command] = []
        self.versions: dict[Any, int] = {}

    def uid(self, node: Node) -> int:
        return node.state.collections["c"].uid

    def request(self) -> Command:
        """Something new, or something that was sent before."""
        rng = self.rng
        if self.requests and rng.random() < 0.25:
            return self.requests[rng.randrange(len(self.requests))]
        command = Command(request_id=f"r{len(self.requests)}", request_fingerprint=len(self.requests))
        ids = rng.sample(IDS, rng.randint(1, 5))
        match rng.choice(["upsert", "upsert", "delete", "update", "filter", "keys", "keys", "key"]):
            case "upsert":
                for point_id in ids:
                    point = command.upsert_points.points.add(id=point_id, payload_json=b'{"n":%d}' % rng.randrange(3))
                    if rng.random() < 0.2:
                        point.expires_at_unix_ms = self.now + rng.randrange(1, 9)
                values = np.random.default_rng(rng.randrange(99)).standard_normal((len(ids), DIMENSION))
                command.upsert_points.vectors.add(rows=values.astype("<f4").tobytes())
                if rng.random() < 0.5:
                    command.upsert_points.vectors.add(
                        name="other", point_indexes=[0], rows=values[:1].astype("<f4").tobytes()
                    )
            case "delete":
                command.delete_points.ids.ids.extend(ids)
            case "update":
                command.update_payloads.ids.ids.extend(ids)
                command.update_payloads.merge_json = b'{"m":1}'
            case "filter":
                selection = rng.choice([command.delete_points, command.update_payloads])
                selection.filter.field.path = "n"
                selection.filter.field.match.integer = rng.randrange(3)
                if selection is command.update_payloads:
                    command.update_payloads.replace_json = b'{"n":1}'
            case kind:
                command.request_id = "" if kind == "keys" else command.request_id
                for _ in range(rng.randint(1, 4) if kind == "keys" else 1):
                    operation = command.run_operations.operations.add()
                    key = rng.choice(KEYS)
                    if rng.random() < 0.7:
                        operation.append_string.key, operation.append_string.value = key, b"x"
                    else:
                        operation.set_string.key, operation.set_string.value = key, b"y"
                        operation.set_string.expiry.ttl_ms = rng.randrange(1, 9)
                    if kind == "keys":
                        operation.request_id = f"r{len(self.requests)}-{len(command.run_operations.operations)}"
        self.requests.append(command)
        return command

    def part(self, command: Command, node: Node) -> Command | None:
        """The part of a request that is a shard's; None: there is none."""
        part = Command()
        part.CopyFrom(command)

        def mine(name: bytes) -> bool:
            return node is self.model or self.shards[self.owner[slot_of(name)]] is node

        kind = str(part.WhichOneof("kind"))
        if kind == "run_operations":
            kept = [
                one for one in command.run_operations.operations if mine(one.append_string.key or one.set_string.key)
            ]
            del part.run_operations.operations[:]
            part.run_operations.operations.extend(kept)
            return part if kept else None
        selection = getattr(part, kind)
        selection.collection_uid = self.uid(node)
        if kind == "upsert_points":
            places = [place for place, one in enumerate(command.upsert_points.points) if mine(one.id.encode())]
            del selection.points[:]
            selection.points.extend(command.upsert_points.points[place] for place in places)
            del selection.vectors[:]
            for column in command.upsert_points.vectors:
                rows = np.frombuffer(column.rows, "<f4").reshape(-1, DIMENSION)
                held = list(column.point_indexes) or list(range(len(command.upsert_points.points)))
                kept_places = [place for place in places if place in held]
                if kept_places:
                    selection.vectors.add(
                        name=column.name,
                        point_indexes=[places.index(place) for place in kept_places],
                        rows=rows[[held.index(place) for place in kept_places]].tobytes(),
                    )
            return part if places else None
        if selection.WhichOneof("selector") == "ids":
            kept_ids = [one for one in selection.ids.ids if mine(one.encode())]
            del selection.ids.ids[:]
            selection.ids.ids.extend(kept_ids)
            return part if kept_ids else None
        return part

    def send(self) -> None:
        self.now += self.rng.randrange(3)
        command = self.request()
        told = [command_pb2.CommandResult(), command_pb2.CommandResult()]
        for nodes, result in (([self.model], told[0]), (self.shards, told[1])):
            for node in nodes:
                part = self.part(command, node)
                if part is None:
                    continue
                part.time_unix_ms = self.now
                done = accepted(node.do(part))
                result.inserted_count += done.inserted_count
                result.updated_count += done.updated_count
                result.deleted_count += done.deleted_count
                assert not any(one.HasField("error") for one in done.operation_results)
        assert told[0] == told[1]
        self.check()

    def content(self, state: StateMachine) -> dict[Any, Any]:
        """Points and keys without their versions, which are counted by each shard."""
        found: dict[Any, Any] = {}
        points = dump(state)["collections"]["c"]["points"]
        for point_id, (_, *rest) in points.items():
            found[point_id] = rest
        for key, value in state.keyspace.values.items():
            assert isinstance(value, bytes)
            found[key] = value[8:], state.keyspace.expires_at(key)
        return found

    def check(self) -> None:
        """All shards together hold what the model does, nothing twice, each thing where it belongs; and no version went back."""
        parts = [self.content(node.state) for node in self.shards]
        assert sum(map(len, parts)) == len({name for part in parts for name in part})
        together: dict[Any, Any] = {}
        for node, part in zip(self.shards, parts, strict=True):
            together |= part
            assert all(
                self.owner[slot_of(name if isinstance(name, bytes) else name.encode())] == node.shard for name in part
            )
            points = dump(node.state)["collections"]["c"]["points"]
            for name in part:
                if isinstance(name, bytes):
                    version = int.from_bytes(node.state.keyspace.values[name][:8], "big")
                else:
                    version = points[name][0]
                    assert version <= node.state.version_at(node.sequence)
                assert version >= self.versions.get(name, 0)
                self.versions[name] = version
        assert together == self.content(self.model.state)

    def move(self) -> None:
        source, target = self.rng.sample(self.shards, 2)
        owned = [slot for slot, shard in self.owner.items() if shard == source.shard]
        if not owned:
            return
        slots = self.rng.sample(owned, self.rng.randint(1, len(owned)))

        def between() -> None:
            if self.rng.random() < 0.4:
                self.send()

        move(source, target, mask_of(slots), between)
        self.owner.update(dict.fromkeys(slots, target.shard))
        self.check()


def after_a_load(seed: int) -> list[tuple[Node, StateMachine]]:
    """The shards behind a random load, and other ways to their states: from the log, or from a checkpoint and the log behind it."""
    rng = random.Random(seed)
    world = World(rng)
    copies: list[tuple[Node, StateMachine]] = []
    images: list[tuple[Node, int, StateMachine]] = []
    for _ in range(12):
        for _ in range(rng.randrange(5)):
            world.send()
        world.move()
        if rng.random() < 0.2:
            node = rng.choice(world.shards)
            image = through_an_image(node.state, node.sequence, node.log[-1].running_crc)
            images.append((node, node.sequence, image))
    for node, sequence, state in [*((node, 0, StateMachine()) for node in world.shards), *images]:
        for entry in node.log[sequence:]:
            apply(state, entry)
        copies.append((node, state))
    return copies


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32))
def test_shards_between_which_slots_move_are_as_one_that_moves_nothing(seed: int) -> None:
    """Compared with the model after each request and each move. Whatever way a state is computed, it is the same."""
    copies = after_a_load(seed)
    assert len(copies) >= 3
    for node, copy in copies:
        assert seen(copy) == seen(node.state)


@pytest.mark.long
@settings(max_examples=1_500, deadline=None)
@given(st.integers(0, 2**32))
def test_it_holds_for_many_more(seed: int) -> None:
    for node, copy in after_a_load(seed):
        assert seen(copy) == seen(node.state)


def seen(state: StateMachine) -> Any:
    assert state.slots is not None
    return dump(state), state.slots.dump()
