"""Channels: who listens gets everything in order, and who is too slow hears of it."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vecmem import limits
from vecmem.errors import SlowConsumerError
from vecmem.store.channels import Channels, Published, Subscriber

NAMES = [b"a", b"ab", b"b", b"news.x"]
PATTERNS = [b"*", b"a*", b"?", b"news.*", b"[ab]"]


def matches(pattern: bytes, name: bytes) -> bool:
    return {
        b"*": True,
        b"a*": name.startswith(b"a"),
        b"?": len(name) == 1,
        b"news.*": name.startswith(b"news."),
        b"[ab]": name in (b"a", b"b"),
    }[pattern]


@given(
    st.lists(st.tuples(st.lists(st.sampled_from(NAMES), max_size=2), st.lists(st.sampled_from(PATTERNS), max_size=2)), max_size=4),
    st.lists(st.tuples(st.sampled_from(NAMES), st.lists(st.binary(max_size=3), min_size=1, max_size=3)), max_size=12),
    st.randoms(use_true_random=False),
)  # fmt: skip
def test_everybody_gets_what_they_subscribed_to_once_and_in_order(
    interests: list[tuple[list[bytes], list[bytes]]],
    published: list[tuple[bytes, list[bytes]]],
    values: random.Random,
) -> None:
    channels = Channels()
    subscribers = [channels.subscribe(*interest) for interest in interests]
    taken: list[list[Published]] = [[] for _ in subscribers]
    for name, messages in published:
        expected = sum(name in names or any(matches(one, name) for one in patterns) for names, patterns in interests)
        assert channels.publish(name, messages) == expected
        for subscriber, found in zip(subscribers, taken, strict=True):
            if values.random() < 0.3:
                found.extend(subscriber.messages(values.choice([1, 1_000])))
    for subscriber, found, (names, patterns) in zip(subscribers, taken, interests, strict=True):
        while more := subscriber.messages(150):
            found.extend(more)
        assert subscriber.waiting_bytes == 0
        assert [(one.channel, one.message) for one in found] == [
            (name, message)
            for name, messages in published
            if name in names or any(matches(one, name) for one in patterns)
            for message in messages
        ]
        for one in found:
            assert not one.pattern if one.channel in names else matches(one.pattern, one.channel)
            assert one.pattern in (b"", *patterns)
    listed, more = channels.listing(b"", b"", 10)
    assert not more
    assert listed == [(name, count) for name in NAMES if (count := sum(name in names for names, _ in interests))]
    for subscriber in subscribers:
        channels.forget(subscriber)
    assert len(channels) == 0
    assert not channels._by_channel
    assert not channels._by_pattern


class Reader:
    """A subscriber as it ought to be: all that it was sent, until there was no room."""

    def __init__(self, subscriber: Subscriber) -> None:
        self.subscriber = subscriber
        self.waiting: list[tuple[bytes, bytes]] = []
        self.missed = 0

    def takes(self, name: bytes, messages: list[bytes]) -> bool:
        size = sum(100 + len(a) + len(b) for a, b in [*self.waiting, *((name, one) for one in messages)])
        room = not self.missed and len(self.waiting) + len(messages) <= 5 and size <= 600
        if room:
            self.waiting += [(name, message) for message in messages]
        else:
            self.missed += len(messages)
        return room


STEPS = st.one_of(
    st.tuples(st.just("subscribe"), st.lists(st.sampled_from(NAMES), min_size=1, max_size=2)),
    st.tuples(st.just("forget"), st.integers(0, 10)),
    st.tuples(st.just("read"), st.integers(0, 10)),
    st.tuples(st.just("publish"), st.sampled_from(NAMES), st.lists(st.binary(max_size=90), min_size=1, max_size=3)),
    st.tuples(st.just("publish"), st.sampled_from(NAMES), st.lists(st.binary(max_size=90), min_size=1, max_size=3)),
)


@given(st.lists(STEPS, max_size=40))
def test_those_who_come_and_go_and_fall_behind_are_in_nobodys_way(steps: list[tuple[Any, ...]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "SUBSCRIBER_MESSAGES_MAX", 5)
        patch.setattr(limits, "SUBSCRIBER_BYTES_MAX", 600)
        channels = Channels()
        readers: list[Reader] = []
        for what, *arguments in steps:
            match what:
                case "subscribe":
                    readers.append(Reader(channels.subscribe(arguments[0], [])))
                case "publish":
                    name, messages = arguments
                    took = [one.takes(name, messages) for one in readers if name in one.subscriber.channels]
                    assert channels.publish(name, messages) == sum(took)
                case "forget" if readers:
                    channels.forget(readers.pop(arguments[0] % len(readers)).subscriber)
                case "read" if readers:
                    reader = readers[arguments[0] % len(readers)]
                    if reader.missed and not reader.waiting:
                        with pytest.raises(SlowConsumerError, match=f" {reader.missed} messages"):
                            reader.subscriber.messages(10_000)
                        continue
                    found = reader.subscriber.messages(10_000)
                    assert [(one.channel, one.message) for one in found] == reader.waiting
                    reader.waiting = []
        assert len(channels) == len(readers)


def test_what_waits_counts_with_its_channel() -> None:
    """Many short messages on a channel with a long name are what their names are."""
    channels = Channels()
    subscriber = channels.subscribe([], [b"n*"])
    channels.publish(b"n" * 1_024, [b"m"] * 1_000)
    part = subscriber.messages(100_000)
    assert sum(len(one.channel) + len(one.message) + len(one.pattern) for one in part) < 100_000
    assert subscriber.waiting_bytes == sum(one.size_bytes for one in subscriber.waiting)


@pytest.mark.parametrize("limit", ["SUBSCRIBER_MESSAGES_MAX", "SUBSCRIBER_BYTES_MAX"])
def test_who_is_too_slow_gets_what_it_had_and_then_hears_of_it(monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    monkeypatch.setattr(limits, limit, {"SUBSCRIBER_MESSAGES_MAX": 4, "SUBSCRIBER_BYTES_MAX": 4 * 102}[limit])
    channels = Channels()
    slow, quick = channels.subscribe([b"c"], []), channels.subscribe([b"c"], [])
    taken: list[Published] = []
    for number in range(7):
        assert channels.publish(b"c", [b"%d" % number]) == (2 if number < 4 else 1)
        taken += quick.messages(1_000)
    assert [one.message for one in taken] == [b"%d" % number for number in range(7)]
    assert [one.message for one in slow.messages(1_000)] == [b"0", b"1", b"2", b"3"]
    channels.publish(b"c", [b"7"])
    with pytest.raises(SlowConsumerError) as told:
        slow.messages(1_000)
    assert told.value.metadata["missed_count"] == "4"


def test_listing_in_pages() -> None:
    channels = Channels()
    channels.subscribe([b"a", b"b", b"c", b"xa"], [b"*"])
    channels.subscribe([b"b"], [])
    assert channels.listing(b"", b"", 2) == ([(b"a", 1), (b"b", 2)], True)
    assert channels.listing(b"", b"b", 2) == ([(b"c", 1), (b"xa", 1)], False)
    assert channels.listing(b"*a", b"", 2) == ([(b"a", 1), (b"xa", 1)], False)
    assert channels.pattern_subscriber_count == 1


def test_subscribers_that_are_equal_are_not_mistaken_for_each_other() -> None:
    channels = Channels()
    first, second = (channels.subscribe([b"a"], [b"*"]) for _ in range(2))
    channels.forget(first)
    assert channels.publish(b"a", [b"m"]) == 1
    assert second.messages(10) == [Published(b"a", b"m", b"")]
    assert isinstance(first, Subscriber)
    assert first.messages(10) == []
