"""Durable file operations: the only place that writes files, apart from RocksDB and the graphs.

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
    os.replace(temporary, path)
    fsync_directory(path.parent)


def publish_directory(temporary: Path, final: Path) -> None:
    """Give a directory, whose files are durable, its final name."""
    fsync_directory(temporary)
    os.rename(temporary, final)
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
