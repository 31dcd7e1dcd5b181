"""Many operations on keys as one request: those that write go into one record, and those that read run in their places between them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from vecmem import limits
from vecmem.errors import LimitExceededError, VecmemError
from vecmem.store.deduplication import DeduplicationWindow
from vecmem.store.keyspace import operations
from vecmem.store.keyspace.keyspace import Keyspace
from vecmem.store.keyspace.operation import REPLY_BYTES_MAX, Moment, Operation
from vecmem.store.keyspace.operation_keys import keys_of
from vecmem.store.v1 import command_pb2
from vecmem.v1 import pipeline_pb2

STEP_OPERATIONS = 64
"""Operations checked or copied between two yields: well below a millisecond, but for long values."""


class Pipeline:
    """Operations and what became of each. In order: `check`, then `fill` and `take` if there are writes, then `read_rest`.

    The steps of each go on as long as nothing holds the event loop; other operations may come in between.
    """

    def __init__(
        self,
        keyspace: Keyspace,
        requested: Sequence[pipeline_pb2.Operation],
        deduplication: DeduplicationWindow,
        check_names: Callable[[Iterable[bytes]], None],
    ) -> None:
        """`check_names` raises for keys that are another shard's by the time that they are read."""
        self.response = pipeline_pb2.PipelineResponse()
        self._keyspace = keyspace
        self._deduplication = deduplication
        self._check_names = check_names
        self._requested = requested
        self._writing: list[int] = []
        self._reading: deque[_Reading] = deque()
        self._read_bytes = 0

    @property
    def writes(self) -> bool:
        """Whether there is anything to log."""
        return bool(self._writing)

    def check(self, full: VecmemError | None = None, now_unix_ms: int = 0) -> Iterator[None]:
        """Check each operation; one that is refused gets its error. `full`: why none may make the data grow, but for a repeated one."""
        for index, operation in enumerate(self._requested):
            if index % STEP_OPERATIONS == 0:
                yield
            result = self.response.results.add()
            try:
                kind, found, asked = operations.check(operation)
                if full is not None and found.grows and not self._was_done(operation, now_unix_ms):
                    raise full
            except VecmemError as error:
                result.error.CopyFrom(operations.stored_error(error))
            else:
                if found.writes:
                    self._writing.append(index)
                else:
                    self._reading.append(_Reading(index, kind, found, asked, result))

    def keys(self) -> Iterator[bytes]:
        """The keys that operations name."""
        for operation in self._requested:
            kind = operation.WhichOneof("kind")
            if kind is not None:
                yield from keys_of(getattr(operation, kind))

    def _was_done(self, operation: pipeline_pb2.Operation, now_unix_ms: int) -> bool:
        request_id = operation.request_id
        return bool(request_id) and self._deduplication.find(request_id, now_unix_ms) is not None

    def fill(self, command: command_pb2.Command) -> Iterator[None]:
        """Put the writes into a command."""
        for place in range(0, len(self._writing), STEP_OPERATIONS):
            yield
            part = self._writing[place : place + STEP_OPERATIONS]
            if part[-1] - part[0] + 1 == len(part):
                command.run_operations.operations.extend(self._requested[part[0] : part[-1] + 1])
            else:
                command.run_operations.operations.extend(self._requested[index] for index in part)

    def observe(self, place: int, time_unix_ms: int) -> Iterator[None]:
        """Run what reads before the write in a place of the command, at the time of its record."""
        return self._read(self._writing[place], time_unix_ms)

    def take(self, results: Iterable[pipeline_pb2.OperationResult]) -> Iterator[None]:
        """Take over the results of the writes."""
        if len(self._writing) == len(self._requested):
            self.response.ClearField("results")
            self.response.results.extend(results)
            return
        for place, (index, result) in enumerate(zip(self._writing, results, strict=True)):
            if place % STEP_OPERATIONS == 0:
                yield
            self.response.results[index].CopyFrom(result)

    def read_rest(self, time_unix_ms: int) -> Iterator[None]:
        """Run what reads and has not run yet: all of it where nothing was logged."""
        return self._read(len(self._requested), time_unix_ms)

    def _read(self, before: int, time_unix_ms: int) -> Iterator[None]:
        if not self._reading or self._reading[0].place >= before:
            return
        moment = Moment(time_unix_ms)
        read_bytes_max = REPLY_BYTES_MAX - (limits.RESULT_BYTES_MAX if self._writing else 0)
        while self._reading and self._reading[0].place < before:
            _, kind, found, asked, result = self._reading.popleft()
            try:
                self._check_names(keys_of(asked))
            except VecmemError as error:
                result.error.CopyFrom(operations.stored_error(error))
            else:
                operations.perform(found, self._keyspace, kind, asked, result, moment)
            size_bytes = result.ByteSize()
            if self._read_bytes + size_bytes <= read_bytes_max:
                self._read_bytes += size_bytes
            else:
                message = f"the results have more than {read_bytes_max} bytes"
                result.error.CopyFrom(operations.stored_error(LimitExceededError(message)))
            yield


class _Reading(NamedTuple):
    """An operation that reads and has not run yet."""

    place: int
    kind: str
    found: Operation
    asked: Any
    result: pipeline_pb2.OperationResult
