"""Work that is done once, and its doing."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from vecmem_client import idempotency
from vecmem_client._async.background import Background, sleep
from vecmem_client._block_errors import WorkInProgressError, WorkLostError, WorkMismatchError
from vecmem_client._errors import VecmemClientError
from vecmem_client._operations import BytesLike, as_bytes

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from vecmem_client._async.client import AsyncClient

POLL_SECONDS = 0.1
"""How often at least who waits for another worker looks whether it is done."""


class AsyncIdempotency:
    """Does work that has a name once, and gives everybody who asks for it again the first result.

    While the work is done its lease is renewed beside it; a worker that dies lets it end after `lease_seconds`, and the next one starts
    anew. So work may be begun twice, but one result is kept. Results are kept for `retention_seconds`, under the key `prefix` and the name.
    """

    def __init__(
        self,
        client: AsyncClient,
        prefix: BytesLike = b"once:",
        *,
        lease_seconds: float = 30.0,
        retention_seconds: float = 86_400.0,
    ) -> None:
        self._client = client
        self._prefix = as_bytes(prefix)
        self._lease_seconds = lease_seconds
        self._retention_seconds = retention_seconds

    async def run_once(
        self,
        name: BytesLike,
        work: Callable[[], Awaitable[BytesLike]],
        *,
        fingerprint: BytesLike = b"",
        wait_seconds: float | None = 0.0,
    ) -> bytes:
        """Do work unless it was done before; returns the result, up to 1 MiB, of the one time.

        `fingerprint` tells this work from other work that goes by the same name by mistake: a hash of the request, for instance. Work that
        raises is not done, and whoever asks next does it. Where another worker is at it, wait for the result for
        `wait_seconds`; None: as long as it takes. Raises WorkInProgressError after that, WorkMismatchError for another fingerprint, and
        WorkLostError where the lease ended during the work and another worker has started.
        """
        key = self._prefix + as_bytes(name)
        deadline = None if wait_seconds is None else time.monotonic() + wait_seconds
        while True:
            begun = await self._client.run(
                idempotency.begin(
                    key,
                    lease_seconds=self._lease_seconds,
                    retention_seconds=self._retention_seconds,
                    fingerprint=fingerprint,
                )
            )
            match begun.status:
                case "completed":
                    return begun.result
                case "started":
                    return await self._do(key, begun.token, work)
                case "mismatch":
                    raise WorkMismatchError(f"{key!r} stands for work with another fingerprint")
                case "in_progress":
                    await self._wait_until_done(key, begun.retry_after_seconds, deadline)

    async def _do(self, key: bytes, token: int, work: Callable[[], Awaitable[BytesLike]]) -> bytes:
        async def keep() -> float | None:
            try:
                kept = await self._client.run(
                    idempotency.renew(key, token, self._lease_seconds), timeout_seconds=self._lease_seconds
                )
            except VecmemClientError:
                return self._lease_seconds / 10
            return self._lease_seconds / 3 if kept else None

        background = Background(keep, self._lease_seconds / 3)
        try:
            result = as_bytes(await work())
        except Exception as error:
            await background.stop()
            try:
                await self._client.run(idempotency.abandon(key, token))
            except VecmemClientError as failure:
                error.add_note(f"and it could not be abandoned, so that others wait for its lease: {failure}")
            raise
        except BaseException:
            # Nobody knows how far it came: its lease says when another may begin.
            await background.stop()
            raise
        await background.stop()
        if not await self._client.run(idempotency.complete(key, token, result)):
            raise WorkLostError(f"the lease of {key!r} with token {token} had ended: the result is not kept")
        return result

    async def _wait_until_done(self, key: bytes, retry_after_seconds: float, deadline: float | None) -> None:
        """Wait, looking now and then, until nobody is at it. Raises WorkInProgressError."""
        while retry_after_seconds:
            left_seconds = POLL_SECONDS if deadline is None else deadline - time.monotonic()
            if left_seconds <= 0:
                message = f"another worker is at {key!r}, for {retry_after_seconds:g} s by its lease"
                raise WorkInProgressError(message, retry_after_seconds)
            await sleep(min(POLL_SECONDS, left_seconds, retry_after_seconds))
            found = await self._client.run(idempotency.describe(key))
            retry_after_seconds = 0.0 if found is None else found.remaining_seconds
