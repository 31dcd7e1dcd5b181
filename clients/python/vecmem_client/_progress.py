"""How far a bulk load is, and a progress bar for terminals that needs nothing but the standard library."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TextIO


@dataclass(frozen=True, slots=True)
class BulkProgress:
    """How far a bulk load is. `point_count` counts acknowledged, and so durable, points."""

    point_count: int
    total_count: int | None
    """Points in all; None where the source does not tell."""
    elapsed_seconds: float
    finished: bool

    @property
    def points_per_second(self) -> float:
        """Mean rate since the beginning; 0 before the first moment has passed."""
        return self.point_count / self.elapsed_seconds if self.elapsed_seconds > 0 else 0.0

    @property
    def remaining_seconds(self) -> float | None:
        """Time left at the mean rate; None while that is unknown."""
        if self.total_count is None or not self.point_count:
            return None
        return (self.total_count - self.point_count) / self.points_per_second


class ProgressBar:
    """A progress callback that draws a bar with rate and time left.

    On a terminal the line is redrawn at most ten times a second; elsewhere, as in a log, one line tells the end.
    `file` defaults to standard error.
    """

    def __init__(self, label: str = "upsert", *, file: TextIO | None = None, width: int = 30) -> None:
        self._label = label
        self._file = sys.stderr if file is None else file
        self._width = width
        self._drawn_at = float("-inf")

    def __call__(self, progress: BulkProgress) -> None:
        """Draw the state of the load."""
        interactive = self._file.isatty()
        if not progress.finished and (not interactive or progress.elapsed_seconds - self._drawn_at < 0.1):
            return
        self._drawn_at = progress.elapsed_seconds
        begin, end = ("\r\x1b[K" if interactive else ""), ("\n" if progress.finished else "")
        self._file.write(f"{begin}{self._line(progress)}{end}")
        self._file.flush()

    def _line(self, progress: BulkProgress) -> str:
        parts = [self._label]
        if progress.total_count is None:
            parts.append(f"{progress.point_count:,}")
        else:
            share = progress.point_count / progress.total_count if progress.total_count else 1.0
            filled = int(share * self._width)
            parts.append(f"[{'#' * filled}{'.' * (self._width - filled)}] {share:4.0%}")
            parts.append(f"{progress.point_count:,}/{progress.total_count:,}")
        parts.append(f"{progress.points_per_second:,.0f}/s")
        if progress.finished:
            parts.append(f"in {_clock(progress.elapsed_seconds)}")
        elif progress.remaining_seconds is not None:
            parts.append(f"{_clock(progress.remaining_seconds)} left")
        return "  ".join(parts)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
