# Generated from _async/client.py by scripts/generate_sync.py: change that one and run the script.
"""The client: a target, a default timeout, a retry policy, and the API's methods."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vecmem_client._sync.channels import ChannelMethods
from vecmem_client._sync.cluster import ClusterMethods
from vecmem_client._sync.collections import CollectionMethods
from vecmem_client._sync.keyspace import KeyspaceMethods
from vecmem_client._sync.points import PointMethods
from vecmem_client._sync.transactions import TransactionMethods
from vecmem_client._sync.watch import WatchMethods

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType
    from typing import Self

    from vecmem_client._retry import RetryPolicy
    from vecmem_client._routing import ReadPolicy


class Client(
    CollectionMethods,
    PointMethods,
    KeyspaceMethods,
    TransactionMethods,
    WatchMethods,
    ChannelMethods,
    ClusterMethods,
):
    """A connection to a vecmem server.

    `target` is HOST:PORT, or those of several nodes of one cluster with commas between. One is enough where it answers: the client learns
    of the others when a reply shows that there are any, and sends what is about one shard to the node that leads it. `read_policy` says who
    answers reads of points and keys there: the node that leads ("primary"), a replica in turn ("replica"), the node that has answered
    fastest lately ("nearest") or any in turn ("any"). Other nodes may lag, but never behind what this client has seen.
    `timeout_seconds` is the default for each call, retries included. Calls that fail with UNAVAILABLE are retried as
    `retry` says; writes carry a request id of their own, so that a retry never applies twice. Pass `request_id` to
    repeat a write yourself, or `""` for a write that is neither deduplicated nor retried. `channel_options` are
    gRPC's. With `coalesce`, calls of `query`, `get`, `upsert` and `run` that are made while others are under way travel
    together; each keeps its own result, error, deadline and request id. Messages have at most 64 MiB either way.
    Close the client, or use it in a `with` statement.

    All methods raise VecmemClientError when a call fails, and TypeError or ValueError, before anything is sent, for
    arguments that no server would take.
    """

    def __init__(
        self,
        target: str = "127.0.0.1:7700",
        *,
        timeout_seconds: float = 30.0,
        retry: RetryPolicy | None = None,
        channel_options: Sequence[tuple[str, str | int]] = (),
        coalesce: bool = True,
        read_policy: ReadPolicy = "primary",
    ) -> None:
        super().__init__(target, timeout_seconds, retry, channel_options, coalesce, read_policy)

    def close(self) -> None:
        """Close the connection; calls under way are cancelled. Closing twice is fine."""
        self._transport.refuse_calls()
        self._lanes.drop_waiting()
        self._transport.close()
        self._lanes.finished()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
