r"""Glob patterns over bytes, as Redis writes them: `*`, `?`, `[a-c]`, `[^a-c]`, and `\\` before a byte that is meant itself."""

from __future__ import annotations

import re

_SPECIAL = b"*?[\\"


def literal_prefix(pattern: bytes) -> bytes:
    """What every match begins with: the bytes before the first special one."""
    for index, byte in enumerate(pattern):
        if byte in _SPECIAL:
            return pattern[:index]
    return pattern


def compile_glob(pattern: bytes) -> re.Pattern[bytes]:
    """A regular expression for `fullmatch`. A star never gives back what it took, so the time is at most key times pattern."""
    parts = _split_at_stars(pattern)
    if len(parts) == 1:
        return re.compile(parts[0], re.DOTALL)
    # The shortest stretch after which the next part fits is as good as any longer one, so it need not be tried again.
    middle = b"".join(b"(?>.*?%s)" % part for part in parts[1:-1] if part)
    return re.compile(b"%s%s.*%s" % (parts[0], middle, parts[-1]), re.DOTALL)


def _split_at_stars(pattern: bytes) -> list[bytes]:
    """The parts between stars, each as an expression."""
    parts = [b""]
    index = 0
    while index < len(pattern):
        byte = pattern[index : index + 1]
        index += 1
        if byte == b"*":
            parts.append(b"")
        elif byte == b"?":
            parts[-1] += b"."
        elif byte == b"[":
            expression, index = _class_of(pattern, index)
            parts[-1] += expression
        else:
            if byte == b"\\" and index < len(pattern):
                byte = pattern[index : index + 1]
                index += 1
            parts[-1] += re.escape(byte)
    return parts


def _class_of(pattern: bytes, index: int) -> tuple[bytes, int]:
    """The class that begins behind `[`, and where the pattern goes on. One that nothing closes ends with the pattern."""
    negated = pattern[index : index + 1] == b"^"
    index += negated
    members: set[int] = set()
    while index < len(pattern) and pattern[index : index + 1] != b"]":
        if pattern[index : index + 1] == b"\\" and index + 1 < len(pattern):
            members.add(pattern[index + 1])
            index += 2
        elif pattern[index + 1 : index + 2] == b"-" and index + 2 < len(pattern):
            low, high = sorted((pattern[index], pattern[index + 2]))
            members.update(range(low, high + 1))
            index += 3
        else:
            members.add(pattern[index])
            index += 1
    if negated:
        members = set(range(256)) - members
    return (b"[%s]" % _ranges(members) if members else b"(?!)"), index + 1


def _ranges(members: set[int]) -> bytes:
    """Bytes as the ranges of a class: listed one by one they would take long to compile."""
    starts = sorted(member for member in members if member - 1 not in members)
    stops = sorted(member for member in members if member + 1 not in members)
    return b"".join(b"\\x%02x-\\x%02x" % bounds for bounds in zip(starts, stops, strict=True))
