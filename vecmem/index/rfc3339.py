"""RFC 3339 times as integer nanoseconds since the Unix epoch, exact over the years 0000 to 9999.

Grammar of RFC 3339 section 5.6: `T` and `Z` in either case, an offset is required, `-00:00` included. Digits of a
fraction beyond the ninth are cut off. A leap second is accepted where one can be, at 23:59:60 UTC, and is the same
instant as the second after it, as in POSIX time. Anything else is no time.
"""

from __future__ import annotations

import re
from datetime import date
from typing import Final

NANOSECONDS: Final = 1_000_000_000
"""Nanoseconds in a second."""

_PATTERN: Final = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})[Tt]([0-9]{2}):([0-9]{2}):([0-9]{2})(?:\.([0-9]+))?"
    r"(?:[Zz]|([+-])([0-9]{2}):([0-9]{2}))"
)
_LENGTH_MIN: Final = len("2026-01-01T00:00:00Z")
_EPOCH_ORDINAL: Final = date(1970, 1, 1).toordinal()
_GREGORIAN_CYCLE_YEARS: Final = 400
_GREGORIAN_CYCLE_DAYS: Final = 146_097
_DAY_SECONDS: Final = 86_400


def parse_time_ns(text: str) -> int | None:
    """Nanoseconds since 1970-01-01T00:00:00Z; None when `text` is not an RFC 3339 time."""
    # Cheap refusal of what most strings are: this runs for every distinct string of a payload column.
    if len(text) < _LENGTH_MIN or text[4] != "-":
        return None
    match = _PATTERN.fullmatch(text)
    if match is None:
        return None
    year, month, day, hour, minute, second = map(int, match.group(1, 2, 3, 4, 5, 6))
    fraction, sign, offset_hour, offset_minute = match.group(7, 8, 9, 10)
    if hour > 23 or minute > 59 or second > 60:
        return None
    try:
        # datetime has no year 0; the calendar repeats every 400 years.
        ordinal = date(year or _GREGORIAN_CYCLE_YEARS, month, day).toordinal() - (0 if year else _GREGORIAN_CYCLE_DAYS)
    except ValueError:
        return None
    seconds = (ordinal - _EPOCH_ORDINAL) * _DAY_SECONDS + hour * 3_600 + minute * 60
    if sign is not None:
        if int(offset_hour) > 23 or int(offset_minute) > 59:
            return None
        offset_seconds = int(offset_hour) * 3_600 + int(offset_minute) * 60
        seconds += offset_seconds if sign == "-" else -offset_seconds
    if second == 60 and seconds % _DAY_SECONDS != _DAY_SECONDS - 60:
        return None
    nanoseconds = int(fraction[:9].ljust(9, "0")) if fraction else 0
    return (seconds + second) * NANOSECONDS + nanoseconds
