"""Streams of replies in a cluster: those of all shards become one. Shards that are new, or led by another node, are listened to as well."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any, Final

from vecmem.cluster import peers as peering
from vecmem.errors import MovedError, ShuttingDownError, UnavailableError, VecmemError
from vecmem.server.calls import heartbeat_ms
from vecmem.server.routing import Router
from vecmem.v1 import channels_pb2, watch_pb2

PENDING_MAX: Final = 4
"""Replies of shards that the client has not taken: a slow one holds the shards back, which tell it when it is too slow."""
LOOK_SECONDS: Final = 0.5
RETRY_SECONDS: Final = 0.1
UNREACHABLE_SECONDS_MAX: Final = 30.0
"""How long a shard may be out of reach before a stream ends with UNAVAILABLE, to be taken up again by its client."""

Listen = Callable[[int], AsyncGenerator[bytes, None]]


class StreamRouting:
    """Watch and Subscribe over all shards."""

    def __init__(self, router: Router) -> None:
        self._router = router

    async def watch(self, request: watch_pb2.WatchRequest) -> AsyncIterator[watch_pb2.WatchResponse]:
        """Changes of all shards, in order for each, with one position for all of them."""
        heartbeat_ms(request)
        places = _places(request)
        first = {shard.number for shard in self._router.view.slot_map.topology.shards}

        def listen(number: int) -> AsyncGenerator[bytes, None]:
            part = watch_pb2.WatchRequest()
            part.CopyFrom(request)
            if number in places:
                part.after.CopyFrom(places[number])
            elif number not in first or request.HasField("after"):
                part.after.SetInParent()  # a new shard: all of it comes after what was seen
            return self._listen(number, "/vecmem.v1.WatchService/Watch", part)

        def placed(number: int, response: watch_pb2.WatchResponse) -> watch_pb2.WatchResponse:
            """With the places that all shards have come to."""
            places[number] = watch_pb2.ChangePosition()
            places[number].CopyFrom(response.position)
            response.position.others.extend(places[other] for other in sorted(places) if other != number)
            return response

        begun: set[int] = set()
        held: list[tuple[int, watch_pb2.WatchResponse]] = []
        async with contextlib.aclosing(self._merged(listen)) as replies:
            async for number, content in replies:
                response = watch_pb2.WatchResponse.FromString(content)
                if begun >= first:
                    yield placed(number, response)
                elif number in begun:
                    held.append((number, response))
                else:
                    # A shard says first where it begins, and so does the feed, when all have; what is held comes behind.
                    begun.add(number)
                    placed(number, response)
                    if begun >= first:
                        yield response
                        for told, late in held:
                            yield placed(told, late)

    async def subscribe(self, request: channels_pb2.SubscribeRequest) -> AsyncIterator[channels_pb2.SubscribeResponse]:
        """Messages of all shards: each publication goes to the one that has the channel's slot."""
        heartbeat_ms(request)

        def listen(number: int) -> AsyncGenerator[bytes, None]:
            return self._listen(number, "/vecmem.v1.ChannelService/Subscribe", request)

        waits_for = {shard.number for shard in self._router.view.slot_map.topology.shards}
        async with contextlib.aclosing(self._merged(listen)) as replies:
            async for number, content in replies:
                response = channels_pb2.SubscribeResponse.FromString(content)
                began = number in waits_for
                waits_for.discard(number)
                # The first reply says that every message from now on comes.
                if response.messages or not waits_for or not began:
                    yield response

    async def _listen(self, number: int, path: str, request: Any) -> AsyncGenerator[bytes, None]:
        address = self._router.view.leader_of(number)
        if not address:
            raise UnavailableError(f"nobody leads shard {number}, as far as is known")
        metadata = ((peering.SHARD_KEY, str(number)),)
        async with contextlib.aclosing(
            self._router.peers.stream(address, path, request.SerializeToString(), metadata=metadata)
        ) as replies:
            async for reply in replies:
                yield reply

    async def _merged(self, listen: Listen) -> AsyncGenerator[tuple[int, bytes], None]:
        """What all shards say, and which of them. Raises what a shard ends with, unless it is only elsewhere now."""
        arrived: asyncio.Queue[tuple[int, bytes | VecmemError]] = asyncio.Queue(PENDING_MAX)
        listeners: dict[int, asyncio.Task[None]] = {}

        async def forward(number: int) -> None:
            heard_at = time.monotonic()
            while True:
                try:
                    async with contextlib.aclosing(listen(number)) as replies:
                        async for reply in replies:
                            heard_at = time.monotonic()
                            await arrived.put((number, reply))
                    error: VecmemError = UnavailableError(f"shard {number} has ended its stream")
                except VecmemError as failure:
                    error = failure
                retriable = isinstance(error, MovedError | UnavailableError)
                if not retriable or time.monotonic() - heard_at > UNREACHABLE_SECONDS_MAX:
                    await arrived.put((number, error))
                    return
                await asyncio.sleep(RETRY_SECONDS)
                with contextlib.suppress(UnavailableError):
                    await self._router.view.look()

        try:
            while True:
                numbers = {shard.number for shard in self._router.view.slot_map.topology.shards}
                for number in numbers - listeners.keys():
                    listeners[number] = asyncio.create_task(forward(number))
                for number in listeners.keys() - numbers:
                    listeners.pop(number).cancel()
                said: tuple[int, bytes | VecmemError] | None = None
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_SECONDS):
                        said = await arrived.get()
                if said is not None:
                    number, reply = said
                    if isinstance(reply, VecmemError):
                        raise reply
                    yield number, reply
                if self._router.shard.ending:
                    raise ShuttingDownError("the server is about to end")
        finally:
            for task in listeners.values():
                task.cancel()


def _places(request: watch_pb2.WatchRequest) -> dict[int, watch_pb2.ChangePosition]:
    """Where a request goes on, by shard."""
    if not request.HasField("after"):
        return {}
    after = request.after
    return {
        place.shard: watch_pb2.ChangePosition(
            shard=place.shard, sequence=place.sequence, change_count=place.change_count
        )
        for place in (after, *after.others)
    }


def merge_listings(
    parts: list[channels_pb2.ListChannelsResponse], page_size: int
) -> tuple[list[channels_pb2.ChannelInfo], bool]:
    """Channels of all shards in order of their names, with how many are subscribed.

    Not added up: who is subscribed through a cluster is subscribed at every shard.
    """
    bound = min((part.channels[-1].channel for part in parts if part.more and part.channels), default=None)
    counts: dict[bytes, int] = {}
    for part in parts:
        for info in part.channels:
            counts[info.channel] = max(counts.get(info.channel, 0), info.subscriber_count)
    names = sorted(name for name in counts if bound is None or name <= bound)
    page = [channels_pb2.ChannelInfo(channel=name, subscriber_count=counts[name]) for name in names[:page_size]]
    return page, bound is not None or len(names) > page_size
