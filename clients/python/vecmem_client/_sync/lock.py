# Generated from _async/lock.py by scripts/generate_sync.py: change that one and run the script.
"""A lock as an object, which keeps its lease."""

from __future__ import annotations

import contextlib
import time
import uuid
from typing import TYPE_CHECKING

from vecmem_client import locks
from vecmem_client._block_errors import LockHeldError, LockLostError
from vecmem_client._errors import VecmemClientError
from vecmem_client._operations import BytesLike, as_bytes
from vecmem_client._sync.background import Background

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from vecmem_client._sync.client import Client

UNDO_SECONDS = 5.0
"""How long an interrupted acquisition may take to be undone."""
WAIT_SECONDS = 20.0
"""Of one call; then another one waits."""


class Lock:
    """A lock that one holder has at a time, for as long as its lease is renewed.

        with Lock(client, "reports") as lock:
            ...  # write with lock.fencing_token; lock.check() before what must not be done twice

    While it is held the lease is renewed beside the work, each third of `lease_seconds` (`renew=False`: call `renew` yourself). A holder
    that stands still for longer than its lease loses the lock without noticing at once: `check` raises LockLostError then, and so does
    the end of the block. What the lock protects is safe in any case if it refuses writes with a smaller `fencing_token` than it has seen:
    the tokens of a lock only grow.

    `wait_seconds` is how long to wait for another holder; None: as long as it takes; 0: not at all. Those who wait get the lock in the
    order in which they came. An object is one holder, not to be shared, and not to be acquired twice.
    """

    def __init__(
        self,
        client: Client,
        name: BytesLike,
        *,
        lease_seconds: float = 10.0,
        wait_seconds: float | None = None,
        renew: bool = True,
    ) -> None:
        self._client = client
        self._key = as_bytes(name)
        self._lease_seconds = lease_seconds
        self._wait_seconds = wait_seconds
        self._renews = renew
        self._owner = b""
        self._fencing_token = 0
        self._holds_until = 0.0
        """By time.monotonic: the server counts the lease from later on."""
        self._lost = ""
        self._background: Background | None = None

    @property
    def fencing_token(self) -> int:
        """Of this acquisition, also after it was lost. Raises RuntimeError when there is none."""
        if not self._fencing_token:
            raise RuntimeError("the lock is not acquired")
        return self._fencing_token

    @property
    def held(self) -> bool:
        """Whether the lock is held, as far as can be known here."""
        return self._fencing_token != 0 and not self._lost and self.remaining_seconds > 0

    @property
    def remaining_seconds(self) -> float:
        """How long the lock is held at least if it is not renewed."""
        return max(0.0, self._holds_until - time.monotonic()) if self._fencing_token else 0.0

    def check(self) -> None:
        """Raise LockLostError if the lease has ended, or RuntimeError if the lock is not acquired."""
        token = self.fencing_token
        if self._lost or not self.remaining_seconds:
            raise LockLostError(
                f"the lock {self._key!r} with token {token} is lost: {self._lost or 'its lease has ended'}"
            )

    def acquire(self) -> int:
        """Take the lock; returns the fencing token. Raises LockHeldError where another one holds it for longer than `wait_seconds`."""
        if self._fencing_token:
            raise RuntimeError("the lock is acquired already")
        deadline = None if self._wait_seconds is None else time.monotonic() + self._wait_seconds
        owner = uuid.uuid4().bytes
        wait_seconds = 0.0
        while True:
            sent_at = time.monotonic()
            try:
                acquisition = self._client.run(
                    locks.acquire(self._key, owner, self._lease_seconds, wait_seconds=wait_seconds)
                )
            except BaseException as error:
                # Cancelled or interrupted while the call waits: it may have been served, and nobody would know. After an error
                # the server has refused, or is out of reach: then the lease ends by itself.
                if not isinstance(error, Exception):
                    self._undo(owner)
                raise
            if acquisition.acquired:
                self._owner, self._fencing_token, self._lost = owner, acquisition.fencing_token, ""
                self._holds_until = sent_at + self._lease_seconds
                if self._is_surely_held(waited=wait_seconds > 0):
                    break
                owner = uuid.uuid4().bytes
                wait_seconds = WAIT_SECONDS
                if deadline is not None:
                    wait_seconds = max(0.0, min(wait_seconds, deadline - time.monotonic()))
                continue
            wait_seconds = WAIT_SECONDS
            if deadline is not None:
                wait_seconds = min(wait_seconds, deadline - time.monotonic())
            if wait_seconds <= 0:
                holder = acquisition.holder
                message = f"the lock {self._key!r} is held by {holder.owner!r} for {holder.remaining_seconds:g} s"
                raise LockHeldError(message, holder)
        if self._renews:
            self._background = Background(self._keep, self._lease_seconds / 3)
        return self._fencing_token

    def _is_surely_held(self, *, waited: bool) -> bool:
        """Whether what was acquired is held still. After a wait, or a call that took long, that is not known before the lease is renewed.

        A call that was repeated after a lost connection tells how it was answered the first time, which may be a lease ago.
        """
        if not waited and self.remaining_seconds > self._lease_seconds / 2:
            return True
        self._holds_until = time.monotonic() + self._lease_seconds
        try:
            self.renew()
        except LockLostError:
            self._fencing_token = 0
            return False
        except BaseException:
            self._fencing_token = 0
            self._undo(self._owner)
            raise
        return True

    def renew(self) -> None:
        """Let the lease begin anew. Raises LockLostError if it has ended."""
        self.check()
        sent_at = time.monotonic()
        renewal = self._client.run(
            locks.renew(self._key, self._owner, self._fencing_token, self._lease_seconds),
            timeout_seconds=self.remaining_seconds or self._lease_seconds,
        )
        if not renewal.renewed:
            self._lost = "another holds it" if renewal.holder else "its lease had ended when it was renewed"
            self.check()
        self._holds_until = sent_at + self._lease_seconds

    def release(self) -> None:
        """Give the lock back. Raises LockLostError if the lease has ended before."""
        token, owner = self.fencing_token, self._owner
        if self._background is not None:
            background, self._background = self._background, None
            background.stop()
        try:
            released = self._client.run(locks.release(self._key, owner, token))
            if not released:
                self._lost = self._lost or "its lease had ended when it was released"
                self.check()
        finally:
            # What could not be released ends with its lease.
            self._fencing_token = 0

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.release()
        except VecmemClientError as failure:
            if error is None:
                raise
            error.add_note(f"and then: {failure}")

    def _keep(self) -> float | None:
        try:
            self.renew()
        except LockLostError:
            return None
        except VecmemClientError:
            # Again soon, until the lease has ended.
            return min(self._lease_seconds / 10, self.remaining_seconds) if self.held else None
        return self._lease_seconds / 3

    def _undo(self, owner: bytes) -> None:
        """Release what an acquisition that was interrupted may have got; otherwise it would be nobody's until its lease ends.

        Whether it got the lock is known once it is asked for again, behind the first time in the order of the log.
        """
        with contextlib.suppress(VecmemClientError):
            again = locks.acquire(self._key, owner, self._lease_seconds)
            acquisition = self._client.run(again, timeout_seconds=UNDO_SECONDS)
            if acquisition.acquired:
                release = locks.release(self._key, owner, acquisition.fencing_token)
                self._client.run(release, timeout_seconds=UNDO_SECONDS)
