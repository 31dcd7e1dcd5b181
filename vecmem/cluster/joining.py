"""How a node finds the replicated log of its shard: from settings to a Member."""

from __future__ import annotations

from vecmem.cluster.member import Member
from vecmem.config import Settings
from vecmem.log.jetstream import JetStreamLog, JetStreamSettings
from vecmem.store.shard import Shard


def member_of(shard: Shard, settings: Settings) -> Member | None:
    """The part that a node takes in its shard; None: it is alone."""
    if not settings.cluster:
        return None
    log_settings = JetStreamSettings(
        servers=_several(settings.cluster),
        stream=f"vecmem-{settings.cluster_name}-0",
        replicas=settings.log_replicas,
        monitoring_urls=_several(settings.cluster_monitoring),
        allow_lazy_sync=settings.cluster_allow_lazy_sync,
        allow_unknown_sync=settings.cluster_allow_lazy_sync,
    )

    def open_log() -> JetStreamLog:
        # A log that this node has had records of must not come back empty.
        return JetStreamLog.open(log_settings, create=not shard.log.last_sequence)

    return Member(shard, open_log, settings.node, settings.lease_seconds)


def _several(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())
