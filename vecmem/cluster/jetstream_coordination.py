"""Coordination by two key-value buckets of JetStream: `<cluster>-topology` on disk, `<cluster>-nodes` in memory with a time to live."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Final, TypeVar

import nats.errors
import nats.js.errors
from nats.js.api import KeyValueConfig, StorageType

from vecmem.cluster.coordination import ANNOUNCED_SECONDS, Entry
from vecmem.errors import TopologyConflictError, UnavailableError
from vecmem.log.nats_connection import RECONNECT_WAIT_SECONDS, ClosingClient

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence

    from nats.js import JetStreamContext
    from nats.js.kv import KeyValue

T = TypeVar("T")

REQUEST_SECONDS_MAX: Final = 5.0
_WRONG_REVISION: Final = (10071, 10164)
_END_OF_BATCH: Final = "204"
_NOTHING_FOUND: Final = "404"


class JetStreamCoordination:
    """Connects when it is first used, and again when the connection was lost."""

    def __init__(self, servers: Sequence[str], cluster: str, replicas: int) -> None:
        self._servers = list(servers)
        self._cluster = cluster
        self._replicas = replicas
        self._client: ClosingClient | None = None
        self._values: KeyValue | None = None
        self._nodes: KeyValue | None = None
        self._opening = asyncio.Lock()

    async def get(self, key: str) -> Entry | None:
        """See Coordination."""
        values, _ = await self._buckets()
        try:
            found = await _answer(values.get(key))
        except nats.js.errors.KeyNotFoundError:
            return None
        return Entry(found.value or b"", found.revision or 0)

    async def put(self, key: str, value: bytes, revision: int) -> int:
        """See Coordination."""
        values, _ = await self._buckets()
        try:
            if not revision:
                return int(await _answer(values.create(key, value)))
            return int(await _answer(values.update(key, value, last=revision)))
        except nats.js.errors.KeyWrongLastSequenceError as error:
            raise TopologyConflictError(f"{key} was changed by somebody else meanwhile") from error

    async def delete(self, key: str, revision: int) -> None:
        """See Coordination."""
        values, _ = await self._buckets()
        try:
            await _answer(values.delete(key, last=revision))
        except nats.js.errors.APIError as error:
            if error.err_code not in _WRONG_REVISION:
                raise
            raise TopologyConflictError(f"{key} was changed by somebody else meanwhile") from error

    async def keys(self, prefix: str) -> list[str]:
        """See Coordination."""
        names = await self._names("topology")
        return [key for key in names if key.startswith(prefix) and await self.get(key) is not None]

    async def announce(self, name: str, value: bytes) -> None:
        """See Coordination."""
        _, nodes = await self._buckets()
        await _answer(nodes.put(name, value))

    async def announced(self) -> dict[str, bytes]:
        """See Coordination."""
        await self._buckets()
        return await _answer(self._all_announced())

    async def close(self) -> None:
        """See Coordination."""
        if self._client is not None:
            await self._client.close()
            self._client = None

    async def _all_announced(self) -> dict[str, bytes]:
        """By one request to the stream below the bucket, which the client has no method for (JetStream's API, DIRECT.GET, multi_last)."""
        assert self._client is not None
        prefix = f"$KV.{self._cluster}-nodes."
        inbox = self._client.new_inbox()
        replies = await self._client.subscribe(inbox)
        try:
            request = json.dumps({"multi_last": [f"{prefix}>"]}).encode()
            await self._client.publish(f"$JS.API.DIRECT.GET.KV_{self._cluster}-nodes", request, reply=inbox)
            found: dict[str, bytes] = {}
            while True:
                message = await replies.next_msg(timeout=REQUEST_SECONDS_MAX)
                headers = message.headers or {}
                status = headers.get("Status")
                if status in (_END_OF_BATCH, _NOTHING_FOUND):
                    return found
                if status is not None:
                    raise UnavailableError(f"JetStream does not list the nodes: {status} {headers.get('Description')}")
                found[headers["Nats-Subject"].removeprefix(prefix)] = message.data
        finally:
            await replies.unsubscribe()

    async def _names(self, bucket: str) -> list[str]:
        """Keys of a bucket that have a value, or had one.

        The client's own listing leaves a consumer behind for five minutes, each time; a stream takes no more than a thousand.
        """
        await self._buckets()
        assert self._client is not None
        prefix = f"$KV.{self._cluster}-{bucket}."
        context = self._client.jetstream(timeout=REQUEST_SECONDS_MAX)
        info = await _answer(context.stream_info(f"KV_{self._cluster}-{bucket}", subjects_filter=f"{prefix}>"))
        return sorted(subject.removeprefix(prefix) for subject in info.state.subjects or ())

    async def _buckets(self) -> tuple[KeyValue, KeyValue]:
        async with self._opening:
            if self._client is None:
                self._client = await self._connected()
            if self._values is None or self._nodes is None:
                context = self._client.jetstream(timeout=REQUEST_SECONDS_MAX)
                self._values = await self._bucket(context, "topology", StorageType.FILE, 0)
                self._nodes = await self._bucket(context, "nodes", StorageType.MEMORY, ANNOUNCED_SECONDS)
            return self._values, self._nodes

    async def _connected(self) -> ClosingClient:
        client = ClosingClient()
        try:
            async with asyncio.timeout(REQUEST_SECONDS_MAX):  # the client itself would try for ever
                await client.connect(
                    servers=self._servers,
                    name="vecmem-coordination",
                    connect_timeout=2,
                    reconnect_time_wait=RECONNECT_WAIT_SECONDS,  # type: ignore[arg-type]  # seconds, in fractions as well
                    max_reconnect_attempts=-1,
                    ping_interval=1,
                    pending_size=0,
                    error_cb=_ignored,
                )
        except (nats.errors.Error, OSError, TimeoutError) as error:
            await client.close()
            raise UnavailableError(f"no NATS server could be reached: {error!r}") from error
        return client

    async def _bucket(self, context: JetStreamContext, name: str, storage: StorageType, seconds: float) -> KeyValue:
        config = KeyValueConfig(
            bucket=f"{self._cluster}-{name}",
            replicas=self._replicas,
            storage=storage,
            history=1,
            ttl=seconds or None,
            direct=name == "nodes",  # which may be a little old; what is agreed on is read where it was written
        )
        try:
            return await _answer(context.key_value(config.bucket))
        except nats.js.errors.BucketNotFoundError:
            return await _answer(context.create_key_value(config))


async def _answer(answer: Awaitable[T]) -> T:
    """The answer of JetStream; errors that say nothing of the request become UnavailableError."""
    try:
        async with asyncio.timeout(REQUEST_SECONDS_MAX):
            return await answer
    except (
        nats.js.errors.KeyNotFoundError,
        nats.js.errors.KeyWrongLastSequenceError,
        nats.js.errors.BucketNotFoundError,
    ):
        raise
    except nats.js.errors.APIError as error:
        if error.err_code in _WRONG_REVISION:
            raise
        raise UnavailableError(f"JetStream: {error}") from error
    except (nats.errors.Error, OSError, TimeoutError) as error:
        raise UnavailableError(f"JetStream did not answer: {error!r}") from error


async def _ignored(error: Exception) -> None:
    """The client goes on by itself."""
