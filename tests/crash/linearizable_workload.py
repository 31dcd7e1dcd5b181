"""Concurrent clients of a few keys, and the history of what they asked for and were told.

A call that fails in a way that leaves open what came of it is sent again under the same request id until it is answered; its interval is then that from
the first try to the answer. Or the client gives up, and the outcome stays unknown. A read that fails is no part of the history.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, Self

import grpc

from tests.crash.linearizable_messages import READS, answered, condition_of, kind_of, operation_of
from tests.crash.traffic import CALL_SECONDS_MAX
from tests.support.linearizability import NEVER, Action, Operation
from vecmem.v1 import pipeline_pb2, transactions_pb2, transactions_pb2_grpc
from vecmem_client import AsyncClient, RetryPolicy, VecmemClientError
from vecmem_client import _operations as client_operations
from vecmem_client import transactions as client_transactions

OPEN: Final = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED}
"""Codes that leave open whether a write has happened."""
KINDS: Final = ("register", "counter", "set", "queue", "lock")
SETTLE_SECONDS_MAX: Final = 30.0


class OutcomeOpenError(Exception):
    """A call has failed, and it may have happened all the same, or may still."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(f"{code.name}: {details}")
        self.code = code


class Connection(Protocol):
    """How a client reaches the server. Both methods raise OutcomeOpenError; any other error is one of the test."""

    def run(self, operation: pipeline_pb2.Operation, request_id: str, timeout_seconds: float) -> Any:
        """Do one operation; returns its response. An empty request id: a read."""

    def commit(
        self, request: transactions_pb2.CommitRequest, timeout_seconds: float
    ) -> transactions_pb2.CommitResponse:
        """Do a transaction."""


class StubConnection:
    """Raw calls over a channel of its own: each operation by the RPC of its own."""

    def __init__(self, address: str, metadata: Sequence[tuple[str, str]] = ()) -> None:
        """`metadata` goes with each call."""
        self._metadata = tuple(metadata)
        self._channel = grpc.insecure_channel(
            address,
            options=[
                ("grpc.use_local_subchannel_pool", 1),
                ("grpc.initial_reconnect_backoff_ms", 50),
                ("grpc.min_reconnect_backoff_ms", 500),
                ("grpc.max_reconnect_backoff_ms", 200),
                ("grpc.enable_retries", 0),
            ],
        )
        self._transactions = transactions_pb2_grpc.TransactionServiceStub(self._channel)

    def run(self, operation: pipeline_pb2.Operation, request_id: str, timeout_seconds: float) -> Any:
        kind = operation.WhichOneof("kind")
        assert kind is not None
        request = getattr(operation, kind)
        if request_id:
            request.write.request_id = request_id
        method = client_operations.method_of(kind)
        call = self._channel.unary_unary(
            method.path, request_serializer=type(request).SerializeToString, response_deserializer=method.parse
        )
        return self._call(call, request, timeout_seconds)

    def commit(self, request: transactions_pb2.CommitRequest, timeout_seconds: float) -> Any:
        return self._call(self._transactions.Commit, request, timeout_seconds)

    def close(self) -> None:
        self._channel.close()

    def _call(self, call: Any, request: Any, timeout_seconds: float) -> Any:
        try:
            return call(request, timeout=timeout_seconds, metadata=self._metadata)
        except grpc.RpcError as error:
            if error.code() not in OPEN:
                raise
            raise OutcomeOpenError(error.code(), error.details()) from error


class CoalescingConnection:
    """The project's own asyncio client, shared by all: operations that are run at the same time travel together."""

    def __init__(self, address: str, *, coalesce: bool = True) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._client = self._wait(self._made(address, coalesce))

    async def _made(self, address: str, coalesce: bool) -> AsyncClient:
        retry = RetryPolicy(attempts_max=3, backoff_seconds_max=0.1)
        return AsyncClient(address, retry=retry, coalesce=coalesce)

    def run(self, operation: pipeline_pb2.Operation, request_id: str, timeout_seconds: float) -> Any:
        kind = operation.WhichOneof("kind")
        assert kind is not None
        message = client_operations.Operation(kind, operation, bool(request_id), lambda response: response)
        return self._wait(self._client.run(message, request_id=request_id or None, timeout_seconds=timeout_seconds))

    def commit(self, request: transactions_pb2.CommitRequest, timeout_seconds: float) -> Any:
        def steps(sent: Sequence[transactions_pb2.TransactionStep]) -> list[Any]:
            kinds = [(step.operation.WhichOneof("kind") or "", step.operation) for step in sent]
            return [client_operations.Operation(kind, one, True, lambda response: response) for kind, one in kinds]

        then, otherwise = steps(request.then), steps(request.otherwise)
        result = self._wait(
            self._client.commit(
                compare=[client_transactions.Compare(one) for one in request.compare],
                then=then,
                otherwise=otherwise,
                request_id=request.write.request_id,
                timeout_seconds=timeout_seconds,
            )
        )
        reply = transactions_pb2.CommitResponse(succeeded=result.succeeded)
        for step, response in zip(then if result.succeeded else otherwise, result.results, strict=True):
            getattr(reply.results.add().operation, step.kind).CopyFrom(response)
        return reply

    def close(self) -> None:
        self._wait(self._client.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _wait(self, coroutine: Any) -> Any:
        try:
            return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(2 * CALL_SECONDS_MAX)
        except VecmemClientError as error:
            if error.code not in OPEN:
                raise
            raise OutcomeOpenError(error.code, str(error)) from error


class Keys:
    """The keys of one generation: five by themselves, and five that share a slot so that transactions may change them together."""

    def __init__(self, generation: int) -> None:
        self.alone = [f"{generation}-{kind}" for kind in KINDS]
        self.together = [f"{{{generation}}}-{kind}" for kind in KINDS]

    @property
    def all(self) -> list[str]:
        return [*self.alone, *self.together]


@dataclass
class History:
    """What all clients have noted."""

    operations: list[Operation] = field(default_factory=list)
    events: Counter[str] = field(default_factory=Counter)


@dataclass
class Plan:
    """What the clients are to do, for all of them to look at."""

    keys: Keys
    stop: bool = False
    """Begin nothing further; what is under way is settled."""
    abandoned: bool = False
    """Settle nothing either: the test has failed."""


class Client:
    """One of the clients, in a thread of its own."""

    def __init__(
        self,
        name: str,
        seed: int,
        connection: Connection,
        plan: Plan,
        history: History,
        settle_seconds_max: float = SETTLE_SECONDS_MAX,
    ) -> None:
        self.error: BaseException | None = None
        self._name = name
        self._rng = random.Random(seed)
        self._connection = connection
        self._plan = plan
        self._history = history
        self._settle_seconds_max = settle_seconds_max
        self._requests = 0
        self._versions: dict[str, int] = {}
        """What this client has last been told of registers."""
        self._tokens: dict[str, int] = {}
        """Of the locks that this client holds, or has held."""
        self._sums: dict[str, int] = {}
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> Self:
        self._thread.start()
        return self

    def end(self) -> None:
        """Wait for it, after `plan.stop`. Raises what it found wrong."""
        self._thread.join(2 * self._settle_seconds_max)
        assert not self._thread.is_alive()
        self.raise_error()

    def look_at(self, keys: Sequence[str]) -> None:
        """Read each key whole, also those that nobody has touched for a while. After `end`."""
        for key in keys:
            noted_count = len(self._history.operations)
            while len(self._history.operations) == noted_count:
                self._do(Action(key, {"set": "members", "queue": "items", "lock": "holder"}.get(kind_of(key), "get")))

    def raise_error(self) -> None:
        """Raise what it has found wrong so far, if anything."""
        if self.error is not None:
            raise self.error

    def _run(self) -> None:
        try:
            while not self._plan.stop:
                if self._rng.random() < 0.2:
                    self._commit()
                else:
                    self._do(self._action(self._rng.choice(self._plan.keys.all)))
        except BaseException as error:  # noqa: BLE001 - handed to the test's own thread
            self.error = error

    def _do(self, action: Action) -> None:
        if action.name in READS:
            called_ns = time.monotonic_ns()
            try:
                reply = self._connection.run(operation_of(action), "", self._timeout_seconds())
            except OutcomeOpenError as error:
                self._history.events[f"read: {error.code.name}"] += 1
                self._pause()
                return
            self._note(called_ns, time.monotonic_ns(), [answered(action, reply)])
            return
        request_id = self._request_id()
        called_ns, returned_ns, reply = self._settle(
            lambda timeout_seconds: self._connection.run(operation_of(action), request_id, timeout_seconds)
        )
        if returned_ns == NEVER:
            self._history.operations.append(Operation.unknown(self._name, called_ns, (action,), request_id=request_id))
        else:
            self._note(called_ns, returned_ns, [answered(action, reply)], request_id)

    def _commit(self) -> None:
        keys = self._plan.keys.together
        then = [self._action(self._rng.choice(keys)) for _ in range(self._rng.randint(1, 4))]
        otherwise = [self._action(self._rng.choice(keys)) for _ in range(self._rng.randint(1, 2))]
        counter = next(key for key in keys if kind_of(key) == "counter")
        least = self._sums.get(counter, 0) + self._rng.choice([-1, 1, 2, 3])
        condition = Action(counter, "is_at_least", (least,))
        request = transactions_pb2.CommitRequest(
            compare=[condition_of(condition)],
            then=[transactions_pb2.TransactionStep(operation=operation_of(action)) for action in then],
            otherwise=[transactions_pb2.TransactionStep(operation=operation_of(action)) for action in otherwise],
        )
        request.write.request_id = self._request_id()
        called_ns, returned_ns, reply = self._settle(
            lambda timeout_seconds: self._connection.commit(request, timeout_seconds)
        )
        ways = [(holds, Action(counter, "is_at_least", (least,), holds)) for holds in (True, False)]
        if returned_ns == NEVER:
            both = [(compared, *(then if holds else otherwise)) for holds, compared in ways]
            self._history.operations.append(
                Operation.unknown(self._name, called_ns, *both, request_id=request.write.request_id)
            )
            return
        done = then if reply.succeeded else otherwise
        results = [getattr(one.operation, one.operation.WhichOneof("kind")) for one in reply.results]
        compared = next(compared for holds, compared in ways if holds == reply.succeeded)
        steps = [answered(action, result) for action, result in zip(done, results, strict=True)]
        self._note(called_ns, returned_ns, [compared, *steps], request.write.request_id)
        self._history.events["committed" if reply.succeeded else "committed otherwise"] += 1

    def _settle(self, send: Any) -> tuple[int, int, Any]:
        """Send a write until it is answered, or until this client gives up: times of the call and of its answer or NEVER, and the answer."""
        gives_up = self._rng.random() < 0.3
        called_ns = time.monotonic_ns()
        tries = 0
        while True:
            try:
                reply = send(self._timeout_seconds())
            except OutcomeOpenError as error:
                tries += 1
                self._history.events[f"write: {error.code.name}"] += 1
                self._pause()
                if gives_up or self._plan.abandoned:
                    self._history.events["given up"] += 1
                    self._wait_for_the_server()
                    return called_ns, NEVER, None
                waited_seconds = (time.monotonic_ns() - called_ns) / 1e9
                if waited_seconds > self._settle_seconds_max:
                    raise RuntimeError(f"no answer after {tries} tries, the last: {error}") from error
                continue
            self._history.events["settled by another try"] += tries > 0
            return called_ns, time.monotonic_ns(), reply

    def _wait_for_the_server(self) -> None:
        """Not to leave an operation of unknown outcome behind for each moment of a restart."""
        get = operation_of(Action(self._plan.keys.alone[0], "get"))
        while not self._plan.stop:
            try:
                self._connection.run(get, "", 1.0)
            except OutcomeOpenError:
                self._pause()
            else:
                return

    def _note(self, called_ns: int, returned_ns: int, actions: Sequence[Action], request_id: str = "") -> None:
        self._history.operations.append(
            Operation.known(self._name, called_ns, returned_ns, *actions, request_id=request_id)
        )
        for action in actions:
            match kind_of(action.key), action.name:
                case "register", "set":
                    self._versions[action.key] = action.result
                case "register", "get" | "set_if_absent" | "set_if_version":
                    self._versions[action.key] = action.result[1]
                case "lock", "acquire" if action.result[0] == self._name:
                    self._tokens[action.key] = action.result[1]
                case "counter", "add" | "get":
                    self._sums[action.key] = action.result

    def _action(self, key: str) -> Action:
        """Something to do to a key."""
        rng = self._rng
        match kind_of(key):
            case "register":
                name = rng.choice(["set", "get", "get", "set_if_absent", "set_if_version", "set_if_version", "delete"])
                value = f"{self._name}.{self._requests}.{rng.randrange(1_000)}"
                if name == "set_if_version":
                    return Action(key, name, (value, self._versions.get(key, 0)))
                return Action(key, name, (value,) if name.startswith("set") else ())
            case "counter":
                return Action(key, "get") if rng.random() < 0.4 else Action(key, "add", (rng.choice([1, 1, 2, -1]),))
            case "set":
                name = rng.choice(["add", "remove", "contains", "size", "members"])
                return Action(key, name, (rng.choice("abcd"),) if name in ("add", "remove", "contains") else ())
            case "queue":
                name = rng.choice(["push"] * 4 + ["pop"] * 5 + ["items"])
                return Action(key, name, (f"{self._name}.{self._requests}.{rng.randrange(1_000)}",) * (name == "push"))
            case _:
                token = self._tokens.get(key)
                if token is not None and rng.random() < 0.6:
                    if rng.random() < 0.9:  # otherwise it is released another time as well
                        del self._tokens[key]
                    return Action(key, "release", (self._name, token))
                return Action(key, "acquire", (self._name,)) if rng.random() < 0.7 else Action(key, "holder")

    def _request_id(self) -> str:
        self._requests += 1
        return f"{self._name}-{self._requests}"

    def _timeout_seconds(self) -> float:
        """Now and then so short that the call fails while the server does it."""
        return self._rng.choice([0.002, 0.005, 0.01]) if self._rng.random() < 0.02 else 0.4

    def _pause(self) -> None:
        time.sleep(self._rng.uniform(0.01, 0.05))
