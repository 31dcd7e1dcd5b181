"""Channels: messages for those who listen at this moment. They are no part of the state: nothing is logged or kept.

A publication looks its channel up by name, and once at each pattern that somebody has; whoever has fallen behind too far is cut off, and is
told so when it reads on.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from sortedcontainers import SortedDict

from vecmem import limits
from vecmem.errors import SlowConsumerError
from vecmem.store.keyspace.glob import compile_glob

MESSAGE_OVERHEAD_BYTES = 100
"""About what a waiting message takes beyond its own bytes and those of its channel and pattern."""


class Published(NamedTuple):
    """A message on its way to one subscriber."""

    channel: bytes
    message: bytes
    pattern: bytes
    """One of the subscriber's that matches the channel; empty where it listens to the channel by name."""

    @property
    def size_bytes(self) -> int:
        """About what it takes."""
        return len(self.channel) + len(self.message) + len(self.pattern) + MESSAGE_OVERHEAD_BYTES


@dataclass(slots=True, eq=False)
class Subscriber:
    """Made by `Channels.subscribe`. What has come is taken with `messages`."""

    channels: tuple[bytes, ...]
    patterns: tuple[bytes, ...]
    waiting: deque[Published] = field(default_factory=deque)
    waiting_bytes: int = 0
    missed_count: int = 0
    """Messages that there was no room for; from the first of them on nothing is taken."""
    arrived: asyncio.Event = field(default_factory=asyncio.Event)

    def take(self, published: Sequence[Published]) -> bool:
        """Keep messages, or, without room for all of them, none from now on; returns which."""
        size_bytes = sum(one.size_bytes for one in published)
        room = (
            not self.missed_count
            and len(self.waiting) + len(published) <= limits.SUBSCRIBER_MESSAGES_MAX
            and self.waiting_bytes + size_bytes <= limits.SUBSCRIBER_BYTES_MAX
        )
        if room:
            self.waiting.extend(published)
            self.waiting_bytes += size_bytes
        else:
            self.missed_count += len(published)
        self.arrived.set()
        return room

    def messages(self, size_bytes_max: int) -> list[Published]:
        """What has come, up to a size but at least one message; empty: nothing has.

        Raises:
            SlowConsumerError: there was no room for what came behind the messages that were taken before.
        """
        self.arrived.clear()
        found: list[Published] = []
        size_bytes = 0
        while self.waiting:
            size_bytes += self.waiting[0].size_bytes
            if found and size_bytes > size_bytes_max:
                return found
            found.append(self.waiting.popleft())
            self.waiting_bytes -= found[-1].size_bytes
        if not found and self.missed_count:
            raise SlowConsumerError(
                f"the subscriber was too slow: {self.missed_count} messages found no room",
                missed_count=str(self.missed_count),
            )
        return found


class Channels:
    """All subscribers of a node."""

    def __init__(self) -> None:
        self._by_channel: SortedDict[bytes, list[Subscriber]] = SortedDict()
        self._by_pattern: dict[bytes, tuple[Callable[[bytes], object], list[Subscriber]]] = {}
        self._subscribers: dict[int, Subscriber] = {}

    def __len__(self) -> int:
        return len(self._subscribers)

    def subscribe(self, channels: Iterable[bytes], patterns: Iterable[bytes]) -> Subscriber:
        """Begin to listen. End it with `forget`."""
        subscriber = Subscriber(tuple(dict.fromkeys(channels)), tuple(dict.fromkeys(patterns)))
        self._subscribers[id(subscriber)] = subscriber
        for channel in subscriber.channels:
            self._by_channel.setdefault(channel, []).append(subscriber)
        for pattern in subscriber.patterns:
            if pattern not in self._by_pattern:
                self._by_pattern[pattern] = compile_glob(pattern).fullmatch, []
            self._by_pattern[pattern][1].append(subscriber)
        return subscriber

    def forget(self, subscriber: Subscriber) -> None:
        """Listen no longer."""
        del self._subscribers[id(subscriber)]
        for channel in subscriber.channels:
            self._by_channel[channel].remove(subscriber)
            if not self._by_channel[channel]:
                del self._by_channel[channel]
        for pattern in subscriber.patterns:
            self._by_pattern[pattern][1].remove(subscriber)
            if not self._by_pattern[pattern][1]:
                del self._by_pattern[pattern]

    def publish(self, channel: bytes, messages: Sequence[bytes]) -> int:
        """Pass messages on; returns how many subscribers got them."""
        listening = {id(subscriber): (subscriber, b"") for subscriber in self._by_channel.get(channel, ())}
        for pattern, (matches, subscribers) in self._by_pattern.items():
            if matches(channel):
                for subscriber in subscribers:
                    listening.setdefault(id(subscriber), (subscriber, pattern))
        published = {
            pattern: [Published(channel, message, pattern) for message in messages]
            for pattern in {pattern for _, pattern in listening.values()}
        }
        return sum(subscriber.take(published[pattern]) for subscriber, pattern in listening.values())

    def listing(self, pattern: bytes, after: bytes, count_max: int) -> tuple[list[tuple[bytes, int]], bool]:
        """Channels that match and how many subscribe to each, in order behind one, and whether there are more."""
        matches = compile_glob(pattern).fullmatch if pattern else None
        found: list[tuple[bytes, int]] = []
        for channel in self._by_channel.irange(minimum=after or None, inclusive=(False, True)):
            if matches is None or matches(channel):
                if len(found) == count_max:
                    return found, True
                found.append((channel, len(self._by_channel[channel])))
        return found, False

    @property
    def pattern_subscriber_count(self) -> int:
        """Subscribers that have a pattern."""
        return sum(bool(subscriber.patterns) for subscriber in self._subscribers.values())

    def wake_all(self) -> None:
        """Wake every subscriber, for another reason than a message."""
        for subscriber in self._subscribers.values():
            subscriber.arrived.set()
