"""Which node answers a call: this one, another one, or several, whose answers are put together.

A node of a cluster answers for its own shard alone. `Router` stands before the servicers, which know nothing of it: it finds the shards
that a request is about, calls each, here or at another node, and looks again where somebody says MOVED. A call that carries
`vecmem-shard` is a part of another one and answered here or not at all. A client that sends `vecmem-accept-moved` is told where to go.

A reply gathered from shards speaks for every slot exactly once: each part says which slots it speaks for, and where a slot has moved
meanwhile and they do not make up a whole, the parts are asked for again.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
from google.protobuf import descriptor_pool
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from numpy.typing import NDArray

from vecmem.cluster import peers as peering
from vecmem.cluster.merging import merge_header
from vecmem.cluster.peers import Peers
from vecmem.cluster.view import ClusterView
from vecmem.errors import (
    DeadlineExceededError,
    InvalidArgumentError,
    MovedError,
    SlotMovingError,
    UnavailableError,
    VecmemError,
)
from vecmem.server.calls import Context
from vecmem.server.error_table import error_message
from vecmem.slots import SLOTS
from vecmem.store import wire
from vecmem.store.shard import Shard
from vecmem.store.slot_table import SlotTable
from vecmem.store.validation import request_fingerprint
from vecmem.v1 import common_pb2

Reply = Any
"""A message, or the bytes of one."""
Parts = list[tuple[int, Any]]
"""Shards and what they have answered."""

CALL_SECONDS_MAX: Final = 30.0
"""How long a call without a deadline is tried."""
DEADLINE_SECONDS_MAX: Final = 7 * 24 * 3600.0
RETRY_SECONDS_MIN: Final = 0.002
RETRY_SECONDS_MAX: Final = 0.1
"""Many may wait at once, and each tries again so often; another slot map ends a pause at once."""
MARGIN_SHARE: Final = 0.1
MARGIN_SECONDS_MAX: Final = 0.25
"""Of the time left, kept back for putting answers together where a shard that does not answer may be left out."""
HEDGE_SECONDS_MIN: Final = 0.02
HEDGE_FACTOR: Final = 4.0
"""A second member is asked when the first one takes so much longer than members usually do."""


@dataclass(frozen=True, slots=True)
class Method:
    """A unary method of the servicers of this node."""

    path: str
    direct: Callable[[Any, Context], Awaitable[Reply]]
    """Answers here, and raises VecmemError."""
    response_type: type[Message]
    reads: bool


@dataclass(frozen=True, slots=True)
class Call:
    """A call under way, from whoever it came."""

    context: Any
    """A servicer's context, as far as servicers look at it."""
    deadline: float
    """Of time.monotonic()."""
    metadata: Mapping[str, str | bytes]
    is_bounded: bool = True
    """Whether the deadline is the client's; else each request of a stream has one of its own."""
    read: common_pb2.ReadOptions = field(default_factory=common_pb2.ReadOptions)
    is_repeatable: bool = False
    """Whether a write is known by a request_id, so that it may be tried again."""

    @property
    def any_member(self) -> bool:
        """Whether whoever has the data may answer."""
        return self.read.preference == common_pb2.READ_PREFERENCE_ANY

    @property
    def accepts_moved(self) -> bool:
        """Whether the client goes to another node by itself."""
        return peering.ACCEPT_MOVED_KEY in self.metadata

    @property
    def part_of_shard(self) -> int | None:
        """The shard that has to answer here; None: it is no part of another call."""
        number = self.metadata.get(peering.SHARD_KEY)
        return None if number is None else int(number)

    def seconds_left(self) -> float:
        """Until the deadline. Raises DeadlineExceededError."""
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise DeadlineExceededError("the time was over before all shards had answered")
        return left


def bare_call(context: Context) -> Call:
    """What a call carries beside its requests."""
    remaining = context.time_remaining()
    # The native engine says a very long time where there is none.
    is_bounded = remaining is not None and remaining <= DEADLINE_SECONDS_MAX
    deadline = time.monotonic() + (remaining if remaining is not None and is_bounded else CALL_SECONDS_MAX)
    return Call(context, deadline, dict(context.invocation_metadata() or ()), is_bounded)


def call_of(context: Context, request: Any) -> Call:
    """What a call carries with its request."""
    return call_with(bare_call(context), request)


def internal_call(request: Any, seconds_max: float) -> Call:
    """A call that a node makes by itself."""
    return call_with(Call(_NoContext(), time.monotonic() + seconds_max, {}), request)


def call_with(call: Call, request: Any) -> Call:
    """The call that one request of a batch would have been by itself."""
    fields = request.DESCRIPTOR.fields_by_name
    waited_seconds = request.wait_ms / 1e3 if "wait_ms" in fields else 0.0
    return replace(
        call,
        deadline=call.deadline if call.is_bounded else time.monotonic() + CALL_SECONDS_MAX + waited_seconds,
        read=request.read if "read" in fields and request.HasField("read") else call.read,
        is_repeatable=bool("write" in fields and request.write.request_id),
    )


def method_of(path: str, direct: Callable[[Any, Context], Awaitable[Reply]]) -> Method:
    """A unary method by its path, `/package.Service/Method`."""
    service, _, name = path[1:].partition("/")
    descriptor = descriptor_pool.Default().FindServiceByName(service).methods_by_name[name]
    fields = descriptor.input_type.fields_by_name
    return Method(
        path, direct, GetMessageClass(descriptor.output_type), reads="read" in fields and "write" not in fields
    )


class _NoContext:
    """Of a call that nobody has sent."""

    def time_remaining(self) -> float | None:
        """There is no deadline beside the call's own."""
        return None


class Router:
    """Of one node."""

    def __init__(self, shard: Shard, view: ClusterView, peers: Peers) -> None:
        self.shard = shard
        self.view = view
        self.peers = peers
        self._whole: set[tuple[bytes, ...]] = set()
        self._packed = (0, b"")
        """The shard's slots at a revision."""
        self._shard_of: tuple[tuple[int, int], NDArray[np.int32]] = ((-1, -1), np.zeros(SLOTS, np.int32))
        """By slot, at an epoch of the topology and a revision of the slots."""
        self._turn = 0
        self._usual_seconds = HEDGE_SECONDS_MIN / HEDGE_FACTOR

    def leads(self) -> bool:
        """Whether this node answers for its shard now."""
        return time.monotonic() < self.shard.leads_until

    @property
    def shard_of(self) -> NDArray[np.int32]:
        """By slot, shape (SLOTS,): as the topology has it, but what this node leads it owns from the moment that its log says so."""
        slot_map, table = self.view.slot_map, self.shard.state.slots
        if table is None or not self.leads():
            return slot_map.shard_of
        known = (slot_map.epoch, table.revision)
        if self._shard_of[0] != known:
            self._shard_of = (known, np.where(table.owned, np.int32(self.shard.number), slot_map.shard_of))
        return self._shard_of[1]

    def only_shard(self) -> int | None:
        """The shard that has all slots; None: there are several."""
        slot_map = self.view.slot_map
        return slot_map.numbers[0] if slot_map.is_single else None

    def check_read(self, read: common_pb2.ReadOptions) -> None:
        """Raises InvalidArgumentError where a position of a shard is demanded that is not there."""
        number = read.min_position.shard
        if number and all(number != shard.number for shard in self.view.slot_map.topology.shards):
            raise InvalidArgumentError(f"there is no shard {number}", field="read.min_position.shard")

    # -- one shard ----------------------------------------------------------------------------------------------------

    async def part(self, method: Method, request: Any, call: Call) -> Reply:
        """Answer a part of another node's call: here, or not at all. Raises MovedError for another shard's."""
        if call.part_of_shard != self.shard.number:
            raise MovedError(f"this node is of shard {self.shard.number}, not {call.part_of_shard}")
        return await self._here(method, request, call, slots=peering.SLOTS_KEY in call.metadata)

    async def at_slot(self, method: Method, request: Any, call: Call, slot: int) -> Reply:
        """Have whoever has a slot answer. Raises MovedError where the client goes there by itself."""
        return await self.at(method, request, call, lambda: int(self.shard_of[slot]), slot=slot)

    async def at_slots(self, method: Method, request: Any, call: Call, slots: Sequence[int]) -> Reply | None:
        """Have the shard answer that has all of some slots. None: no shard does, or none does any more. Raises as `at_slot`."""

        def where() -> int | None:
            numbers = {int(self.shard_of[slot]) for slot in slots or (0,)}
            return numbers.pop() if len(numbers) == 1 else None

        return await self.at(method, request, call, where, slot=slots[0] if slots else 0)

    async def at(
        self,
        method: Method,
        request: Any,
        call: Call,
        where: Callable[[], int | None],
        *,
        slot: int | None = None,
        slots: bool = False,
        passes_on: bool = False,
    ) -> Reply:
        """Have a shard answer, and look again where it is when it has moved; None where that is nowhere.

        `passes_on`: also for clients that go there by themselves. Raises MovedError at once where slots of such a part have moved.
        """
        pause_seconds = RETRY_SECONDS_MIN
        while True:
            number = where()
            if number is None:
                return None
            if not passes_on:
                self.check_here(number, slot, call)
            try:
                if self._is_here(number, call):
                    return await self._here(method, request, call, slots=slots)
                return await self._ask(method, request, call, number, slots=slots)
            except (MovedError, SlotMovingError) as error:
                # Of a part some slots may have moved, and others not: whoever made it divides it anew.
                divided = passes_on and isinstance(error, MovedError) and "slot" in error.metadata
                if divided or call.deadline - time.monotonic() < pause_seconds:
                    raise
            except UnavailableError:
                # Nobody knows whether a write was done: only a repeat of it that is known as one may be tried.
                if not (method.reads or call.is_repeatable) or call.deadline - time.monotonic() < pause_seconds:
                    raise
            await self.view.news(pause_seconds)
            pause_seconds = min(2 * pause_seconds, RETRY_SECONDS_MAX)
            with contextlib.suppress(UnavailableError):
                await self.view.look()

    def _is_here(self, number: int, call: Call) -> bool:
        return number == self.shard.number and (call.any_member or self.leads())

    def check_here(self, number: int, slot: int | None, call: Call) -> None:
        """Raises MovedError for a client that goes there by itself, where another node answers for a shard."""
        if not call.accepts_moved or self._is_here(number, call):
            return
        owner = self._leader_of(number)
        metadata = {"shard": str(number), "owner": owner, "epoch": str(self.view.slot_map.epoch)}
        if slot is not None:
            metadata["slot"] = str(slot)
        raise MovedError(f"shard {number} answers for this, led by {owner or 'nobody that is known'}", **metadata)

    async def _here(self, method: Method, request: Any, call: Call, *, slots: bool) -> Reply:
        if not slots:
            return await method.direct(request, call.context)
        while True:
            table = self.shard.state.slots
            if table is None:
                raise MovedError(f"shard {self.shard.number} has not got its slots yet")
            revision = table.revision
            reply = await method.direct(request, call.context)
            if revision == table.revision:
                break
        said = common_pb2.ResponseHeader(slots=self._packed_slots(table))
        if isinstance(reply, bytes):
            return reply + wire.message_field(1, said.SerializeToString())
        reply.header.slots = said.slots
        return reply

    def _packed_slots(self, table: SlotTable) -> bytes:
        """The slots of this shard, as a header says them."""
        if self._packed[0] != table.revision:
            content = b"".join(bound.to_bytes(2, "big") for bounds in table.ranges() for bound in bounds)
            self._packed = (table.revision, content)
        return self._packed[1]

    async def _ask(self, method: Method, request: Any, call: Call, number: int, *, slots: bool) -> Reply:
        metadata: list[tuple[str, str]] = [(peering.SHARD_KEY, str(number))]
        if slots:
            metadata.append((peering.SLOTS_KEY, "1"))
        addresses = self._addresses(number, call)
        if not addresses:
            raise MovedError(f"nobody leads shard {number}, as far as is known", shard=str(number))
        content = request.SerializeToString()

        async def ask(address: str) -> Reply:
            began = time.monotonic()
            reply = await self.peers.call(
                address, method.path, content, timeout_seconds=call.seconds_left(), metadata=tuple(metadata)
            )
            self._usual_seconds += 0.05 * (time.monotonic() - began - self._usual_seconds)
            return reply

        if len(addresses) == 1:
            return await ask(addresses[0])
        return await self._hedged(ask, addresses)

    async def _hedged(self, ask: Callable[[str], Awaitable[Reply]], addresses: list[str]) -> Reply:
        """The first answer of a member; a second one is asked when the first is slow or fails."""
        tasks = [asyncio.ensure_future(ask(addresses[0]))]
        try:
            await asyncio.wait(tasks, timeout=max(HEDGE_SECONDS_MIN, HEDGE_FACTOR * self._usual_seconds))
            if not tasks[0].done() or tasks[0].exception() is not None:
                tasks.append(asyncio.ensure_future(ask(addresses[1])))
            pending = set(tasks)
            while True:
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                answered = [task for task in done if task.exception() is None]
                if answered or not pending:
                    return (answered or list(done))[0].result()
        finally:
            for task in tasks:
                task.cancel()

    def _leader_of(self, number: int) -> str:
        """Address of the node that leads a shard; empty: that is not known. Of this node's own its log tells it sooner than others do."""
        return (self.shard.owner if number == self.shard.number else "") or self.view.leader_of(number)

    def _addresses(self, number: int, call: Call) -> list[str]:
        """Where a shard is asked: the node that leads it, or two of its members in turn, where any may answer."""
        if not call.any_member:
            leader = self._leader_of(number)
            return [leader] if leader else []
        members = [node.address for node in self.view.members_of(number)]
        self._turn += 1
        start = self._turn % len(members) if members else 0
        return (members[start:] + members[:start])[:2]

    # -- all shards ---------------------------------------------------------------------------------------------------

    async def everywhere(
        self, method: Method, request_for: Callable[[int], Any], call: Call
    ) -> tuple[Parts, list[common_pb2.ShardFailure]]:
        """The answers of all shards that together speak for each slot once.

        The failures are of shards that are left out, where the caller allows that; at least one has answered.
        """
        pauses = self.pauses(call)
        while True:
            numbers = self.view.slot_map.numbers
            outcomes = await self.gather(method, {number: request_for(number) for number in numbers}, call, slots=True)
            parts, failures = answered_parts(outcomes, allow_partial=call.read.allow_partial)
            if failures or self._is_whole(parts):
                return parts, failures
            await anext(pauses)

    async def pauses(self, call: Call) -> AsyncIterator[None]:
        """Pauses between attempts, in which the topology is looked at again. Raises DeadlineExceededError."""
        pause_seconds = RETRY_SECONDS_MIN
        while True:
            call.seconds_left()
            await self.view.news(pause_seconds)
            pause_seconds = min(2 * pause_seconds, RETRY_SECONDS_MAX)
            with contextlib.suppress(UnavailableError):
                await self.view.look()
            yield

    async def gather(
        self, method: Method, requests: Mapping[int, Any], call: Call, *, slots: bool = False
    ) -> dict[int, Any | VecmemError]:
        """What some shards have answered, or failed with, by their numbers."""
        if call.read.allow_partial and len(requests) > 1:
            margin_seconds = min(MARGIN_SECONDS_MAX, MARGIN_SHARE * call.seconds_left())
            call = replace(call, deadline=call.deadline - margin_seconds)

        async def one(number: int, request: Any) -> Any | VecmemError:
            if number == self.shard.number and len(requests) > 1:
                await asyncio.sleep(0)
            try:
                reply = await self.at(method, request, call, lambda: number, slots=slots, passes_on=True)
            except VecmemError as error:
                return error
            return method.response_type.FromString(reply) if isinstance(reply, bytes) else reply

        # What is done here holds up what is asked elsewhere, and so comes last; requests leave in a turn of their own.
        numbers = sorted(requests, key=lambda number: number == self.shard.number)
        replies = await asyncio.gather(*(one(number, requests[number]) for number in numbers))
        outcomes = dict(zip(numbers, replies, strict=True))
        return {number: outcomes[number] for number in requests}

    def _is_whole(self, parts: Parts) -> bool:
        """Whether parts speak for each slot exactly once."""
        said = tuple(reply.header.slots for _, reply in parts)
        if said in self._whole:
            return True
        counts = np.zeros(SLOTS + 1, dtype=np.int32)
        for ranges in said:
            bounds = np.frombuffer(ranges, dtype=">u2").astype(np.int64)
            np.add.at(counts, bounds[0::2], 1)
            np.add.at(counts, bounds[1::2] + 1, -1)
        whole = bool((np.cumsum(counts[:SLOTS]) == 1).all())
        if whole:
            if len(self._whole) > 64:
                self._whole.clear()
            self._whole.add(said)
        return whole


def answered_parts(
    outcomes: Mapping[int, Any | VecmemError], *, allow_partial: bool
) -> tuple[Parts, list[common_pb2.ShardFailure]]:
    """The answers among outcomes, and the failures. Raises the first failure, unless it is allowed for and somebody has answered."""
    parts: Parts = []
    failures: list[common_pb2.ShardFailure] = []
    for number, outcome in outcomes.items():
        if not isinstance(outcome, VecmemError):
            parts.append((number, outcome))
        elif allow_partial and isinstance(outcome, UnavailableError | DeadlineExceededError):
            failures.append(common_pb2.ShardFailure(shard=number, error=error_message(outcome)))
        else:
            raise outcome
    if not parts and failures:
        raise next(outcome for outcome in outcomes.values() if isinstance(outcome, VecmemError))
    return parts, failures


def part_write(request: Any) -> common_pb2.WriteOptions:
    """The options of the parts of a request: a shard knows each by the whole."""
    write = common_pb2.WriteOptions(request_id=request.write.request_id)
    if write.request_id:
        write.whole_fingerprint = request.write.whole_fingerprint or request_fingerprint(request)
    return write


def merged_header(parts: Parts, failures: Sequence[common_pb2.ShardFailure] = ()) -> common_pb2.ResponseHeader:
    """Of a reply put together from those of shards."""
    header = merge_header([(number, reply.header) for number, reply in parts])
    header.failures.extend(failures)
    return header
