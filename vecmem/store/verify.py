"""Checks a data directory offline and changes nothing in it: the log record by record, every checkpoint byte by byte.

Beyond checksums, every checkpoint is loaded, and its running CRC is compared with the log's where the log still reaches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from vecmem.errors import CorruptionError, DataLossError, UnavailableError
from vecmem.log import checkpoints
from vecmem.log.checkpoints import CheckpointStore
from vecmem.log.rocks_verify import VerifyReport, verify_rocks_log
from vecmem.store import image
from vecmem.store.replacing import CHECKPOINT_DIRECTORY, LOG_DIRECTORY, is_being_replaced


@dataclass(slots=True)
class CheckpointVerification:
    """What was found in one checkpoint."""

    name: str
    sequence: int = 0
    size_bytes: int = 0
    collection_count: int = 0
    point_count: int = 0
    key_count: int = 0


@dataclass(slots=True)
class DataDirectoryReport:
    """What was found; the directory is sound if `damage` is empty. `notes` tell what a start would repair or clean up."""

    data_dir: str
    log: VerifyReport = field(default_factory=VerifyReport)
    checkpoints: list[CheckpointVerification] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    damage: list[DataLossError] = field(default_factory=list)


def verify_data_directory(data_dir: Path, *, progress: Callable[[int, int], None] | None = None) -> DataDirectoryReport:
    """Check a data directory that no server has open.

    Args:
        data_dir: as in the server's settings.
        progress: called now and then with (log records done, log records in all).

    Raises UnavailableError when there is no data, a server is using it, or a restore was cut short. Damage is reported, not raised.
    """
    if is_being_replaced(data_dir):
        raise UnavailableError(
            f"{data_dir}: a restore was cut short, or is under way; the next start of the node completes it"
        )
    if not (data_dir / LOG_DIRECTORY).is_dir():
        raise UnavailableError(f"{data_dir} holds no vecmem data")
    report = DataDirectoryReport(str(data_dir))
    directory = data_dir / CHECKPOINT_DIRECTORY
    published = CheckpointStore.published(directory)
    wanted = {checkpoints.sequence_of(path) for path in published}
    report.log = verify_rocks_log(data_dir / LOG_DIRECTORY, wanted=wanted, progress=progress)
    report.damage += report.log.damage
    report.notes += report.log.notes
    for path in published:
        report.checkpoints.append(_verify_checkpoint(path, report))
    if directory.is_dir():
        leftovers = sorted(child.name for child in directory.iterdir() if child.name.startswith("tmp-"))
        report.notes += [f"{name} is left over from a crash; the next start removes it" for name in leftovers]
    reached = max((checkpoint.sequence for checkpoint in report.checkpoints), default=0)
    if report.log.first_sequence > reached + 1 and not report.log.damage:
        report.damage.append(
            CorruptionError(
                f"the log begins at sequence {report.log.first_sequence}, and no checkpoint reaches it",
                path=str(data_dir / LOG_DIRECTORY),
            )
        )
    return report


def _verify_checkpoint(path: Path, report: DataDirectoryReport) -> CheckpointVerification:
    found = CheckpointVerification(path.name, checkpoints.sequence_of(path))
    try:
        manifest = checkpoints.load_manifest(path)
        state = image.load_state(manifest)
        image.load_keyspace(manifest, state)
        found.key_count = len(state.keyspace.values)
    except DataLossError as error:
        report.damage.append(error)
        return found
    found.size_bytes = sum(file.size_bytes for file in manifest.files.values())
    found.collection_count = len(manifest.metadata["collections"])
    for uid in manifest.metadata["collections"]:
        try:
            found.point_count += len(image.load_collection(manifest, uid).row_of)
        except DataLossError as error:
            report.damage.append(error)
    log = report.log
    if not log.damage and manifest.sequence > log.last_sequence:
        report.damage.append(
            CorruptionError(
                f"it reflects sequence {manifest.sequence}, and the log ends at {log.last_sequence}", path=str(path)
            )
        )
    if log.running_crc_at.get(manifest.sequence, manifest.running_crc) != manifest.running_crc:
        report.damage.append(CorruptionError("its running CRC is not the log's", path=str(path)))
    return found
