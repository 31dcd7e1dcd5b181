"""How a node becomes one of a cluster: from settings to its part in its shard, and to what it knows of the others."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vecmem.cluster.coordination import Coordination, FileCoordination
from vecmem.cluster.view import ClusterView, open_view
from vecmem.config import Settings
from vecmem.store.shard import Shard

if TYPE_CHECKING:
    from vecmem.cluster.member import Member


def member_of(shard: Shard, settings: Settings) -> Member | None:
    """The part that a node takes in a shard whose log is replicated; None: its log is its own."""
    if not settings.cluster:
        return None
    # Of the extra `cluster`, which a node that is alone can do without.
    from vecmem.cluster.member import Member
    from vecmem.log.jetstream import JetStreamLog, JetStreamSettings

    log_settings = JetStreamSettings(
        servers=_several(settings.cluster),
        stream=f"vecmem-{settings.cluster_name}-{settings.shard}",
        replicas=settings.log_replicas,
        monitoring_urls=_several(settings.cluster_monitoring),
        allow_lazy_sync=settings.cluster_allow_lazy_sync,
        allow_unknown_sync=settings.cluster_allow_lazy_sync,
    )

    def open_log() -> JetStreamLog:
        # A log that this node has had records of must not come back empty.
        return JetStreamLog.open(log_settings, create=not shard.log.last_sequence)

    return Member(shard, open_log, settings.node, settings.lease_seconds)


async def view_of(settings: Settings) -> ClusterView | None:
    """What a node knows of its cluster; None: it is alone. Raises as `open_view`."""
    if not settings.in_cluster:
        return None
    coordination: Coordination
    if settings.cluster:
        from vecmem.cluster.jetstream_coordination import JetStreamCoordination

        coordination = JetStreamCoordination(
            _several(settings.cluster), f"vecmem-{settings.cluster_name}", settings.log_replicas
        )
    else:
        coordination = FileCoordination(Path(settings.coordination_file))
    return await open_view(coordination, settings.cluster_name, settings.node, settings.shard, settings.shards)


def _several(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())
