"""What vecmem is measured beside, in the same invocation: one module a system, all behind `Engine`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path
    from types import TracebackType
    from typing import Self

    import numpy as np
    import numpy.typing as npt

    from bench.datasets import Dataset

    Kind = Literal["index", "embedded", "server"]
    Vector = npt.NDArray[np.float32]
    Search = Callable[[Vector, int], Awaitable[list[int]]]
    """Query and k; the rows found, nearest first."""

M = 16
EF_CONSTRUCTION = 200
"""Graph parameters that all systems with a graph are given: vecmem's defaults."""


class UnavailableError(Exception):
    """A system that cannot be measured here, and why."""


@dataclass(frozen=True)
class Loaded:
    """How long a load took, in seconds from its start: until all points were acknowledged, and until all were indexed."""

    acknowledged_seconds: float
    complete_seconds: float


@dataclass(frozen=True)
class Place:
    """Where a system may keep files, and the addresses of those that run elsewhere, by the system's name."""

    directory: Path
    urls: Mapping[str, str] = field(default_factory=dict)

    def url(self, name: str) -> str:
        """The address given for a system. Raises UnavailableError without one."""
        if not self.urls.get(name):
            message = f"no address: --{name}-url"
            raise UnavailableError(message)
        return self.urls[name]


class Engine(ABC):
    """One system with one data set in it, searched as its users would.

    A constructor raises UnavailableError where the system cannot be had: its library is missing, or its address. The hits of a
    system that keeps payloads come with them. Used in a `with` statement, it is closed at the end: what it started has ended, what it made
    elsewhere than in its directory is gone.
    """

    name: ClassVar[str]
    """The system's name in reports."""
    kind: ClassVar[Kind]
    """A bare index keeps neither payloads nor anything on disk; an embedded store runs in this process."""
    efforts: ClassVar[tuple[int, ...]] = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
    """Settings of its one knob that trades rate for recall, upwards: for a graph the candidates considered (ef)."""
    own_durability: ClassVar[str] = "none"
    """What an acknowledgement of its ingest means."""

    @abstractmethod
    def load(self, dataset: Dataset) -> Loaded:
        """Take all points, under their row numbers, and wait until all are indexed."""

    effort = 0
    """What `use` set last."""

    def use(self, effort: int) -> None:
        """Search with this effort from now on. Not called while searches run."""
        self.effort = effort

    @abstractmethod
    def search(self, query: Vector, k: int) -> list[int]:
        """One query; the rows found, nearest first. May be called from several threads at once."""

    def tasks(self) -> AbstractAsyncContextManager[Search] | None:
        """Open its asyncio client, which many tasks share. None: it has none, and many callers are threads over `search`."""
        return None

    def close(self) -> None:  # noqa: B027  # not abstract: an index in memory has nothing to close
        """Remove what was made and end what was started. Closing twice is fine."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
