"""From a data directory to a state: the newest checkpoint that loads, then the records behind it.

    DATA_DIR/log            the transaction log
    DATA_DIR/checkpoints    published checkpoints

A damaged checkpoint is passed over for an older one, whose tail the log still holds, or for the log alone where that still begins at its
first record. Where neither is whole, the newest checkpoint with a readable manifest is taken, and the collections that do not
load are set aside: they answer with DATA_LOSS, the others serve.
A log that ends before its checkpoint, or begins behind it, has lost records and is refused.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path

from vecmem.errors import CorruptionError, DataLossError
from vecmem.filesystem import make_directory
from vecmem.log import checkpoints
from vecmem.log.checkpoints import CheckpointManifest, CheckpointStore
from vecmem.log.record import LogEntry
from vecmem.log.rocks import RocksLog
from vecmem.store import image
from vecmem.store.replacing import (
    CHECKPOINT_DIRECTORY,
    LOG_DIRECTORY,
    complete_replacement,
    is_being_replaced,
    lock_of,
)
from vecmem.store.staging import StagedGroup
from vecmem.store.state_machine import StateMachine

RECLAIM_RECORDS = 256
"""Records replayed between two reclaims of dead rows."""

_logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Recovery:
    """How the data was found. `notes` has one line for whatever was repaired or left out."""

    checkpoint_sequence: int = 0
    replayed_record_count: int = 0
    replayed_bytes: int = 0
    torn_tail_bytes: int = 0
    notes: list[str] = field(default_factory=list)
    damaged_checkpoints: list[Path] = field(default_factory=list)
    """Checkpoints that did not load whole; they stay until a new one is published."""


@dataclass(slots=True)
class Recovered:
    """An open log and the state after its last record."""

    log: RocksLog
    state: StateMachine
    recovery: Recovery


@dataclass(frozen=True, slots=True)
class _Loaded:
    state: StateMachine
    sequence: int
    running_crc: int


def recover(data_dir: Path) -> Recovered:
    """Open a data directory, or make one.

    Raises CorruptionError, UnsupportedFormatError or UnavailableError (in use); nothing acknowledged is ever dropped.
    """
    make_directory(data_dir)
    if is_being_replaced(data_dir):
        lock = lock_of(data_dir)
        try:
            complete_replacement(data_dir)
        finally:
            lock.release()
    recovery = Recovery()
    store = CheckpointStore(data_dir / CHECKPOINT_DIRECTORY)
    # The log's lock comes first: leftovers are only leftovers when nobody else is at work here.
    loaded: _Loaded | None = None
    newest = next(iter(store.list()), None)
    verify_from = None if newest is None else checkpoints.sequence_of(newest) + 1
    log = RocksLog.open(data_dir / LOG_DIRECTORY, verify_from=verify_from)
    try:
        store.remove_temporary()
        loaded = _load_checkpoint(store, recovery, log)
        state = StateMachine() if loaded is None else loaded.state
        sequence = 0 if loaded is None else loaded.sequence
        _check_continuity(log, sequence, None if loaded is None else loaded.running_crc, recovery.notes)
        recovery.checkpoint_sequence = sequence
        recovery.torn_tail_bytes = log.report.torn_tail_bytes
        recovery.notes += log.report.notes
        for entry in log.read(sequence + 1):
            replay(state, entry)
            recovery.replayed_record_count += 1
            recovery.replayed_bytes += len(entry.record.payload)
            if recovery.replayed_record_count % RECLAIM_RECORDS == 0:
                for collection in state.collections.values():
                    while collection.reclaim():
                        pass
    except BaseException:
        log.close()
        raise
    for note in recovery.notes:
        _logger.warning("recovery: %s", note)
    return Recovered(log, state, recovery)


def replay(state: StateMachine, entry: LogEntry) -> None:
    """Apply one record to the end."""
    for _ in state.apply(entry):
        pass


def load_image(manifest: CheckpointManifest, notes: list[str] | None = None) -> StateMachine:
    """The state of a checkpoint. Without `notes` any damage raises; with it damaged collections are set aside and noted."""
    state = image.load_state(manifest)
    try:
        image.load_keyspace(manifest, state)
    except (DataLossError, OSError) as error:
        if notes is None:
            raise
        state.keyspace_damage = str(error)
        notes.append(f"the keys are damaged and set aside: {error}")
    for uid, about in manifest.metadata["collections"].items():
        try:
            state.add(image.load_collection(manifest, uid))
        except (DataLossError, OSError) as error:
            if notes is None:
                raise
            state.damaged[about["name"]] = (int(uid), str(error))
            notes.append(f"collection {about['name']!r} is damaged and set aside: {error}")
    return state


def check_image(manifest: CheckpointManifest, state: StateMachine) -> None:
    """Load an image back, one collection at a time, and compare it with the state. Raises CorruptionError."""
    loaded = image.load_state(manifest)
    if len(loaded.deduplication) != len(state.deduplication):
        raise CorruptionError("the deduplication window came back changed", path=str(manifest.path))
    if list(loaded.changes.dump()) != list(state.changes.dump()):
        raise CorruptionError("the newest changes came back changed", path=str(manifest.path))
    if state.slots is not None:
        table_back = None if loaded.slots is None else loaded.slots.dump()
        staged_back = [part for group in _in_order(loaded) for part in group.dump(state.name_of)]
        if table_back != state.slots.dump() or staged_back != list(image.dump_staged(state)):
            raise CorruptionError("the slots came back changed", path=str(manifest.path))
    image.load_keyspace(manifest, loaded)
    keys_back, keys = loaded.keyspace, state.keyspace
    if (keys_back.values, keys_back.expiries, keys_back.version) != (keys.values, keys.expiries, keys.version):
        raise CorruptionError("the keys came back changed", path=str(manifest.path))
    for collection in state.collections.values():
        back = image.load_collection(manifest, str(collection.uid))
        if back.row_of != collection.row_of:
            raise CorruptionError(f"collection {collection.name!r} came back changed", path=str(manifest.path))


def _in_order(state: StateMachine) -> list[StagedGroup]:
    return [group for _, group in sorted(state.staging.groups.items())]


def _load_checkpoint(store: CheckpointStore, recovery: Recovery, log: RocksLog) -> _Loaded | None:
    """The newest checkpoint that loads whole; None: replay the log from its beginning."""
    readable: list[CheckpointManifest] = []
    for path in store.list():
        try:
            manifest = checkpoints.load_manifest(path)
            readable.append(manifest)
            return _Loaded(load_image(manifest), manifest.sequence, manifest.running_crc)
        except (CorruptionError, OSError) as error:
            # A disk that cannot read a file is damage like another: what stands in for it is just as whole.
            recovery.notes.append(f"checkpoint {path.name} is damaged: {error}")
            recovery.damaged_checkpoints.append(path)
    if log.first_sequence == 1:
        return None
    for manifest in readable:
        try:
            return _Loaded(load_image(manifest, recovery.notes), manifest.sequence, manifest.running_crc)
        except (CorruptionError, OSError) as error:
            recovery.notes.append(f"checkpoint {manifest.path.name} cannot be used at all: {error}")
    return None


def _check_continuity(log: RocksLog, sequence: int, running_crc: int | None, notes: list[str]) -> None:
    if log.last_sequence < sequence:
        raise CorruptionError(
            f"the log ends at sequence {log.last_sequence}, before the checkpoint at {sequence}: records are lost",
            path=str(log.path),
        )
    if log.first_sequence > sequence + 1:
        raise CorruptionError(
            f"the log begins at sequence {log.first_sequence}, and the newest checkpoint that can be read reflects "
            f"{sequence}: records are missing in between{''.join(f'; {note}' for note in notes)}",
            path=str(log.path),
        )
    if running_crc is not None and log.running_crc_at(sequence) != running_crc:
        raise CorruptionError(
            f"the log's running CRC at sequence {sequence} is {log.running_crc_at(sequence):08x}, the checkpoint's is "
            f"{running_crc:08x}: they do not belong together",
            path=str(log.path),
        )
