"""Writers that know what a server must hold, and the check that compares the two after a crash.

A `Writer` owns two collections, sends one operation at a time and applies it to its model when it is acknowledged. What was in
flight at a crash is *pending*: after the restart the collections must look as if it had happened wholly, once, or not
at all; then it is sent again under the same request id, and must then have happened exactly once.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import grpc
import numpy as np
import pytest

from tests.crash.traffic import CALL_SECONDS_MAX, Connection, TrafficWriter
from vecmem.v1 import (
    collections_pb2,
    common_pb2,
    filter_pb2,
    points_pb2,
)

TAGS = ["red", "green", "blue", "grey"]
METRICS = [common_pb2.METRIC_COSINE, common_pb2.METRIC_EUCLIDEAN, common_pb2.METRIC_DOT]
UNKNOWN_VERSION = -1


@dataclass(frozen=True)
class ModelPoint:
    payload: dict[str, Any]
    vector: bytes
    version: int


Points = dict[str, ModelPoint]
State = dict[str, Points]
"""Points by collection name."""


@dataclass(frozen=True)
class Counts:
    inserted: int = 0
    updated: int = 0
    deleted: int = 0
    conflicts: int = 0


Effect = Callable[[State, int], tuple[State, Counts]]


@dataclass(frozen=True)
class Operation:
    """One write: how it is sent, and what it does to a state at a sequence."""

    rpc: str
    request: Any
    effect: Effect

    def send(self, connection: Connection) -> tuple[int, Counts]:
        """Sequence of the record and what it did, as the server says."""
        service = connection.collections if "Collection" in self.rpc else connection.points
        reply = getattr(service, self.rpc)(self.request, timeout=CALL_SECONDS_MAX)
        match self.rpc:
            case "Upsert":
                counts = Counts(reply.inserted_count, reply.updated_count, conflicts=len(reply.conflicts))
            case "Delete":
                counts = Counts(deleted=reply.deleted_count)
            case "UpdatePayload":
                counts = Counts(updated=reply.updated_count)
            case "DeleteCollection":
                counts = Counts(deleted=reply.deleted_point_count)
            case _:
                counts = Counts()
        return reply.header.position.sequence, counts


def dump(connection: Connection, collection: str) -> Points:
    """Every point of a collection, by Scroll."""
    points: Points = {}
    token = ""
    while True:
        page = connection.points.Scroll(
            points_pb2.ScrollRequest(
                collection=collection,
                page_size=1000,
                page_token=token,
                with_vectors=common_pb2.VectorSelector(all=True),
            ),
            timeout=CALL_SECONDS_MAX,
        )
        for point in page.points:
            assert point.id not in points, f"{point.id} came twice"
            payload = json.loads(point.payload_json) if point.payload_json else {}
            points[point.id] = ModelPoint(payload, point.vector.dense.packed, point.version)
        token = page.next_page_token
        if not token:
            return points


class Writer(TrafficWriter):
    """One client with collections of its own. `size` scales ids and batches."""

    def __init__(self, number: int, seed: int, *, size: int = 1, dimension: int = 16) -> None:
        super().__init__()
        self.main, self.extra = f"w{number}-main", f"w{number}-extra"
        self.state: State = {}
        self.pending: Operation | None = None
        self.last_sequence = 0
        self.acknowledged_count = 0
        self.recalls: list[float] = []
        """Of each approximate search for 10 so far, on random vectors, which are the hardest for a graph."""
        self._rng = random.Random(seed)
        self._metric = METRICS[number % len(METRICS)]
        self._dimension = dimension
        self._ids = [f"p{i:06d}" for i in range(300 * size)]
        self._batch_max = 40 * size
        self._requests = 0
        self._name = f"{number}-{seed}"

    # -- writing -----------------------------------------------------------------------------------------------------

    def step(self, connection: Connection) -> None:
        """One operation, acknowledged and applied to the model; on an RpcError it stays pending."""
        self.pending = self.next_operation()
        sequence, counts = self.pending.send(connection)
        self._take(sequence, counts)

    def _take(self, sequence: int, counts: Counts) -> None:
        assert self.pending is not None
        state, expected = self.pending.effect(self.state, sequence)
        assert counts == expected, f"{self.pending.request}: {counts}, expected {expected}"
        assert sequence > self.last_sequence
        self.state, self.last_sequence, self.pending = state, sequence, None
        self.acknowledged_count += 1

    def next_operation(self) -> Operation:
        """Something to do that fits the model."""
        if self.main not in self.state:
            return self._create(self.main)
        if self.extra not in self.state:
            if self._rng.random() < 0.1:
                return self._create(self.extra)
        elif self._rng.random() < 0.03:
            return self._delete_collection(self.extra)
        collection = self._rng.choice(sorted(self.state))
        kind = self._rng.choices([self._upsert, self._delete, self._update], [6, 2, 2])[0]
        return kind(collection)

    def _options(self) -> common_pb2.WriteOptions:
        self._requests += 1
        return common_pb2.WriteOptions(request_id=f"{self._name}-{self._requests}")

    def _create(self, name: str) -> Operation:
        vector = collections_pb2.VectorParams(dimension=self._dimension, metric=self._metric)
        if name == self.extra and self._rng.random() < 0.5:
            vector.flat.SetInParent()
        request = collections_pb2.CreateCollectionRequest(
            name=name, config=collections_pb2.CollectionConfig(vector=vector), write=self._options()
        )
        return Operation("CreateCollection", request, lambda state, _: ({**state, name: {}}, Counts()))

    def _delete_collection(self, name: str) -> Operation:
        def effect(state: State, _: int) -> tuple[State, Counts]:
            rest = dict(state)
            return rest, Counts(deleted=len(rest.pop(name)))

        request = collections_pb2.DeleteCollectionRequest(name=name, write=self._options())
        return Operation("DeleteCollection", request, effect)

    def _upsert(self, collection: str) -> Operation:
        request = points_pb2.UpsertRequest(collection=collection, write=self._options())
        held = self.state[collection]
        for point_id in self._rng.sample(self._ids, self._rng.randint(1, self._batch_max)):
            point = request.points.add(id=point_id)
            vector = np.array([self._rng.gauss(0, 1) for _ in range(self._dimension)], dtype="<f4")
            point.vector.dense.packed = vector.tobytes()
            payload = {
                "n": self._rng.randrange(1000),
                "tag": self._rng.choice(TAGS),
                "text": "x" * self._rng.randrange(50),
            }
            point.payload_json = json.dumps(payload).encode()
            if self._rng.random() < 0.1:
                right = held[point_id].version if point_id in held else 0
                point.expected_version = self._rng.choice([right, right + 1])

        def effect(state: State, sequence: int) -> tuple[State, Counts]:
            points = dict(state[collection])
            inserted = updated = conflicts = 0
            for point in request.points:
                old = points.get(point.id)
                if point.HasField("expected_version") and point.expected_version != (old.version if old else 0):
                    conflicts += 1
                    continue
                inserted += old is None
                updated += old is not None
                points[point.id] = ModelPoint(json.loads(point.payload_json), point.vector.dense.packed, sequence)
            return {**state, collection: points}, Counts(inserted, updated, conflicts=conflicts)

        return Operation("Upsert", request, effect)

    def _selection(self, request: Any) -> Callable[[str, ModelPoint], bool]:
        """Fill a request's selector; returns whom it selects."""
        if self._rng.random() < 0.5:
            ids = self._rng.sample(self._ids, self._rng.randint(1, self._batch_max))
            request.ids.ids.extend(ids)
            wanted = frozenset(ids)
            return lambda point_id, _: point_id in wanted
        tag, below = self._rng.choice(TAGS), self._rng.randrange(200)
        request.filter.CopyFrom(tag_and_number_filter(tag, below))
        return lambda _, point: point.payload.get("tag") == tag and point.payload.get("n", 1000) < below

    def _delete(self, collection: str) -> Operation:
        request = points_pb2.DeleteRequest(collection=collection, write=self._options())
        selected = self._selection(request)

        def effect(state: State, _: int) -> tuple[State, Counts]:
            points = state[collection]
            kept = {name: point for name, point in points.items() if not selected(name, point)}
            return {**state, collection: kept}, Counts(deleted=len(points) - len(kept))

        return Operation("Delete", request, effect)

    def _update(self, collection: str) -> Operation:
        request = points_pb2.UpdatePayloadRequest(collection=collection, write=self._options())
        selected = self._selection(request)
        kind = self._rng.choice(["merge", "replace", "remove"])
        content = {"n": self._rng.randrange(1000), "round": self._requests}
        if kind == "merge":
            request.merge_json = json.dumps(content).encode()
        elif kind == "replace":
            content["tag"] = self._rng.choice(TAGS)
            request.replace_json = json.dumps(content).encode()
        else:
            request.remove.paths.append("text")

        def changed(payload: dict[str, Any]) -> dict[str, Any]:
            if kind == "merge":
                return payload | content
            if kind == "replace":
                return content
            return {key: value for key, value in payload.items() if key != "text"}

        def effect(state: State, sequence: int) -> tuple[State, Counts]:
            points = dict(state[collection])
            updated = [name for name, point in points.items() if selected(name, point)]
            for name in updated:
                points[name] = replace(points[name], payload=changed(points[name].payload), version=sequence)
            return {**state, collection: points}, Counts(updated=len(updated))

        return Operation("UpdatePayload", request, effect)

    # -- checking ----------------------------------------------------------------------------------------------------

    def check(self, connection: Connection) -> None:
        """Compare the server with the model; settle what is pending; compare again. Raises AssertionError."""
        observed = self._observe(connection)
        happened_at: int | None = None
        if observed != self.state:
            assert self.pending is not None, self._difference(observed, self.state)
            after, _ = self.pending.effect(self.state, UNKNOWN_VERSION)
            happened_at = self._match_with_one_version(observed, after)
        if self.pending is not None:
            self._retry(connection, happened_at)
            settled = self._observe(connection)
            assert settled == self.state, self._difference(settled, self.state)
        for name in self.state:
            self._check_searches(connection, name)

    def _observe(self, connection: Connection) -> State:
        there = connection.names() & {self.main, self.extra}
        return {name: dump(connection, name) for name in there}

    def _match_with_one_version(self, observed: State, after: State) -> int | None:
        """The sequence at which the pending operation must have happened; None where the state does not tell."""
        assert observed.keys() == after.keys(), self._difference(observed, after)
        versions = {
            point.version
            for name, points in after.items()
            for point_id, expected in points.items()
            if expected.version == UNKNOWN_VERSION and (point := observed[name].get(point_id)) is not None
        }
        assert len(versions) <= 1, f"the pending operation left versions {sorted(versions)}: it is half there"
        version = min(versions, default=None)
        if version is not None:
            assert version > self.last_sequence
            assert self.pending is not None
            after, _ = self.pending.effect(self.state, version)
        assert observed == after, self._difference(observed, after)
        return version

    def _retry(self, connection: Connection, happened_at: int | None) -> None:
        assert self.pending is not None
        request_id = self.pending.request.write.request_id
        sequence, counts = self.pending.send(connection)
        if happened_at is not None:
            assert sequence == happened_at, f"{request_id} was applied at {happened_at} and again at {sequence}"
        self._take(sequence, counts)
        # The same id with another request must change nothing either.
        other = points_pb2.DeleteRequest(collection=self.main, write=common_pb2.WriteOptions(request_id=request_id))
        other.filter.all_of.SetInParent()
        with pytest.raises(grpc.RpcError) as refused:
            connection.points.Delete(other, timeout=CALL_SECONDS_MAX)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT, refused.value

    def _check_searches(self, connection: Connection, name: str) -> None:
        """Exact searches against numpy, and a search for everything."""
        points = self.state[name]
        count = connection.points.Count(points_pb2.CountRequest(collection=name), timeout=CALL_SECONDS_MAX).count
        assert count == len(points)
        if not points:
            return
        ids = sorted(points)
        matrix = np.array([np.frombuffer(points[point_id].vector, "<f4") for point_id in ids], dtype=np.float64)
        ascending = self._metric == common_pb2.METRIC_EUCLIDEAN
        for _ in range(2):
            query = np.array([self._rng.gauss(0, 1) for _ in range(self._dimension)], dtype="<f4")
            scores = dict(zip(ids, self._scores(matrix, query.astype(np.float64)).tolist(), strict=True))
            best = sorted(scores.values(), reverse=not ascending)
            limit = min(10, len(ids))
            exact = search(connection, name, query.tobytes(), limit, exact=True)
            np.testing.assert_allclose([score for _, score in exact], best[:limit], rtol=1e-4, atol=1e-4)
            found = search(connection, name, query.tobytes(), min(len(ids) + 5, 10_000), exact=False)
            if len(ids) < 10_000:
                assert {point_id for point_id, _ in found} == set(ids), "a search did not find every point"
            for point_id, score in (*exact, *found):
                assert abs(score - scores[point_id]) < 1e-4 + 1e-4 * abs(scores[point_id])
            near = search(connection, name, query.tobytes(), limit, exact=False)
            worst = best[limit - 1]
            good = sum(abs(score - worst) < 1e-3 or (score < worst) == ascending for _, score in near)
            self.recalls.append(good / limit)

    def _scores(self, matrix: np.ndarray[Any, Any], query: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        if self._metric == common_pb2.METRIC_EUCLIDEAN:
            return np.linalg.norm(matrix - query, axis=1)
        products = matrix @ query
        if self._metric == common_pb2.METRIC_DOT:
            return products
        return products / np.linalg.norm(matrix, axis=1) / np.linalg.norm(query)

    def _difference(self, observed: State, expected: State) -> str:
        lines = [f"pending: {self.pending.rpc if self.pending else None}", f"collections: {sorted(observed)}"]
        for name, points in expected.items():
            there = observed.get(name, {})
            lost = sorted(points.keys() - there.keys())
            extra = sorted(there.keys() - points.keys())
            changed = sorted(key for key in points.keys() & there.keys() if points[key] != there[key])
            lines.append(
                f"{name}: {len(lost)} lost {lost[:3]}, {len(extra)} too many {extra[:3]}, {len(changed)} changed"
            )
            lines += [f"  {key}: {there[key]} instead of {points[key]}" for key in changed[:2]]
        return "the server holds other points than were acknowledged\n" + "\n".join(lines)


def tag_and_number_filter(tag: str, below: int) -> filter_pb2.Filter:
    """Points whose `tag` is this and whose `n` is below."""
    condition = filter_pb2.Filter()
    condition.all_of.filters.add().field.CopyFrom(
        filter_pb2.FieldCondition(path="tag", match=filter_pb2.MatchValue(keyword=tag))
    )
    number = condition.all_of.filters.add().field
    number.path = "n"
    number.number_range.lt.integer = below
    return condition


def search(
    connection: Connection, collection: str, query: bytes, limit: int, *, exact: bool
) -> list[tuple[str, float]]:
    """(id, score) of the hits."""
    request = points_pb2.Query(collection=collection, limit=limit)
    request.nearest.vector.dense.packed = query
    request.params.exact = exact
    request.with_payload.all = False
    reply = connection.points.Query(points_pb2.QueryRequest(query=request), timeout=CALL_SECONDS_MAX)
    return [(hit.point.id, hit.score) for hit in reply.hits]
