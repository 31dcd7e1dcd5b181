"""Streams are a fold over the log: from the whole of it, or from an image and the rest, they are the same and answer the same."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from tests.store.stream_histories import assert_consistent, draw_stream_operation
from tests.store.support import Command, apply, dump, entries
from tests.store.test_replay import plain_prefix, through_an_image
from vecmem.store.keyspace.stream_value import StreamValue
from vecmem.store.state_machine import StateMachine

KEYS = [b"{k}0", b"{k}1"]


@st.composite
def histories(draw: st.DrawFn) -> list[Command]:
    """Many operations on few streams."""
    commands = []
    now = 1
    for _ in range(draw(st.integers(1, 20))):
        now += draw(st.sampled_from([0, 1, 10]))
        command = Command(time_unix_ms=now)
        for _ in range(draw(st.integers(1, 8))):
            draw_stream_operation(draw, command.run_operations.operations.add(), draw(st.sampled_from(KEYS)))
        if draw(st.integers(0, 9)) == 0:
            operation = command.run_operations.operations.add()
            operation.rename_key.key, operation.rename_key.new_key = KEYS
        commands.append(command)
    return commands


@given(histories(), st.randoms(use_true_random=False))
def test_a_replay_gives_the_same_streams(commands: list[Command], rng: random.Random) -> None:
    log = entries(commands)
    plain = StateMachine()
    results = [apply(plain, entry) for entry in log]
    cut = rng.randrange(len(log) + 1)
    from_image = through_an_image(plain_prefix(log[:cut]), cut, log[cut - 1].running_crc if cut else 0)
    for entry, expected in zip(log[cut:], results[cut:], strict=True):
        assert apply(from_image, entry) == expected
    assert dump(from_image) == dump(plain)
    for state in (plain, from_image):
        for value in state.keyspace.values.values():
            assert isinstance(value, StreamValue)
            assert_consistent(value)
    assert from_image.keyspace.memory_bytes == plain.keyspace.memory_bytes
