"""Publishes a member's checkpoints and, where it leads, trims the log behind what is published.

Every node looks by itself. One uploads its newest checkpoint when the published one is so far behind that it pays, and nobody
else is at it; one that leads lets it come to twice as much first, so that a follower that lives is the one to do it. An
upload takes NATS for half of the time at most.

The log is trimmed by the rule of a node's own log: once it is larger than `log_retention_bytes`, up to the older of the two newest
published checkpoints, so that either of them may turn out damaged. Before that both are looked at: they are of this log by their
running CRCs. Nodes that are not so far restore themselves from one of them (vecmem.cluster.restoring).
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from typing import Final

from vecmem.cluster.published_checkpoints import UPLOADS_KEPT, PublishedCheckpoints, Upload
from vecmem.config import Settings
from vecmem.errors import CorruptionError, UnavailableError, VecmemError
from vecmem.filesystem import remove_directory
from vecmem.log import checkpoints, failpoints
from vecmem.log.checkpoints import CheckpointStore
from vecmem.log.jetstream import JetStreamLog
from vecmem.store.own_thread import in_own_thread
from vecmem.store.replacing import CHECKPOINT_DIRECTORY
from vecmem.store.shard import Shard

LOOK_SECONDS: Final = 2.0
UPLOAD_WORTH_SHARE: Final = 0.25
"""Of a checkpoint's size: so much of the log is behind the published one before it is sent, however small checkpoint_log_bytes is."""
LEADER_PATIENCE_FACTOR: Final = 2
PAUSE_FACTOR: Final = 1.0
"""How long an upload leaves NATS to others after each piece, of the time that the piece took."""
PAUSE_SECONDS_MAX: Final = 1.0
_WORK: Final = "publish checkpoints"

_logger = logging.getLogger(__name__)


class Publisher:
    """Of one member."""

    def __init__(
        self,
        shard: Shard,
        settings: Settings,
        open_published: Callable[[str], AbstractContextManager[PublishedCheckpoints | None]],
    ) -> None:
        """`open_published` is called with the node's name, in a thread that may block."""
        self._shard = shard
        self._settings = settings
        self._open_published = open_published
        self._directory = settings.data_dir / CHECKPOINT_DIRECTORY
        self._known_sequence = 0
        """Of the newest published checkpoint, as far as this node has seen."""
        self._checked: set[Upload] = set()
        self._looking = threading.Lock()

    async def run(self, log: JetStreamLog, node: str) -> None:
        """Publish and trim beside a log that is open, under a node's name, until cancelled.

        A thread that is at it then ends soon by itself, as the connection that it uses is closed.
        """
        bucket = _Bucket(self._open_published, node)
        try:
            while True:
                await asyncio.sleep(LOOK_SECONDS)
                try:
                    await in_own_thread(self._look, log, bucket)
                except Exception as error:
                    # The log keeps what is not published. It is looked at again.
                    if self._shard.failures.get(_WORK) != repr(error):
                        expected = isinstance(error, VecmemError | OSError)
                        _logger.warning("checkpoints are not published: %s", error, exc_info=not expected)
                    self._shard.failures[_WORK] = repr(error)
                    await in_own_thread(bucket.close)
                else:
                    self._shard.failures.pop(_WORK, None)
        finally:
            bucket.ended.set()
            # Nobody is to wait for NATS here: the log may have to be opened anew.
            threading.Thread(target=bucket.close, name="vecmem-close-bucket", daemon=True).start()

    def _look(self, log: JetStreamLog, bucket: _Bucket) -> None:
        if not self._looking.acquire(blocking=False):
            return  # the one for a log that was closed is about to end
        try:
            self._publish(log, bucket)
            if self._shard.leads and log.bytes_behind(0) > self._settings.log_retention_bytes:
                self._trim(log, bucket)
        finally:
            self._looking.release()

    def _publish(self, log: JetStreamLog, bucket: _Bucket) -> None:
        """Upload the newest checkpoint here if that pays."""
        newest = next(iter(CheckpointStore.published(self._directory)), None)
        if newest is None or not self._is_worth(log, checkpoints.sequence_of(newest), 0):
            return
        size_bytes = sum(file.size_bytes for file in checkpoints.load_manifest(newest).files.values())
        if not self._is_worth(log, checkpoints.sequence_of(newest), size_bytes):
            return
        published = bucket.open()
        self._known_sequence = max((upload.sequence for upload in published.newest_first()), default=0)
        if not self._is_worth(log, checkpoints.sequence_of(newest), size_bytes) or published.is_under_way():
            return
        began = time.monotonic()
        # It may take long, and newer ones take the place of this one meanwhile.
        pinned = CheckpointStore(self._directory).pin(newest)
        try:
            manifest = checkpoints.load_manifest(pinned)
            if log.running_crc_at(manifest.sequence) != manifest.running_crc:
                raise CorruptionError("the checkpoint and the log do not belong together", path=str(newest))
            published.tidy()
            upload = published.upload(manifest, partial(_pause, bucket.ended))
            self._known_sequence = upload.sequence
            published.tidy()
        finally:
            remove_directory(pinned)
        _logger.info("published %s: %d bytes in %.1f s", upload.name, size_bytes, time.monotonic() - began)

    def _is_worth(self, log: JetStreamLog, sequence: int, size_bytes: int) -> bool:
        if sequence <= self._known_sequence:
            return False
        wanted_bytes = max(self._settings.checkpoint_log_bytes, int(UPLOAD_WORTH_SHARE * size_bytes))
        wanted_bytes *= LEADER_PATIENCE_FACTOR if self._shard.leads else 1
        return log.bytes_behind(self._known_sequence) >= wanted_bytes

    def _trim(self, log: JetStreamLog, bucket: _Bucket) -> None:
        """Trim the log as far as published checkpoints cover it."""
        published = bucket.open()
        kept = published.newest_first()[:UPLOADS_KEPT]
        if len(kept) < UPLOADS_KEPT or kept[-1].sequence < log.first_sequence:
            return
        for upload in kept:
            if upload not in self._checked and published.manifest(upload).running_crc != log.running_crc_at(
                upload.sequence
            ):
                raise CorruptionError(f"the published checkpoint {upload.name} is of another log", path=log.path)
        self._checked = set(kept)
        failpoints.reach("before_published_trim")
        log.trim(kept[-1].sequence + 1)
        _logger.info("the log begins at sequence %d", log.first_sequence)


class _Bucket:
    """Opened when it is needed, and again after a failure; for good closed when it has ended."""

    def __init__(
        self, open_published: Callable[[str], AbstractContextManager[PublishedCheckpoints | None]], node: str
    ) -> None:
        self.ended = threading.Event()
        self._open_published = open_published
        self._node = node
        self._lock = threading.Lock()
        self._opened = ExitStack()
        self._published: PublishedCheckpoints | None = None

    def open(self) -> PublishedCheckpoints:
        with self._lock:
            if self._published is None and not self.ended.is_set():
                self._published = self._opened.enter_context(self._open_published(self._node))
            if self._published is None:
                raise UnavailableError("there is nowhere to publish checkpoints")
            return self._published

    def close(self) -> None:
        with self._lock:
            self._published = None
            self._opened.close()


def _pause(ended: threading.Event, seconds: float) -> None:
    """Leave NATS to others for a while. Raises UnavailableError when it is to end."""
    if ended.wait(min(PAUSE_FACTOR * seconds, PAUSE_SECONDS_MAX)):
        raise UnavailableError("the upload was given up: this node ends, or opens its log anew")
