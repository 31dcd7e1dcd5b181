"""Where a client sends its calls: what it knows of a cluster, and how it chooses among its nodes. Pure; shared by both clients.

A client of one address knows nothing of clusters, and asks for nothing, until a reply or an error shows that there are other nodes. Then it
asks for the topology: calls about one shard go to the node that leads it, with the word that this client goes elsewhere by itself
where that one says MOVED; calls about several go to any node, which puts the answers together. Of a node that does not answer it keeps away
for a moment: another one passes on what was meant for it.
"""

from __future__ import annotations

import itertools
import threading
import time
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import grpc

from vecmem.v1 import common_pb2
from vecmem_client._errors import MovedError, SlotMovingError, UnimplementedError
from vecmem_client._slot_map import SlotMap, slot_map
from vecmem_client._types import Position

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vecmem.v1 import cluster_pb2
    from vecmem_client._errors import VecmemClientError
    from vecmem_client._methods import Method
    from vecmem_client._targets import Targets

ReadPolicy = Literal["primary", "replica", "nearest", "any"]

ACCEPT_MOVED: Final = (("vecmem-accept-moved", "1"),)
AGE_SECONDS_MAX: Final = 10.0
"""Of what is known: nobody tells a client of nodes that are new."""
LOOK_SECONDS_MIN: Final = 0.05
LOOK_SECONDS_MAX: Final = 2.0
"""Between two attempts to learn the topology, from the first failed one to the last."""
SUSPICION_SECONDS: Final = 1.0
"""How long a node is kept away from that did not answer."""
NOT_THERE: Final = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
SMOOTHING: Final = 0.1
EXPLORATION_TURNS: Final = 16
"""Each so manieth read goes to a node in turn, and not to the nearest one, so that its latency is known."""


class Routing:
    """Of one client, for any number of threads."""

    def __init__(self, targets: Targets, policy: ReadPolicy, clock: Callable[[], float] = time.monotonic) -> None:
        """Raises ValueError for an unknown policy."""
        if policy not in get_args(ReadPolicy):
            raise ValueError(f"read_policy is one of {', '.join(get_args(ReadPolicy))}, not {policy!r}")
        self.known: SlotMap | None = None
        self._targets = targets
        self._policy = policy
        self._clock = clock
        self._lock = threading.Lock()
        self._looking = False
        self._wanted = policy != "primary" or targets.are_several
        self._supported = True
        self._look_at = 0.0
        self._look_pause_seconds = LOOK_SECONDS_MIN
        self._learned_at = 0.0
        self._suspected_until: dict[str, float] = {}
        self._latencies: dict[str, float] = {}
        self._turns = itertools.count()
        self._sequences: dict[int, int] = {}
        self._last_shard = 0

    # -- what is known ------------------------------------------------------------------------------------------------

    def begins_to_look(self) -> bool:
        """Whether the caller shall ask for the topology now, and nobody else; `end_look` ends that."""
        if not self._wanted and self.known is None:
            return False
        now = self._clock()
        if not (self._wanted or now - self._learned_at > AGE_SECONDS_MAX) or now < self._look_at or not self._supported:
            return False
        with self._lock:
            if self._looking:
                return False
            self._looking = True
            return True

    def learn(self, reply: cluster_pb2.GetTopologyResponse) -> list[str]:
        """Keep a topology, unless a newer one is known; returns the addresses of nodes that are gone."""
        found = slot_map(reply)
        with self._lock:
            self._learned_at = self._clock()
            self._look_at = self._learned_at + self._look_pause_seconds
            if found is None:
                self._wanted, self.known = False, None
                return []
            if self.known is not None and found.epoch < self.known.epoch:
                return []  # of a node that lags: the next one asked may know more
            self.known = found
            # Who has begun to lead tells that a little later.
            self._wanted = not found.is_complete
            self._look_pause_seconds = (
                min(2 * self._look_pause_seconds, LOOK_SECONDS_MAX) if self._wanted else LOOK_SECONDS_MIN
            )
            gone = [
                address for address in self._targets.replace_learned(found.addresses) if self._is_suspected(address)
            ]
            for address in gone:
                self._suspected_until.pop(address, None)
                self._latencies.pop(address, None)
            return gone

    def fail_to_learn(self, failure: VecmemClientError, address: str) -> None:
        """Try again a little later, and elsewhere."""
        with self._lock:
            if isinstance(failure, UnimplementedError):
                self._supported = False
                return
            self._look_at = self._clock() + self._look_pause_seconds
            self._look_pause_seconds = min(2 * self._look_pause_seconds, LOOK_SECONDS_MAX)
        self._suspect(address)
        self._targets.look_elsewhere(failure, address)

    def end_look(self) -> None:
        """Somebody else may ask from now on."""
        self._looking = False

    def want(self) -> None:
        """Something shows that what is known is not the whole truth."""
        self._wanted = True

    # -- where calls go -----------------------------------------------------------------------------------------------

    def spreads(self) -> bool:
        """Whether reads may go to nodes that do not lead."""
        return self._policy != "primary" and self.known is not None

    def shard_of(self, method: Method[Any], request: Any) -> int | None:
        """The one shard that a request is about; None: there are several, or it is not known."""
        known = self.known
        if known is None or method.keys_of is None:
            return None
        return known.shard_of_keys(method.keys_of(request))

    def place(self, shard: int | None, *, spread: bool) -> tuple[str, Any]:
        """The address for a call about a shard, or about several (None), and the metadata to send."""
        known = self.known
        if known is None:
            return self._targets.current, None
        if shard is None:
            return (self._choose(known.addresses) if spread else None) or self._targets.current, None
        leader = known.leaders.get(shard)
        address = leader
        if spread:
            members = known.members.get(shard, ())
            if self._policy == "replica":
                members = [member for member in members if member != leader]
            address = self._choose(members) or leader
        if address and not self._is_suspected(address):
            return address, ACCEPT_MOVED
        return self._elsewhere(), None

    def _choose(self, addresses: Sequence[str]) -> str | None:
        """One of them, by the policy."""
        usable = [address for address in addresses if not self._is_suspected(address)]
        if not usable:
            return None
        turn = next(self._turns)
        if self._policy == "nearest" and turn % EXPLORATION_TURNS:
            return min(usable, key=lambda address: self._latencies.get(address, 0.0))
        if self._policy == "nearest":
            turn //= EXPLORATION_TURNS
        return usable[turn % len(usable)]

    def _elsewhere(self) -> str:
        """A node that may be there, whichever."""
        current = self._targets.current
        if not self._is_suspected(current):
            return current
        return next((address for address in self._targets.known if not self._is_suspected(address)), current)

    # -- what calls tell ----------------------------------------------------------------------------------------------

    def answered(self, header: common_pb2.ResponseHeader, address: str, seconds: float, shard: int | None) -> None:
        """Take note of a reply, and of how long it took."""
        self.note(header)
        if self.known is None:
            return
        if shard is not None and shard not in {header.position.shard, *(at.shard for at in header.positions)}:
            self.want()  # it was passed on: the slot has moved
        known = self._latencies.get(address)
        self._latencies[address] = seconds if known is None else known + SMOOTHING * (seconds - known)
        if self._suspected_until:
            self._suspected_until.pop(address, None)

    def failed(self, failure: VecmemClientError, address: str) -> None:
        """Take note of a call that failed, and look elsewhere where that is of use."""
        if isinstance(failure, MovedError):
            self._moved(failure, address)
        elif failure.code in NOT_THERE and not isinstance(failure, SlotMovingError):
            self._suspect(address)
            if self.known is not None:
                self.want()
        if failure.code is grpc.StatusCode.UNAVAILABLE and not isinstance(failure, SlotMovingError):
            self._targets.look_elsewhere(failure, address)

    def _moved(self, failure: MovedError, address: str) -> None:
        self.want()
        known, owner = self.known, failure.metadata.get("owner")
        shard, slot = failure.metadata.get("shard", ""), failure.metadata.get("slot", "")
        if known is None or not owner or owner == address or not shard.isdigit():
            return
        epoch = int(failure.metadata.get("epoch", "0"))
        if epoch >= known.epoch:
            self.known = known.corrected(int(shard), owner, int(slot) if slot.isdigit() else None, epoch)

    def _suspect(self, address: str) -> None:
        if self.known is not None or self._targets.are_several:
            self._suspected_until[address] = self._clock() + SUSPICION_SECONDS

    def _is_suspected(self, address: str) -> bool:
        until = self._suspected_until.get(address)
        return until is not None and self._clock() < until

    # -- positions ----------------------------------------------------------------------------------------------------

    @property
    def last_position(self) -> Position:
        """The newest position of the shard that answered last, or of the first one of those."""
        return Position(self._last_shard, self._sequences.get(self._last_shard, 0))

    @property
    def last_positions(self) -> tuple[Position, ...]:
        """The newest position of each shard, in order of their numbers."""
        with self._lock:
            return tuple(Position(shard, self._sequences[shard]) for shard in sorted(self._sequences))

    def note(self, header: common_pb2.ResponseHeader) -> None:
        """Keep the newest positions."""
        position = header.position
        if position.sequence > self._sequences.get(position.shard, 0):
            self._keep(position)
        if position.shard != self._last_shard and position.sequence:
            self._last_shard = position.shard
        if header.positions or position.shard:
            for other in header.positions:
                self._keep(other)
            if self.known is None:
                self.want()

    def _keep(self, position: common_pb2.Position) -> None:
        with self._lock:
            if position.sequence > self._sequences.get(position.shard, 0):
                self._sequences[position.shard] = position.sequence

    def demand(self) -> common_pb2.ReadOptions:
        """What a read that any node may answer has to reflect: all that this client has seen, so that reads never go back."""
        with self._lock:
            sequences = dict(self._sequences)
        return common_pb2.ReadOptions(
            preference=common_pb2.READ_PREFERENCE_ANY,
            min_positions=[
                common_pb2.Position(shard=shard, sequence=sequence) for shard, sequence in sequences.items()
            ],
        )
