"""A writer of keys that knows what a server must hold: the twin of `workload.Writer` for the key-value half.

It sends one pipeline or one transaction at a time under a request id. After a crash the keys must look as if all of the pending one had
happened, or none of it; then it is sent again, and must have happened exactly once. Counters tell: an increment applied twice is seen.
A transaction writes a point as well, which has to change with the keys.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable

import grpc

from tests.crash.traffic import CALL_SECONDS_MAX, Connection, TrafficWriter
from vecmem.v1 import (
    collections_pb2,
    common_pb2,
    keys_pb2,
    keys_pb2_grpc,
    pipeline_pb2,
    pipeline_pb2_grpc,
    points_pb2,
    strings_pb2,
    strings_pb2_grpc,
    transactions_pb2,
    transactions_pb2_grpc,
)

Values = dict[bytes, bytes]
Request = pipeline_pb2.PipelineRequest | transactions_pb2.CommitRequest
COLLECTION = "transactions"
POINT = b"the point"
"""In the model: what the writer's point says."""


class KeyWriter(TrafficWriter):
    """One client with keys of its own."""

    def __init__(self, number: int, seed: int) -> None:
        super().__init__()
        self.prefix = b"{w%d}" % number
        self.values: Values = {}
        self.pending: Request | None = None
        self.acknowledged_count = 0
        self._rng = random.Random(seed)
        self._requests = 0
        self._name = f"keys-{number}-{seed}"

    def step(self, connection: Connection) -> None:
        """One request, acknowledged and applied to the model; on an RpcError it stays pending."""
        pipeline = self._next_pipeline()
        self.pending = self._transaction_of(pipeline) if self._rng.random() < 0.4 else pipeline
        self._send(connection)

    def check(self, connection: Connection) -> None:
        """Compare the server with the model; settle what is pending; compare again. Raises AssertionError."""
        observed = self._observe(connection)
        if observed != self.values:
            assert self.pending is not None, (
                f"the server holds other keys than were acknowledged: {self._difference(observed)}"
            )
            assert observed == after(self.values, self.pending)[0], f"half of a request: {self._difference(observed)}"
        if self.pending is not None:
            self._send(connection)
            observed = self._observe(connection)
            assert observed == self.values, f"a repeat changed something: {self._difference(observed)}"

    def _send(self, connection: Connection) -> None:
        assert self.pending is not None
        if isinstance(self.pending, transactions_pb2.CommitRequest):
            outcomes = self._commit(connection, self.pending)
        else:
            stub = pipeline_pb2_grpc.PipelineServiceStub(connection.channel)
            reply = stub.Pipeline(self.pending, timeout=CALL_SECONDS_MAX)
            outcomes = [_outcome(result) for result in reply.results]
        self.values, expected = after(self.values, self.pending)
        assert outcomes == expected, f"other results than the model's: {outcomes}, expected {expected}"
        self.pending = None
        self.acknowledged_count += 1

    def _commit(self, connection: Connection, request: transactions_pb2.CommitRequest) -> list[object]:
        stub = transactions_pb2_grpc.TransactionServiceStub(connection.channel)
        try:
            reply = stub.Commit(request, timeout=CALL_SECONDS_MAX)
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.FAILED_PRECONDITION:
                raise
            return ["refused"]
        done = [_outcome(result.operation) for result in reply.results if result.HasField("operation")]
        return [reply.succeeded, *done]

    def _transaction_of(self, pipeline: pipeline_pb2.PipelineRequest) -> transactions_pb2.CommitRequest:
        """The same operations, which are done where a key exists; otherwise one of them. Both write the point."""
        steps = [transactions_pb2.TransactionStep(operation=operation) for operation in pipeline.operations]
        point = points_pb2.Point(
            id=self.prefix.decode() + "point",
            vector=common_pb2.Vector(dense=common_pb2.DenseVector(values=[1.0, 0.0])),
            payload_json=json.dumps({"says": pipeline.write.request_id}).encode(),
        )
        steps.insert(
            len(steps) // 2,
            transactions_pb2.TransactionStep(upsert=points_pb2.UpsertRequest(collection=COLLECTION, points=[point])),
        )
        compare = transactions_pb2.Compare(key=self.prefix + b"%d" % self._rng.randrange(40), exists=True)
        otherwise = [steps[0], *(step for step in steps[1:] if step.HasField("upsert"))]
        if len(steps) == 2 and steps[0].HasField("upsert"):
            otherwise = steps
        return transactions_pb2.CommitRequest(compare=[compare], then=steps, otherwise=otherwise, write=pipeline.write)

    def _next_pipeline(self) -> pipeline_pb2.PipelineRequest:
        self._requests += 1
        request = pipeline_pb2.PipelineRequest()
        request.write.request_id = f"{self._name}-{self._requests}"
        for _ in range(self._rng.randint(1, 30)):
            operation = request.operations.add()
            key = self.prefix + b"%d" % self._rng.randrange(40)
            match self._rng.choice(["set", "append", "add", "add", "delete"]):
                case "set":
                    operation.set_string.key, operation.set_string.value = key, b"%d" % self._rng.randrange(1_000)
                case "append":
                    operation.append_string.key, operation.append_string.value = (
                        key,
                        self._rng.choice([b"1", b"x" * 50]),
                    )
                case "add":
                    operation.add_integer.key, operation.add_integer.delta = key, 1
                case _:
                    operation.delete_keys.keys.append(key)
        return request

    def _observe(self, connection: Connection) -> Values:
        keys = keys_pb2_grpc.KeyServiceStub(connection.channel)
        strings = strings_pb2_grpc.StringServiceStub(connection.channel)
        request = keys_pb2.ScanKeysRequest(pattern=self.prefix + b"*", page_size=1_000)
        page = keys.ScanKeys(request, timeout=CALL_SECONDS_MAX)
        assert not page.next_page_token
        got = points_pb2.GetRequest(collection=COLLECTION, ids=[self.prefix.decode() + "point"])
        observed: Values = {}
        for point in connection.points.Get(got, timeout=CALL_SECONDS_MAX).points:
            observed[POINT] = json.loads(point.payload_json)["says"].encode()
        if page.keys:
            found = strings.GetStrings(strings_pb2.GetStringsRequest(keys=page.keys), timeout=CALL_SECONDS_MAX)
            observed |= {key: value.value for key, value in zip(page.keys, found.values, strict=True)}
        return observed

    def _difference(self, observed: Values) -> str:
        keys = sorted(key for key in observed | self.values if observed.get(key) != self.values.get(key))
        return ", ".join(f"{key!r}: {observed.get(key)!r} instead of {self.values.get(key)!r}" for key in keys[:3])


def after(values: Values, request: Request) -> tuple[Values, list[object]]:
    """What a request makes of values, and its results."""
    if isinstance(request, pipeline_pb2.PipelineRequest):
        return after_operations(values, request.operations)
    succeeded = request.compare[0].key in values
    steps = request.then if succeeded else request.otherwise
    changed, results = after_operations(values, [step.operation for step in steps if step.HasField("operation")])
    if "error" in results:
        return values, ["refused"]
    for step in steps:
        if step.HasField("upsert"):
            changed[POINT] = json.loads(step.upsert.points[0].payload_json)["says"].encode()
    return changed, [succeeded, *results]


def after_operations(values: Values, requested: Iterable[pipeline_pb2.Operation]) -> tuple[Values, list[object]]:
    """What operations make of values, and their results."""
    values = dict(values)
    results: list[object] = []
    for operation in requested:
        match operation.WhichOneof("kind"):
            case "set_string":
                values[operation.set_string.key] = operation.set_string.value
                results.append(True)
            case "append_string":
                key = operation.append_string.key
                values[key] = values.get(key, b"") + operation.append_string.value
                results.append(len(values[key]))
            case "add_integer":
                key = operation.add_integer.key
                content = values.get(key, b"0")
                if not (content.isdigit() and b"%d" % int(content) == content and int(content) < 2**63 - 1):
                    results.append("error")
                    continue
                values[key] = b"%d" % (int(content) + 1)
                results.append(int(values[key]))
            case _:
                results.append(int(values.pop(operation.delete_keys.keys[0], None) is not None))
    return values, results


def _outcome(result: pipeline_pb2.OperationResult) -> object:
    match result.WhichOneof("kind"):
        case "set_string":
            return result.set_string.written
        case "append_string":
            return result.append_string.size_bytes
        case "add_integer":
            return result.add_integer.value
        case "delete_keys":
            return result.delete_keys.deleted_count
        case kind:
            return kind


def create_collection(connection: Connection) -> None:
    """Make the collection that transactions write to, unless it is there."""
    if COLLECTION in connection.names():
        return
    config = collections_pb2.CollectionConfig(
        vector=collections_pb2.VectorParams(dimension=2, metric=common_pb2.METRIC_DOT, flat={})
    )
    request = collections_pb2.CreateCollectionRequest(name=COLLECTION, config=config)
    connection.collections.CreateCollection(request, timeout=CALL_SECONDS_MAX)
