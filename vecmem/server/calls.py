"""What every RPC has in common: errors become statuses, expired deadlines are dropped, replies carry a header."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, Protocol, TypeVar, cast

import grpc

from vecmem.errors import (
    DeadlineExceededError,
    InvalidArgumentError,
    ShuttingDownError,
    UnavailableError,
    VecmemError,
)
from vecmem.log.applying import SLICE_SECONDS
from vecmem.server.error_table import abort
from vecmem.server.open_streams import OpenStreams, answering, uploading
from vecmem.server.serializers import check_decoded
from vecmem.store import wire
from vecmem.store.collection import Collection
from vecmem.store.shard import Shard
from vecmem.store.state_machine import Observer
from vecmem.store.v1 import command_pb2
from vecmem.store.validation import check_request_id, request_fingerprint
from vecmem.v1 import common_pb2

Context = grpc.aio.ServicerContext[Any, Any]
Prepared = command_pb2.Command | command_pb2.CommandResult
"""A write before it is durable: what to log, or the first result of a request that came again."""
Build = Callable[[command_pb2.Command], Iterator[None] | None]
"""Checks a request and fills its command, at once or in steps."""
HEARTBEAT_MS_MIN = 100
HEARTBEAT_MS_MAX = 600_000
HEARTBEAT_MS_DEFAULT = 10_000
S = TypeVar("S")
Q = TypeVar("Q")
R = TypeVar("R")


READ_WAIT_SECONDS_MAX = 5.0
"""How long a node that follows waits for the position that a read demands."""


class HasStreams(Protocol):
    """A servicer with streams that go on until somebody ends them."""

    @property
    def streams(self) -> OpenStreams:
        """Of its server."""


H = TypeVar("H", bound=HasStreams)

_logger = logging.getLogger(__name__)


def unary(method: Callable[[S, Q, Context], Awaitable[R | bytes]]) -> Callable[[S, Q, Context], Awaitable[R]]:
    """Make a unary servicer method: it raises VecmemError, the caller gets the status.

    It may return its reply as bytes, which are sent as they are (`vecmem.server.serializers`).
    """

    async def direct(self: S, request: Q, context: Context) -> R:
        check_takes_calls(self)
        check_deadline(context)
        check_decoded(request)
        with answering:
            await check_answers(self, request, context)
            return cast("R", await method(self, request, context))

    @functools.wraps(method)
    async def call(self: S, request: Q, context: Context) -> R:
        return await answered(direct(self, request, context), method.__qualname__, context)

    call.direct = direct  # type: ignore[attr-defined]  # for `vecmem.server.routing`
    return call


async def answered(answer: Awaitable[R], where: str, context: Context) -> R:
    """An answer, or the end of the call with the status of what was raised."""
    try:
        return await answer
    except VecmemError as error:
        await abort(context, error)
    except Exception as error:  # noqa: BLE001 - whatever it is, the caller is told and the server serves on
        await _abort_unexpected(where, context, error)
    raise AssertionError("abort raises")


def streaming(
    method: Callable[[S, AsyncIterator[Q], Context], AsyncIterator[R]],
) -> Callable[[S, AsyncIterator[Q], Context], AsyncIterator[R]]:
    """Make a streaming servicer method, in the same way."""

    @functools.wraps(method)
    async def call(self: S, requests: AsyncIterator[Q], context: Context) -> AsyncIterator[R]:
        try:
            check_takes_calls(self)
            check_deadline(context)
            await check_answers(self, None, context)
            with uploading():
                async for response in method(self, _decoded(requests), context):
                    yield response
        except VecmemError as error:
            await abort(context, error)
        except Exception as error:  # noqa: BLE001 - whatever it is, the caller is told and the server serves on
            await _abort_unexpected(method.__qualname__, context, error)

    return call


def server_streaming(
    method: Callable[[H, Q, Context], AsyncIterator[R]],
) -> Callable[[H, Q, Context], AsyncIterator[R]]:
    """Make a servicer method that answers one request with a stream, in the same way.

    What waits in it has to end, with ShuttingDownError, when `Shard.ending` is set; one whose client does not read is cancelled
    (`vecmem.server.open_streams`).
    """

    @functools.wraps(method)
    async def call(self: H, request: Q, context: Context) -> AsyncIterator[R]:
        with self.streams.open():
            try:
                check_deadline(context)
                check_decoded(request)
                await check_answers(self, request, context)
                async with contextlib.aclosing(
                    cast("AsyncGenerator[R, None]", method(self, request, context))
                ) as responses:
                    async for response in responses:
                        yield response
            except VecmemError as error:
                await abort(context, error)
            except Exception as error:  # noqa: BLE001 - whatever it is, the caller is told and the server serves on
                await _abort_unexpected(method.__qualname__, context, error)

    return call


async def ended(replies: AsyncIterator[R], context: Context) -> AsyncIterator[R]:
    """Replies of a stream; what is raised in it ends the call with its status."""
    try:
        async with contextlib.aclosing(cast("AsyncGenerator[R, None]", replies)) as open_replies:
            async for reply in open_replies:
                yield reply
    except VecmemError as error:
        await abort(context, error)
    except Exception as error:  # noqa: BLE001 - whatever it is, the caller is told and the server serves on
        await _abort_unexpected("a stream", context, error)


async def _decoded(requests: AsyncIterator[Q]) -> AsyncIterator[Q]:
    async for request in requests:
        check_decoded(request)
        yield request


def check_takes_calls(servicer: object) -> None:
    """Raises ShuttingDownError where the server ends."""
    shard: Shard | None = getattr(servicer, "_shard", None)
    if shard is not None and shard.ending:
        raise ShuttingDownError("the server drains and takes no more calls")


def check_deadline(context: Context) -> None:
    """Raises DeadlineExceededError when nobody waits for the answer any more."""
    remaining = context.time_remaining()
    if remaining is not None and remaining <= 0:
        raise DeadlineExceededError("the deadline had passed before the work began")


async def check_answers(servicer: object, request: Any, context: Context) -> None:
    """Return when this node may answer a request: it leads its shard, or the request is content with any node that has come so far.

    A servicer that any node may answer for has `ANY_NODE`. Raises MovedError; UnavailableError of a node that has just started.
    """
    shard: Shard | None = getattr(servicer, "_shard", None)
    if shard is None or shard.leads_until == math.inf or getattr(servicer, "ANY_NODE", False):
        return
    fields = () if request is None else request.DESCRIPTOR.fields_by_name
    if "read" in fields and request.read.preference == common_pb2.READ_PREFERENCE_ANY:
        wait_seconds = min(READ_WAIT_SECONDS_MAX, context.time_remaining() or READ_WAIT_SECONDS_MAX)
        await shard.applied(wanted_sequence(shard, request.read), wait_seconds)
        if shard.applied_sequence < shard.answers_from:
            raise UnavailableError("this node has started, and has not come yet to where the log was by then")
    else:
        shard.check_leads()


def deadline(context: Context) -> float | None:
    """When nobody waits for the answer any more, of time.monotonic(); None: never."""
    remaining = context.time_remaining()
    return None if remaining is None else time.monotonic() + remaining


def header(shard: Shard, sequence: int) -> common_pb2.ResponseHeader:
    """The first field of every reply."""
    return common_pb2.ResponseHeader(
        position=common_pb2.Position(shard=shard.number, sequence=sequence),
        server_time_unix_ms=shard.clock.now_unix_ms(),
    )


def header_field(shard: Shard, sequence: int) -> bytes:
    """The same, for a reply that is put together as bytes."""
    if shard.number:
        return wire.message_field(1, header(shard, sequence).SerializeToString())
    return wire.header_field(sequence, shard.clock.now_unix_ms())


def wanted_sequence(shard: Shard, read: common_pb2.ReadOptions) -> int:
    """The sequence of a shard that a reply has to reflect at least; positions of other shards are none of its business."""
    positions = (read.min_position, *read.min_positions)
    return max((position.sequence for position in positions if position.shard == shard.number), default=0)


def check_position(shard: Shard, read: common_pb2.ReadOptions) -> int:
    """The sequence that a reply reflects.

    Raises PositionAheadError where that is less than the request demands, InvalidArgumentError for a shard that is not there.
    """
    if read.min_position.shard and not shard.in_cluster:
        raise InvalidArgumentError(
            f"shard {read.min_position.shard} is not this node's, which is 0", field="read.min_position.shard"
        )
    shard.at_least(wanted_sequence(shard, read))
    return shard.applied_sequence


async def begin_read(shard: Shard, read: common_pb2.ReadOptions, name: str) -> tuple[Collection, int]:
    """A collection that may be read until the next await, and the sequence that it reflects.

    Raises PositionAheadError, CollectionNotFoundError, CollectionDamagedError.
    """
    check_position(shard, read)
    collection = shard.state.collection(name)
    await shard.settled(collection)
    return collection, shard.applied_sequence


async def write(
    shard: Shard, request: Any, build: Build, observer: Observer | None = None, *, grows: bool = False
) -> command_pb2.CommandResult:
    """Answer a repeated request from memory; else check it with `build`, which fills the command, and make it durable."""
    return await commit(shard, await prepare(shard, request, build, grows=grows), observer)


def is_repeated(shard: Shard, request: Any) -> bool:
    """Whether a request was applied before. Raises RequestIdReusedError where another one had its id."""
    request_id = request.write.request_id
    fingerprint = request.write.whole_fingerprint or request_fingerprint(request)
    return bool(request_id) and shard.repeated(request_id, fingerprint) is not None


async def prepare(shard: Shard, request: Any, build: Build, *, grows: bool = False) -> Prepared:
    """The first half of `write`: the result of a repeated request, or the command to make durable. Raises for a bad one.

    `grows`: it may make the data grow. Raises MemoryLimitError where there is no room for that.
    """
    request_id = request.write.request_id
    command = command_pb2.Command(request_id=request_id)
    if request_id:
        check_request_id(request_id)
        command.request_fingerprint = request.write.whole_fingerprint or request_fingerprint(request)
        repeated = shard.repeated(request_id, command.request_fingerprint)
        if repeated is not None:
            return repeated
    steps = build(command)
    if steps is not None:
        await run_in_slices(steps)
    if grows and shard.memory.limit_bytes:
        await shard.memory.make_room()
    return command


async def commit(shard: Shard, prepared: Prepared, observer: Observer | None = None) -> command_pb2.CommandResult:
    """The second half of `write`. Commands come into the log in the order in which the calls of this begin."""
    return prepared if isinstance(prepared, command_pb2.CommandResult) else await shard.write(prepared, observer)


def heartbeat_ms(request: Any) -> int:
    """How long a stream may be silent. Raises InvalidArgumentError."""
    if not request.heartbeat_ms:
        return HEARTBEAT_MS_DEFAULT
    if not HEARTBEAT_MS_MIN <= request.heartbeat_ms <= HEARTBEAT_MS_MAX:
        raise InvalidArgumentError(
            f"{request.heartbeat_ms} is not within {HEARTBEAT_MS_MIN} to {HEARTBEAT_MS_MAX}", field="heartbeat_ms"
        )
    return int(request.heartbeat_ms)


async def arrival(arrived: asyncio.Event, timeout_seconds: float) -> None:
    """Return when something has come, or the time is over."""
    with contextlib.suppress(TimeoutError):
        # Not wait_for: in Python 3.11 it swallows a cancellation that comes as the wait ends.
        async with asyncio.timeout(max(0.0, timeout_seconds)):
            await arrived.wait()


async def run_in_slices(steps: Iterator[None]) -> None:
    """Take all steps; other work gets its turn when they have held the event loop for SLICE_SECONDS."""
    pause = Pause()
    for _ in steps:
        await pause.when_due()


class Pause:
    """Lets others onto the event loop between the parts of a large call."""

    def __init__(self) -> None:
        self._held_since = time.perf_counter()

    async def when_due(self) -> None:
        """Step back for a moment when this call has held the event loop for SLICE_SECONDS."""
        if time.perf_counter() - self._held_since > SLICE_SECONDS:
            await asyncio.sleep(0)
            self._held_since = time.perf_counter()


async def _abort_unexpected(where: str, context: Context, error: Exception) -> None:
    _logger.error("%s failed", where, exc_info=error)
    await abort(context, VecmemError(f"internal error: {error!r}"))
