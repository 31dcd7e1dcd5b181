"""Durable file operations: the only place that writes files, apart from RocksDB and hnswlib.

The rule of every replacement: write a temporary name, fsync it, rename it, fsync the directory.
Every function raises OSError as the system reports it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

Buffer = bytes | bytearray | memoryview


def fsync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_file(path: Path) -> None:
    """Make a file's bytes durable that somebody else has written."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_directory(path: Path) -> None:
    """Make a directory, its parents too, with names that are durable: what is fsynced inside survives a power cut."""
    missing = [directory for directory in (*reversed(path.parents), path) if not directory.exists()]
    path.mkdir(parents=True, exist_ok=True)
    # Its own name always: whoever made it may have died before this.
    for directory in dict.fromkeys((*missing, path)):
        fsync_directory(directory.parent)


def write_file(path: Path, chunks: Iterable[Buffer]) -> None:
    """Write a new file that somebody makes durable later (`fsync_file`)."""
    with open(path, "wb", buffering=1024 * 1024) as file:
        file.writelines(chunks)


def write_durably(path: Path, chunks: Iterable[Buffer]) -> int:
    """Write a new file and fsync it; its name is durable once the directory is. Returns its size in bytes."""
    size_bytes = 0
    with open(path, "wb", buffering=1024 * 1024) as file:
        for chunk in chunks:
            size_bytes += file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    return size_bytes


def replace_durably(path: Path, content: bytes) -> None:
    """Give a file new content in one step: after a crash it has the old or the new."""
    temporary = path.with_name(path.name + ".tmp")
    write_durably(temporary, [content])
    temporary.replace(path)
    fsync_directory(path.parent)


def publish_directory(temporary: Path, final: Path) -> None:
    """Give a directory, whose files are durable, its final name."""
    fsync_directory(temporary)
    temporary.rename(final)
    fsync_directory(final.parent)


def remove_directory(path: Path) -> None:
    """Remove a directory with all in it, if it is there."""
    if path.exists():
        shutil.rmtree(path)
        fsync_directory(path.parent)


def truncate_durably(path: Path, size_bytes: int) -> None:
    """Cut a file to a size and fsync it."""
    with open(path, "r+b") as file:
        file.truncate(size_bytes)
        os.fsync(file.fileno())


def open_to_append(path: Path) -> int:
    """A descriptor for what another process writes, behind what is there. The caller closes it."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
