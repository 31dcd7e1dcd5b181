"""A node that comes late: before it serves it gets a published checkpoint in place of a copy that the log does not continue any more.

Late is a node without a copy of its own, and one whose copy ends before the log begins: others have trimmed the log on, as
far as published checkpoints cover it. What is restored is made beside
the data and takes its place in steps that a crash may cut short anywhere (vecmem.store.replacing).

The old copy is given up only when all of the new one is on disk. Before that the checkpoint's running CRC is compared with that of
the log there: a checkpoint of another log is refused.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from vecmem.cluster.published_checkpoints import PublishedCheckpoints, Upload
from vecmem.cluster.replicated import log_settings, published_checkpoints
from vecmem.config import Settings
from vecmem.errors import CorruptionError, DataLossError, NotFoundError, UnavailableError
from vecmem.filesystem import fsync_directory, make_directory, publish_directory, remove_directory
from vecmem.log import failpoints
from vecmem.log.checkpoints import CheckpointStore
from vecmem.log.jetstream import JetStreamLog
from vecmem.log.jetstream_stream import STALE_SECONDS_MAX
from vecmem.log.rocks import RocksLog
from vecmem.store.recovery import Recovered, recover
from vecmem.store.replacing import (
    CHECKPOINT_DIRECTORY,
    LOG_DIRECTORY,
    RESTORED,
    RESTORING,
    complete_replacement,
    lock_of,
)

RETRY_SECONDS: Final = 0.2

_logger = logging.getLogger(__name__)


def recover_member(settings: Settings) -> Recovered:
    """As `recover`, for a node of a cluster, which is restored first if it is late.

    Where NATS does not answer, what is there is taken: whether that is late shows when the log can be read.

    Raises:
        DataLossError: as recover; or the node is late, and nothing published can restore it.
        ConfigurationError: checkpoints are published and the log is not there.
        UnavailableError: another process uses the directory.
    """
    data_dir = settings.data_dir
    make_directory(data_dir)
    lock = lock_of(data_dir)
    try:
        complete_replacement(data_dir)
        recovered = recover(data_dir)
        try:
            is_restored = _restore_if_late(settings, recovered.log)
        except BaseException:
            recovered.log.close()
            raise
        if not is_restored:
            return recovered
        recovered.log.close()
        del recovered
        complete_replacement(data_dir)
        return recover(data_dir)
    finally:
        lock.release()


def _restore_if_late(settings: Settings, copy: RocksLog) -> bool:
    """Make DATA_DIR/restored if the copy of the log here is late; whether it was made."""
    is_fresh = not copy.last_sequence
    try:
        if not is_fresh and not _is_trimmed_beyond(settings, copy.last_sequence):
            return False
        with published_checkpoints(settings) as published:
            uploads = () if published is None else published.newest_first()
            if is_fresh and not uploads:
                return False  # the log may not even be there yet
            log = _open_log(settings, uploads[0].sequence if uploads else 0)
            try:
                refusals = _restore(settings.data_dir, log, published, uploads)
                if refusals is None:
                    return True
                if is_fresh and log.first_sequence == 1:
                    return False
                raise CorruptionError(
                    f"the log begins at sequence {log.first_sequence}, the copy of it here ends at {copy.last_sequence}, and no published "
                    f"checkpoint can stand in for what is missing{''.join(f'; {refusal}' for refusal in refusals)}",
                    path=log.path,
                )
            finally:
                log.close()
    except UnavailableError as error:
        _logger.warning("whether this node is late cannot be told: %s", error)
        return False


def _open_log(settings: Settings, last_sequence: int) -> JetStreamLog:
    """The log, for a while not until it is said to have come as far as it is known to have: see STALE_SECONDS_MAX."""
    deadline = time.monotonic() + STALE_SECONDS_MAX
    while True:
        log = JetStreamLog.open(log_settings(settings))
        if log.last_sequence >= last_sequence or time.monotonic() > deadline:
            return log
        log.close()
        _logger.warning(
            "%s ends at sequence %d, before %d; it is asked again", log.path, log.last_sequence, last_sequence
        )
        time.sleep(RETRY_SECONDS)


def _is_trimmed_beyond(settings: Settings, sequence: int) -> bool:
    log = JetStreamLog.open(log_settings(settings))
    try:
        return sequence < log.first_sequence - 1
    finally:
        log.close()


def _restore(
    data_dir: Path, log: JetStreamLog, published: PublishedCheckpoints | None, uploads: Sequence[Upload]
) -> list[DataLossError] | None:
    """Make DATA_DIR/restored from the newest upload that is sound; otherwise why each was refused."""
    refusals: list[DataLossError] = []
    if published is None:
        return refusals
    if uploads and uploads[0].sequence > log.last_sequence:
        raise CorruptionError(
            f"the log ends at sequence {log.last_sequence}, before the published checkpoint {uploads[0].name}: records are lost",
            path=log.path,
        )
    for upload in uploads:
        try:
            _make_restored(data_dir, log, published, upload)
        except DataLossError as error:
            _logger.warning("a published checkpoint is refused: %s", error)
            refusals.append(error)
        else:
            _logger.info("restored from the published checkpoint %s", upload.name)
            return None
    return refusals


def _make_restored(data_dir: Path, log: JetStreamLog, published: PublishedCheckpoints, upload: Upload) -> None:
    running_crc = published.manifest(upload).running_crc
    try:
        expected = log.running_crc_at(upload.sequence)
    except NotFoundError as error:
        raise CorruptionError(f"the log does not continue {upload.name}: {error}", path=log.path) from error
    if running_crc != expected:
        raise CorruptionError(
            f"the running CRC at sequence {upload.sequence} is {expected:08x}, and {running_crc:08x} in {upload.name}: "
            "they do not belong together",
            path=log.path,
        )
    restoring = data_dir / RESTORING
    remove_directory(restoring)
    make_directory(restoring)
    store = CheckpointStore(restoring / CHECKPOINT_DIRECTORY)
    temporary = store.begin(upload.sequence)
    published.download(upload, temporary)
    store.publish(temporary)
    copy = RocksLog.open(restoring / LOG_DIRECTORY)
    try:
        copy.begin_behind(upload.sequence, running_crc)
    finally:
        copy.close()
    fsync_directory(restoring)
    failpoints.reach("before_restore_rename")
    publish_directory(restoring, data_dir / RESTORED)
    failpoints.reach("after_restore_rename")
