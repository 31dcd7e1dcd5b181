"""How a node becomes one of a cluster: from settings to its data, its part in its shard, and what it knows of the others."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vecmem.cluster.coordination import Coordination, FileCoordination
from vecmem.cluster.view import ClusterView, open_view
from vecmem.config import Settings
from vecmem.store.recovery import Recovered, recover
from vecmem.store.shard import Shard

if TYPE_CHECKING:
    from vecmem.cluster.member import Member

# What knows of NATS is of the extra `cluster`, which a node that is alone can do without: it is imported where it is needed.


def recover_node(settings: Settings) -> Recovered:
    """The data of a node; where others have gone on without it for long, restored first. Raises as `recover` and `recover_member`."""
    if not settings.cluster:
        return recover(settings.data_dir)
    from vecmem.cluster.restoring import recover_member

    return recover_member(settings)


def member_of(shard: Shard, settings: Settings) -> Member | None:
    """The part that a node takes in a shard whose log is replicated; None: its log is its own."""
    if not settings.cluster:
        return None
    from vecmem.cluster import replicated

    return replicated.member_of(shard, settings)


async def view_of(settings: Settings) -> ClusterView | None:
    """What a node knows of its cluster; None: it is alone. Raises as `open_view`."""
    if not settings.in_cluster:
        return None
    coordination: Coordination
    if settings.cluster:
        from vecmem.cluster import replicated

        coordination = replicated.coordination_of(settings)
    else:
        coordination = FileCoordination(Path(settings.coordination_file))
    return await open_view(coordination, settings.cluster_name, settings.node, settings.shard, settings.shards)
