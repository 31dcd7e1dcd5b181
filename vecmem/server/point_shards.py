"""What all methods of PointService have in common over the shards of a cluster: parts by slot, and their replies together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from vecmem import limits
from vecmem.cluster import merging
from vecmem.errors import (
    CollectionDamagedError,
    CollectionNotFoundError,
    InvalidArgumentError,
    LimitExceededError,
    MovedError,
    VecmemError,
)
from vecmem.server.error_table import error_message
from vecmem.server.routing import (
    Call,
    Method,
    Parts,
    Reply,
    Router,
    answered_parts,
)
from vecmem.store.collection import Collection
from vecmem.v1 import collections_pb2, common_pb2

MOVING_REASONS: Final = ("MOVED", "SLOT_MOVING")
Methods = dict[str, Method]
"""The methods of the service, by their names."""


class PointShards:
    """The shards of a cluster, as PointService goes over them."""

    def __init__(self, router: Router, methods: Methods, get_collection: Method) -> None:
        self.router = router
        self.methods = methods
        self._get_collection = get_collection

    def is_one_shard(self, slots: Sequence[int]) -> bool:
        """Whether one shard has all of some slots."""
        shard_of = self.router.shard_of
        return len({int(shard_of[slot]) for slot in slots}) <= 1

    def by_shard(self, slots: Sequence[int], places: Sequence[int]) -> dict[int, list[int]]:
        """Some places of a request, given the slots of all, by the shard that has their slot."""
        shard_of = self.router.shard_of
        found: dict[int, list[int]] = {}
        for place in places:
            found.setdefault(int(shard_of[slots[place]]), []).append(place)
        return found

    async def scatter(
        self, method: Method, slots: Sequence[int], part_of: Callable[[list[int]], Any], call: Call
    ) -> tuple[Parts, list[common_pb2.ShardFailure]]:
        """Have each shard do its part, once: what it says has moved goes where it is now.

        `slots` of the places in the request, of some of which `part_of` makes a request.
        """
        pauses = self.router.pauses(call)
        parts: Parts = []
        failures: list[common_pb2.ShardFailure] = []
        left = list(range(len(slots)))
        while True:
            places = self.by_shard(slots, left)
            requests = {number: part_of(some) for number, some in places.items()}
            outcomes = await self.router.gather(method, requests, call)
            moved = [number for number, outcome in outcomes.items() if isinstance(outcome, MovedError)]
            decided = {number: outcome for number, outcome in outcomes.items() if number not in moved}
            answered, failed = answered_parts(decided, allow_partial=call.read.allow_partial)
            parts += answered
            failures += failed
            if not moved:
                return parts, failures
            left = sorted(place for number in moved for place in places[number])
            await anext(pauses)

    def collection(self, name: str) -> Collection | None:
        """A collection as this node's shard has it; None: it is not known here, or damaged."""
        try:
            return self.router.shard.state.collection(name)
        except (CollectionNotFoundError, CollectionDamagedError):
            return None

    async def config_of(self, name: str, call: Call) -> collections_pb2.CollectionConfig:
        """The definition of a collection, asked of the first shard where it is not known here. Raises CollectionNotFoundError."""
        collection = self.collection(name)
        if collection is not None:
            return collection.config
        request = collections_pb2.GetCollectionRequest(name=name)
        first = self.router.view.slot_map.numbers[0]
        outcomes = await self.router.gather(self._get_collection, {first: request}, call)
        [(_, reply)], _ = answered_parts(outcomes, allow_partial=False)
        config: collections_pb2.CollectionConfig = reply.collection.config
        return config


def batch_response(response: Any, outcomes: Sequence[Reply | VecmemError | common_pb2.Error]) -> Any:
    """The reply to a batch, with the outcome of each of its requests; those that it has no room for are refused by themselves."""
    headers: list[tuple[int, common_pb2.ResponseHeader]] = []
    size_bytes = 0
    for known in outcomes:
        outcome = response.outcomes.add()
        if isinstance(known, VecmemError):
            outcome.error.CopyFrom(error_message(known))
            continue
        if isinstance(known, common_pb2.Error):
            outcome.error.CopyFrom(known)
            continue
        if isinstance(known, bytes):
            outcome.result.ParseFromString(known)
        else:
            outcome.result.CopyFrom(known)
        header = outcome.result.header
        for position in header.positions or (header.position,):
            one = common_pb2.ResponseHeader(position=position, server_time_unix_ms=header.server_time_unix_ms)
            headers.append((position.shard, one))
        size_bytes += outcome.result.ByteSize()
        if size_bytes > limits.MESSAGE_BYTES_MAX:
            size_bytes -= outcome.result.ByteSize()
            outcome.error.CopyFrom(error_message(too_large()))
    if headers:
        response.header.CopyFrom(merging.merge_header(headers))
    return response


def check_count(requests: Any, field: str = "requests") -> None:
    """Raises InvalidArgumentError, LimitExceededError for a batch of none or too many."""
    if not len(requests):
        raise InvalidArgumentError("carries no request", field=field)
    if len(requests) > limits.REQUESTS_PER_BATCH_MAX:
        raise LimitExceededError(f"{len(requests)} requests, more than {limits.REQUESTS_PER_BATCH_MAX}", field=field)


def check_size(response: Any) -> None:
    """Raises LimitExceededError for a reply that no message holds."""
    if response.ByteSize() > limits.MESSAGE_BYTES_MAX:
        raise too_large()


def too_large() -> LimitExceededError:
    """What to raise for a reply that no message holds."""
    return LimitExceededError(
        f"the reply is over {limits.MESSAGE_BYTES_MAX} bytes: ask for fewer points, or for less of each", field="ids"
    )
