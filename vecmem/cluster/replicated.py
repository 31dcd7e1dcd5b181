"""How a node finds the replicated log of its shard and what is published beside it: from settings to a Member.

Of the extra `cluster`, which a node that is alone can do without: imported where it is needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from vecmem.cluster.jetstream_coordination import JetStreamCoordination
from vecmem.cluster.member import Member
from vecmem.cluster.published_checkpoints import PublishedCheckpoints
from vecmem.cluster.publishing import Publisher
from vecmem.config import Settings
from vecmem.log.jetstream import JetStreamLog, JetStreamSettings
from vecmem.log.nats_connection import NatsConnection
from vecmem.log.nats_durability import check_durability
from vecmem.log.object_store import ObjectStore
from vecmem.store.shard import Shard


def member_of(shard: Shard, settings: Settings) -> Member:
    """The part that a node takes in its shard."""
    found = log_settings(settings)

    def open_log() -> JetStreamLog:
        # A log that this node has had records of must not come back empty.
        return JetStreamLog.open(found, create=not shard.log.last_sequence)

    publisher = Publisher(shard, settings, partial(published_checkpoints, settings, create=True))
    return Member(shard, open_log, settings.node, settings.lease_seconds, beside=publisher.run)


def log_settings(settings: Settings) -> JetStreamSettings:
    """Where the log of this node's shard is."""
    return JetStreamSettings(
        servers=_several(settings.cluster),
        stream=f"vecmem-{settings.cluster_name}-{settings.shard}",
        replicas=settings.log_replicas,
        monitoring_urls=_several(settings.cluster_monitoring),
        allow_lazy_sync=settings.cluster_allow_lazy_sync,
        allow_unknown_sync=settings.cluster_allow_lazy_sync,
    )


@contextmanager
def published_checkpoints(
    settings: Settings, node: str = "", *, create: bool = False
) -> Iterator[PublishedCheckpoints | None]:
    """What is published of this node's shard, for a block; None: nothing ever was. With `create` it is made ready for it.

    `node`: who uploads; empty: nobody.

    Raises:
        ConfigurationError: a server that keeps it syncs lazily, or JetStream will not have it.
        UnavailableError: NATS does not answer.
    """
    found = log_settings(settings)
    connection = NatsConnection(found.servers)
    try:
        store = ObjectStore.open(connection, f"{found.stream}-checkpoints", found.replicas, create=create)
        if store is None:
            yield None
            return
        check_durability(
            store.servers,
            found.monitoring_urls,
            allow_lazy=found.allow_lazy_sync,
            allow_unknown=found.allow_unknown_sync,
        )
        yield PublishedCheckpoints(store, node)
    finally:
        connection.close()


def coordination_of(settings: Settings) -> JetStreamCoordination:
    """What the nodes of the cluster agree on."""
    found = log_settings(settings)
    return JetStreamCoordination(found.servers, f"vecmem-{settings.cluster_name}", found.replicas)


def _several(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())
