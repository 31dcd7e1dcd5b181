"""A model of clusters that are larger than a machine: docs/scaling.md says what it assumes and what follows.

    gather_quantile      latency of a gather from that of its parts, by order statistics alone
    chance_of_slow       how likely a gather meets a shard that is slow
    simulated            gathers played through: parts on processors, and a coordinator that handles one thing at a time
    fitted, compare      what a part costs the coordinator, found at two shards; predictions beside what was measured
    topology_bytes, coordination, log_load    what is kept and sent whatever is asked

Times are milliseconds. The simulation is seeded: the same input gives the same answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from vecmem.cluster import topology as layout
from vecmem.cluster.topology import ranges_of
from vecmem.cluster.view import ANNOUNCE_SECONDS, LOOK_SECONDS
from vecmem.slots import SLOTS
from vecmem.v1.cluster_pb2 import NodeInfo, Topology

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from bench.report import Report

    Times = npt.NDArray[np.float64]

RENEWALS_PER_LEASE: Final = 4
"""Of vecmem.cluster.member, which needs the extra `cluster`; a test compares the two."""
SEED: Final = 13
TRIALS: Final = 20_000
FIT_STEPS: Final = 24
PART_COST_MS_MAX: Final = 20.0
NORMAL_P99: Final = 2.3263
"""How many standard deviations the 99th percentile of a normal distribution is above its median."""


# -- tails ---------------------------------------------------------------------------------------------------------------


def gather_quantile(part_ms: Times, shards: int, share: float) -> float:
    """The latency that a share of gathers stay below, where parts are independent and nothing else costs anything.

    The slowest of n parts is below t with the n-th power of the chance that one is.
    """
    return float(np.quantile(part_ms, share ** (1.0 / shards)))


def chance_of_slow(chance: float, shards: int, *, hedged: bool = False) -> float:
    """How likely a gather waits for a slow member, where one of its shards' members is slow with a chance.

    Hedged, it waits only where the second member that was asked is slow as well.
    """
    return 1.0 - (1.0 - (chance * chance if hedged else chance)) ** shards


def lognormal(p50_ms: float, p99_ms: float, count: int, rng: np.random.Generator) -> Times:
    """Times of a distribution with these two percentiles. Shape (count,)."""
    times: Times = p50_ms * np.exp(np.log(p99_ms / p50_ms) / NORMAL_P99 * rng.standard_normal(count))
    return times


@dataclass(frozen=True, kw_only=True)
class Hedge:
    """A second member is asked when the first has not answered after some time."""

    after_ms: float


@dataclass(frozen=True, kw_only=True)
class Slowness:
    """Now and then a member takes long: a checkpoint, a neighbour, a garbage collection."""

    chance: float
    ms: float


# -- the simulation ------------------------------------------------------------------------------------------------------


def simulated(
    part_ms: Times,
    shards: int,
    *,
    part_cost_ms: float,
    cores: int = 0,
    slowness: Slowness | None = None,
    hedge: Hedge | None = None,
    trials: int = TRIALS,
    seed: int = SEED,
) -> Times:
    """Latencies of gathers. Shape (trials,).

    The coordinator sends one part after the other and takes one reply after the other, half of `part_cost_ms` each. A part is
    worked on at once where every shard has processors of its own (`cores` 0), or as soon as one of the machine's is free, which all
    of them and the coordinator share.

    Args:
        part_ms: what a part takes its shard, to be drawn from.
        shards: how many parts a gather has. One alone is no gather: it takes what its part takes.
        part_cost_ms: of the coordinator's time, for each part.
        cores: of one machine with all of it; 0: each shard has a machine.
        slowness: added to drawn parts.
        hedge: what is done about it. Only where each shard has a machine: there is nobody else to ask on a single one.
        trials: gathers.
        seed: of what is drawn.
    """
    if hedge is not None and cores:
        raise ValueError("on one machine there is no second member")
    rng = np.random.default_rng(seed)
    work = _member_times(part_ms, (trials, shards), slowness, rng)
    if hedge is not None:
        second = hedge.after_ms + _member_times(part_ms, (trials, shards), slowness, rng)
        work = np.where(work > hedge.after_ms, np.minimum(work, second), work)
    if shards == 1:
        return work[:, 0]
    half = part_cost_ms / 2.0
    ends = _ends_on_own_machines(work, half) if not cores else _ends_on_shared_cores(work, half, cores)
    ends.sort(axis=1)
    sent = half * shards
    done = np.full(trials, sent)
    for place in range(shards):
        done = np.maximum(done, ends[:, place]) + half
    return done


def _member_times(part_ms: Times, shape: tuple[int, int], slowness: Slowness | None, rng: np.random.Generator) -> Times:
    drawn: Times = rng.choice(part_ms, size=shape)
    if slowness is not None:
        drawn = drawn + slowness.ms * (rng.random(shape) < slowness.chance)
    return drawn


def _ends_on_own_machines(work: Times, half: float) -> Times:
    sent = half * np.arange(1, work.shape[1] + 1)
    return work + sent


def _ends_on_shared_cores(work: Times, half: float, cores: int) -> Times:
    """Parts in the order in which they are sent, each on the processor that is free first; one is the coordinator's until all are sent."""
    trials, shards = work.shape
    free = np.zeros((trials, cores))
    free[:, 0] = half * shards
    ends = np.empty_like(work)
    rows = np.arange(trials)
    for place in range(shards):
        core = free.argmin(axis=1)
        began = np.maximum(free[rows, core], half * (place + 1))
        ends[:, place] = began + work[:, place]
        free[rows, core] = ends[:, place]
    return ends


# -- beside what was measured --------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What one number of shards was measured to do on one machine."""

    shards: int
    gathered_ms: Times
    part_ms: Times
    """Of parts that were asked for alone, with the call to the shard's node in it."""
    empty_ms: float
    """An empty call: what of a call is no work."""
    queries_per_second: float
    points_per_second: float

    @property
    def work_ms(self) -> Times:
        """What a part takes its shard."""
        return np.maximum(self.part_ms - self.empty_ms, 0.0)


def predicted_ms(measured: Measured, part_cost_ms: float, cores: int) -> Times:
    """Latencies of gathers, from what its parts take alone."""
    return measured.empty_ms + simulated(measured.work_ms, measured.shards, part_cost_ms=part_cost_ms, cores=cores)


def fitted(measured: Measured, cores: int) -> float:
    """The cost of a part, ms, with which the prediction's median is the measured one; by halving, it grows with it."""
    wanted = float(np.median(measured.gathered_ms))
    low, high = 0.0, PART_COST_MS_MAX
    for _ in range(FIT_STEPS):
        middle = (low + high) / 2.0
        if float(np.median(predicted_ms(measured, middle, cores))) < wanted:
            low = middle
        else:
            high = middle
    return (low + high) / 2.0


def predicted_rates(measured: Sequence[Measured], cores: int) -> list[float]:
    """Queries a second of many callers, where the processors are what bounds them, for each number of shards.

    A query takes a time that has nothing to do with shards, and for each shard the work of its part and a cost. The first is what the
    first measurement leaves, the last what the second one does. It is less than of a query alone: calls that are made at the same time
    travel together, and share it.
    """

    def taken_ms(found: Measured) -> float:
        return cores * 1e3 / found.queries_per_second

    def parts_ms(found: Measured) -> float:
        return found.shards * float(np.median(found.work_ms))

    base_ms = taken_ms(measured[0]) - parts_ms(measured[0])
    cost_ms = 0.0
    if len(measured) > 1:
        second = measured[1]
        cost_ms = (taken_ms(second) - base_ms - parts_ms(second)) / (second.shards - measured[0].shards)
    rates = []
    for found in measured:
        total_ms = base_ms + parts_ms(found) + cost_ms * (found.shards - measured[0].shards)
        # Work that was measured beside other work may come out as more than all the time there was.
        rates.append(cores * 1e3 / max(total_ms, taken_ms(measured[0])))
    return rates


def compare(report: Report, measured: Sequence[Measured], *, cores: int, callers: int) -> None:
    """Add what the model says of each number of shards, and how far that is from what was measured.

    What a part costs is found at the first number of shards above one, so that one and this one say little of the model, and the
    others do.
    """
    if not measured:
        return
    several = [found for found in measured if found.shards > 1]
    part_cost_ms = fitted(several[0], cores) if several else 0.0
    if several:
        report.add("model", "part_cost_ms", part_cost_ms, "ms")
    for found, rate in zip(measured, predicted_rates(measured, cores), strict=True):
        predicted = predicted_ms(found, part_cost_ms, cores)
        pairs = [
            (f"query_ms_p{percentile}", float(np.percentile(predicted, percentile)), "ms") for percentile in (50, 99)
        ]
        actual = [float(np.percentile(found.gathered_ms, percentile)) for percentile in (50, 99)]
        pairs.append((f"qps_{callers}_callers", rate, "1/s"))
        actual.append(found.queries_per_second)
        for (name, value, unit), seen in zip(pairs, actual, strict=True):
            report.add("model", f"{name}_shards_{found.shards}", value, unit)
            report.add("model", f"{name}_to_measured_shards_{found.shards}", value / seen, "ratio")
        report.add("model", f"topology_bytes_shards_{found.shards}", topology_bytes(found.shards), "bytes")


# -- what is kept and sent whatever is asked -----------------------------------------------------------------------------


def topology_bytes(shards: int, *, ranges_per_shard: int = 1) -> int:
    """Size of the message that says how a cluster is laid out; slots that have been moved about are in more ranges."""
    topology = layout.initial("vecmem", shards)
    if ranges_per_shard > 1:
        scattered = Topology(cluster=topology.cluster, epoch=1, next_shard_number=shards)
        # Pieces in turn: none is beside another one of its shard.
        pieces = np.array_split(np.arange(SLOTS), shards * ranges_per_shard)
        for number in range(shards):
            shard = scattered.shards.add(number=number)
            shard.slots.extend(ranges_of([int(slot) for piece in pieces[number::shards] for slot in piece]))
        topology = scattered
    return topology.ByteSize()


def announcement_bytes() -> int:
    """Size of what a node says of itself, with numbers as they are after a while."""
    info = NodeInfo(name="node-123", address="10.0.12.34:7700", shard=123, leads=True, sequence=10**9, lag=12)
    info.lease_age_ms, info.data_memory_bytes, info.memory_limit_bytes = 250.0, 10**10, 2 * 10**10
    info.instance, info.item_count = "0" * 32, 10**7
    return info.ByteSize()


@dataclass(frozen=True, kw_only=True)
class Coordination:
    """What nodes ask of NATS while nothing happens, together."""

    requests_per_second: float
    answers_per_second: float
    """Messages that come back, one for each node whose announcement is told."""
    bytes_per_second: float


def coordination(nodes: int, shards: int) -> Coordination:
    """Each node reads the topology, and by one request what every node announces, and announces itself; see vecmem.cluster.view."""
    looks = nodes / LOOK_SECONDS
    announcements = nodes / ANNOUNCE_SECONDS
    bytes_per_look = topology_bytes(shards) + nodes * announcement_bytes()
    return Coordination(
        requests_per_second=2 * looks + announcements,
        # The end of what is announced is a message as well.
        answers_per_second=looks * (nodes + 2) + announcements,
        bytes_per_second=looks * bytes_per_look + announcements * announcement_bytes(),
    )


@dataclass(frozen=True, kw_only=True)
class LogLoad:
    """What the logs of some shards ask of each of the NATS servers that share them evenly."""

    appends_per_second: float
    """Messages that it stores, each synced."""
    disk_bytes_per_second: float
    network_bytes_per_second: float
    """In and out: from the writer, to the other replicas or from the leader, and to the nodes that follow."""


def log_load(
    shards: int,
    *,
    writes_per_second: float,
    write_bytes: float,
    lease_seconds: float,
    servers: int,
    replicas: int = 3,
    nodes_per_shard: int = 3,
    writes_per_message: float = 1.0,
) -> LogLoad:
    """`writes_per_second` of each shard, of so many bytes in the log each, so many of them in one message; and renewals of leases."""
    renewals = RENEWALS_PER_LEASE / lease_seconds
    messages = shards * (writes_per_second / writes_per_message + renewals)
    volume = shards * (writes_per_second + renewals) * write_bytes
    # Once from the writer, to each other replica, and to each node that follows.
    copies = 1 + 2 * (replicas - 1) + (nodes_per_shard - 1)
    return LogLoad(
        appends_per_second=messages * replicas / servers,
        disk_bytes_per_second=volume * replicas / servers,
        network_bytes_per_second=volume * copies / servers,
    )
