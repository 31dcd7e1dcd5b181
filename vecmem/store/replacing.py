"""A data directory whose content gives way to another that was made beside it, in steps that a crash may cut short anywhere.

    DATA_DIR/restoring      being made; removed by the next start
    DATA_DIR/restored       whole: a log and the checkpoint that it goes on behind. Each takes the place of what has its name in
                            DATA_DIR, which is removed; then this directory is. The next start goes on with that

So what was there before is given up only when all of what replaces it is on disk.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from vecmem.filesystem import fsync_directory, remove_directory
from vecmem.log import failpoints
from vecmem.log.rocks import DirectoryLock

LOG_DIRECTORY: Final = "log"
CHECKPOINT_DIRECTORY: Final = "checkpoints"
RESTORING: Final = "restoring"
RESTORED: Final = "restored"


def is_being_replaced(data_dir: Path) -> bool:
    """Whether a replacement was begun, and not completed or given up."""
    return (data_dir / RESTORING).exists() or (data_dir / RESTORED).exists()


def complete_replacement(data_dir: Path) -> None:
    """Let what is whole take its place; remove what is not. Whoever calls this holds `lock_of` the directory."""
    remove_directory(data_dir / RESTORING)
    restored = data_dir / RESTORED
    if not restored.exists():
        return
    _replace(data_dir, restored, LOG_DIRECTORY, "before_restored_log")
    _replace(data_dir, restored, CHECKPOINT_DIRECTORY, "before_restored_checkpoints")
    failpoints.reach("before_restored_cleanup")
    remove_directory(restored)


def lock_of(data_dir: Path) -> DirectoryLock:
    """Keeps others out while the content is replaced, with which the log's own lock goes. Raises UnavailableError if somebody has it."""
    return DirectoryLock(data_dir)


def _replace(data_dir: Path, restored: Path, name: str, failpoint: failpoints.ClusterFailpoint) -> None:
    if (restored / name).exists():
        remove_directory(data_dir / name)
        failpoints.reach(failpoint)
        (restored / name).rename(data_dir / name)
    # Always: whoever renamed it may have died before this.
    fsync_directory(data_dir)
    fsync_directory(restored)
