# Generated from _async/watch.py by scripts/generate_sync.py: change that one and run the script.
"""The change feed as an iterator."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from vecmem_client import _methods
from vecmem_client._errors import VecmemClientError
from vecmem_client._sync.base import Base
from vecmem_client._sync.replies import Replies
from vecmem_client.watching import change_of, position_of, request_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import TracebackType
    from typing import Self

    from vecmem.v1 import common_pb2, watch_pb2
    from vecmem_client._operations import BytesLike
    from vecmem_client._retry import RetryPolicy
    from vecmem_client._sync.transport import Transport
    from vecmem_client.watching import Change, ChangePosition


class Watch:
    """Changes, one after the other, without end; made by `watch`. To be closed, or used in a `with` statement.

    After a lost connection it goes on where it was, by itself: no change is left out or told twice. Raises VecmemClientError:
    ChangesNotRetainedError where it was too slow, and whatever the request was refused for.
    """

    def __init__(
        self,
        transport: Transport,
        retry: RetryPolicy,
        request: watch_pb2.WatchRequest,
        note_position: Callable[[common_pb2.ResponseHeader], None],
    ) -> None:
        self.position: ChangePosition | None = None
        """Behind the last change that was given out, or further where nothing of interest came since. None: nothing was heard yet."""
        self._request = request
        self._note_position = note_position
        heartbeat_seconds = (request.heartbeat_ms or 10_000) / 1e3
        self._replies = Replies(transport, retry, _methods.WATCH, request, heartbeat_seconds)
        self._changes: deque[tuple[watch_pb2.Change, tuple[ChangePosition, ...]]] = deque()
        self._behind_all: ChangePosition | None = None

    def started(self) -> ChangePosition:
        """Return when the server watches: whatever changes from then on will be told; returns the position that begins there."""
        while self.position is None:
            self._hear()
        return self.position

    def __next__(self) -> Change:
        while not self._changes:
            if self._replies.closed:
                raise StopIteration
            self._hear()
        change = change_of(*self._changes.popleft())
        self.position = change.position if self._changes else self._behind_all
        return change

    def __iter__(self) -> Self:
        return self

    def close(self) -> None:
        """End the feed. Closing twice is fine."""
        self._replies.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _hear(self) -> None:
        """Take one response; where the connection is lost wait, and go on where it was."""
        try:
            response = self._replies.receive()
        except VecmemClientError as failure:
            self._replies.recover(failure, again=True)
            return
        if response is None:
            return
        self._note_position(response.header)
        position = self._behind_all = position_of(response.position)
        self._changes.extend((change, position.others) for change in response.changes)
        # A new call begins behind everything that was received.
        self._request.after.CopyFrom(response.position)
        if not self._changes:
            self.position = self._behind_all


class WatchMethods(Base):
    """WatchService."""

    def watch(
        self,
        *,
        keys: Iterable[BytesLike] = (),
        prefixes: Iterable[BytesLike] = (),
        collections: Iterable[str] = (),
        after: ChangePosition | None = None,
        earliest: bool = False,
        with_content: bool = False,
        heartbeat_seconds: float = 10.0,
    ) -> Watch:
        """Watch keys, all keys with a prefix (empty: all), and collections with their points; the call begins with the first step.

        Nothing of it need exist yet. A collection is watched by its name: one that is made anew with it is watched as well.

        From `after` on, from the `earliest` change that is retained, or from now. Iterate over what is returned; its `position` after a
        change is where to go on. `with_content` tells what did each change. Nothing more than a heartbeat late is lost unnoticed.
        """
        request = request_of(
            keys,
            prefixes,
            collections,
            after,
            earliest=earliest,
            with_content=with_content,
            heartbeat_seconds=heartbeat_seconds,
        )
        return Watch(self._transport, self._retry, request, self._note_position)
