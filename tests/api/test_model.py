"""A server against a plain dictionary: the same operations, kill -9 in between, and every answer must agree.

The model knows nothing of logs, rows and graphs. What it says of scores comes from the definition in float64.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, note, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.support.api import COSINE, DOT, EUCLIDEAN, Api, connect, params, point
from tests.support.server import ServerProcess
from vecmem.v1 import admin_pb2, collections_pb2, common_pb2, filter_pb2, points_pb2

DIMENSION = 3
METRICS = {"cosine": COSINE, "dot": DOT, "euclidean": EUCLIDEAN}
AS_VALUES = common_pb2.VectorSelector(all=True, encoding=common_pb2.VECTOR_ENCODING_VALUES)

ids = st.sampled_from([f"id-{i}" for i in range(12)])
id_lists = st.lists(ids, min_size=1, max_size=6)
vectors = st.lists(st.integers(-3, 3), min_size=DIMENSION, max_size=DIMENSION).filter(any)
payloads = st.none() | st.dictionaries(
    st.sampled_from("abc"), st.integers(-2, 2) | st.booleans() | st.none() | st.sampled_from(["x", "y"]), max_size=3
)
numbers = st.integers(-2, 2)


@dataclass
class Stored:
    """One point of the model."""

    vector: list[int]
    payload: dict[str, Any]
    version: int


@dataclass
class Model:
    """What should be there."""

    points: dict[str, Stored] = field(default_factory=dict)
    created: bool = False

    def matching(self, key: str, number: int) -> list[str]:
        """Ids of the points whose payload has an integer at a key."""
        return sorted(
            one
            for one, stored in self.points.items()
            if type(stored.payload.get(key)) is int and stored.payload[key] == number
        )

    def ranked(self, metric: str, query: list[int], among: list[str]) -> list[tuple[float, str]]:
        """Scores and ids, best first, ties by id."""
        wanted = np.array(query, np.float64)
        ranked = []
        for point_id in among:
            vector = np.array(self.points[point_id].vector, np.float64)
            score = {
                "dot": lambda a, b: a @ b,
                "euclidean": lambda a, b: np.sqrt(((a - b) ** 2).sum()),
                "cosine": lambda a, b: np.clip(a @ b / (np.sqrt(a @ a) * np.sqrt(b @ b)), -1, 1),
            }[metric](vector, wanted)
            ranked.append((float(np.float32(score)), point_id))
        return sorted(ranked, key=lambda one: (one[0] if metric == "euclidean" else -one[0], one[1]))


def filter_of(key: str, number: int) -> filter_pb2.Filter:
    match = filter_pb2.MatchValue(integer=number)
    return filter_pb2.Filter(field=filter_pb2.FieldCondition(path=key, match=match))


class ServerAgainstModel(RuleBasedStateMachine):
    """One collection under a name of its own; the server is shared by all runs, and restarted within them."""

    server: ServerProcess
    runs = 0

    def __init__(self) -> None:
        super().__init__()
        type(self).runs += 1
        self.name = f"run-{self.runs}"
        self.model = Model()
        self.last_version = 0
        self.repeats: list[tuple[Callable[[], Any], Any]] = []
        self.request_count = 0
        self.connection = connect(self.server.address)
        self.api: Api = self.connection.__enter__()

    def teardown(self) -> None:
        """Leave nothing behind that would slow down the next run."""
        if self.model.created:
            self.api.call("DeleteCollection", collections_pb2.DeleteCollectionRequest(name=self.name))
        self.connection.__exit__(None, None, None)

    @initialize(index=st.sampled_from(["flat", "hnsw"]))
    def create(self, index: str) -> None:
        """Every point carries the same vector under three metrics."""
        note(f"index {index}")
        self.api.create(
            self.name, **{name: params(DIMENSION, code, flat=index == "flat") for name, code in METRICS.items()}
        )
        self.model.created = True

    def new_version(self, version: int) -> int:
        assert version > self.last_version
        self.last_version = version
        return version

    def request_id(self) -> str:
        self.request_count += 1
        return f"{self.name} {self.request_count}"

    def message(
        self, point_id: str, vector: list[int], payload: dict[str, Any] | None, **rest: Any
    ) -> points_pb2.Point:
        raw = {} if payload is None else {"payload_json": json.dumps(payload).encode()}
        sent = point("", [float(element) for element in vector]).vector
        return point(point_id, vectors=dict.fromkeys(METRICS, sent), **raw, **rest)

    # -- writes -----------------------------------------------------------------------------------------------------

    @rule(batch=st.lists(st.tuples(ids, vectors, payloads), min_size=1, max_size=6))
    def upsert(self, batch: list[tuple[str, list[int], dict[str, Any] | None]]) -> None:
        request_id = self.request_id()
        messages = [self.message(*one) for one in batch]
        before = set(self.model.points)
        reply = self.api.upsert(self.name, messages, request_id)
        version = self.new_version(reply.version)
        for point_id, vector, payload in batch:
            self.model.points[point_id] = Stored(vector, payload or {}, version)
        written = {one[0] for one in batch}
        assert (reply.inserted_count, reply.updated_count) == (len(written - before), len(written & before))
        self.repeats.append((lambda: self.api.upsert(self.name, messages, request_id), reply))

    @rule(point_id=ids, vector=vectors, right=st.booleans())
    def upsert_on_condition(self, point_id: str, vector: list[int], right: bool) -> None:
        actual = self.model.points[point_id].version if point_id in self.model.points else 0
        expected = actual if right else actual + 1
        reply = self.api.upsert(self.name, [self.message(point_id, vector, None, expected_version=expected)])
        if right:
            self.model.points[point_id] = Stored(vector, {}, self.new_version(reply.version))
            assert not reply.conflicts
        else:
            (conflict,) = reply.conflicts
            assert (conflict.id, conflict.expected_version, conflict.actual_version) == (point_id, expected, actual)

    @rule(chosen=id_lists)
    def delete(self, chosen: list[str]) -> None:
        reply = self.api.delete(self.name, *chosen)
        gone = set(chosen) & set(self.model.points)
        assert reply.deleted_count == len(gone)
        for point_id in gone:
            del self.model.points[point_id]

    @rule(key=st.sampled_from("abc"), number=numbers)
    def delete_by_filter(self, key: str, number: int) -> None:
        gone = self.model.matching(key, number)
        assert self.api.delete(self.name, filter=filter_of(key, number)).deleted_count == len(gone)
        for point_id in gone:
            del self.model.points[point_id]

    @rule(
        operation=st.sampled_from(["merge", "replace", "remove"]),
        update=payloads.map(lambda payload: payload or {}),
        by=st.one_of(id_lists, st.tuples(st.sampled_from("abc"), numbers)),
    )
    def update_payload(self, operation: str, update: dict[str, Any], by: Any) -> None:
        if operation == "remove" and not update:
            return
        request = points_pb2.UpdatePayloadRequest(collection=self.name)
        request.write.request_id = self.request_id()
        if isinstance(by, list):
            request.ids.ids.extend(by)
            chosen = sorted(set(by) & set(self.model.points))
        else:
            request.filter.CopyFrom(filter_of(*by))
            chosen = self.model.matching(*by)
        if operation == "merge":
            request.merge_json = json.dumps(update).encode()
        elif operation == "replace":
            request.replace_json = json.dumps(update).encode()
        else:
            request.remove.paths.extend(update)
        reply = self.api.call("UpdatePayload", request)
        assert reply.updated_count == len(chosen)
        version = self.new_version(reply.version) if chosen else 0
        assert reply.version == version
        for point_id in chosen:
            stored = self.model.points[point_id]
            kept = {key: value for key, value in stored.payload.items() if key not in update}
            payload = {"merge": stored.payload | update, "replace": update, "remove": kept}[operation]
            self.model.points[point_id] = Stored(stored.vector, dict(payload), version)
        self.repeats.append((lambda: self.api.call("UpdatePayload", request), reply))

    @precondition(lambda self: self.repeats)
    @rule(data=st.data())
    def repeat(self, data: st.DataObject) -> None:
        """A write that was answered is sent again: the first answer comes back, and the model need not change."""
        send, first = data.draw(st.sampled_from(self.repeats))
        again = send()
        again.header.CopyFrom(first.header)
        assert again == first

    # -- the server's own doings ------------------------------------------------------------------------------------

    def reconnect(self) -> None:
        self.connection.__exit__(None, None, None)
        self.server.start()
        self.connection = connect(self.server.address)
        self.api = self.connection.__enter__()

    @rule(really=st.sampled_from([False, False, True]))
    def crash(self, really: bool) -> None:
        if not really:  # a restart takes as long as a hundred other steps
            return
        self.server.kill()
        self.reconnect()

    @rule()
    def checkpoint(self) -> None:
        self.api.call("CreateCheckpoint", admin_pb2.CreateCheckpointRequest())

    # -- what must hold after every step ----------------------------------------------------------------------------

    @precondition(lambda self: self.model.created)
    @invariant()
    def holds_the_same_points(self) -> None:
        found = self.api.scroll(self.name, page_size=5, with_vectors=AS_VALUES)
        assert [one.id for one in found] == sorted(self.model.points)
        for one in found:
            stored = self.model.points[one.id]
            assert (json.loads(one.payload_json) if one.payload_json else {}) == stored.payload
            assert one.version == stored.version
            assert {name: list(vector.dense.values) for name, vector in one.vectors.items()} == dict.fromkeys(
                METRICS, stored.vector
            )
        assert self.api.count(self.name) == len(self.model.points)

    @rule(
        query=vectors,
        metric=st.sampled_from(list(METRICS)),
        limit=st.integers(1, 14),
        offset=st.integers(0, 5),
        data=st.data(),
    )
    def query(self, query: list[int], metric: str, limit: int, offset: int, data: st.DataObject) -> None:
        wanted = data.draw(st.none() | st.tuples(st.sampled_from("abc"), numbers))
        among = sorted(self.model.points) if wanted is None else self.model.matching(*wanted)
        expected = self.model.ranked(metric, query, among)[offset : offset + limit]
        rest = {} if wanted is None else {"filter": filter_of(*wanted)}
        floats = [float(element) for element in query]
        hits = self.api.query(
            self.name, floats, using=metric, limit=limit, offset=offset, params={"exact": True}, **rest
        )
        assert [hit.score for hit in hits] == pytest.approx([score for score, _ in expected], abs=1e-6)
        if metric != "cosine":  # small integers: products and distances are exact, so ties are ties in both
            assert [hit.point.id for hit in hits] == [point_id for _, point_id in expected]


def test_a_server_agrees_with_a_dictionary_through_crashes(tmp_path):
    with ServerProcess(tmp_path / "data") as server:
        machine = type("Machine", (ServerAgainstModel,), {"server": server})
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=12,
                stateful_step_count=40,
                deadline=None,
                print_blob=True,
                # No shrinking: a step in which the server restarts is too slow for the thousands of runs that takes.
                phases=[Phase.explicit, Phase.reuse, Phase.generate],
                suppress_health_check=list(HealthCheck),
            ),
        )
        assert machine.runs >= 12
