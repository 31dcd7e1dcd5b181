"""Places on the earth as numbers of 52 bits, the cells that cover an area, and distances.

A geohash is 26 bits of latitude and 26 of longitude, one of each in turn from the top, the longitude's first: places that are close to
each other mostly have close numbers, and the places of a cell, whose numbers begin with the same bits, are a range of them. The map is
that of Redis: latitudes up to 85.05112878 degrees either way, and a sphere of 6,372,797.560856 m.

Writes are decided by these distances, and a replay has to come to the same ones wherever it runs. So sines are made here of sums,
products, quotients and square roots, which IEEE 754 defines to the last bit, and not taken from a mathematical library, of which each
version has its own. The functions take numbers and arrays alike.
"""

from __future__ import annotations

from math import factorial, floor, pi
from typing import Any, Final

import numpy as np

STEP_MAX: Final = 26
"""Bits of each coordinate."""
SCORE_END: Final = 1 << 2 * STEP_MAX
LONGITUDE_MAX: Final = 180.0
LATITUDE_MAX: Final = 85.05112878
EARTH_RADIUS_M: Final = 6_372_797.560856
CELLS_MAX: Final = 9
"""That cover an area."""
_DEGREE: Final = pi / 180
_SLACK_DEGREES: Final = 4e-6
"""By which bounds are wider than they would have to be: a hundred times what rounding amounts to, where it amounts to most."""
_ALPHABET: Final = "0123456789bcdefghjkmnpqrstuvwxyz"
_TEXT_LENGTH: Final = 11
_SINE: Final = [(-1) ** k / factorial(2 * k + 1) for k in range(13)]
"""Of Taylor's series; what is left out is below 1e-19 up to a quarter of a turn."""
_ARCSINE: Final = [factorial(2 * k) / (4**k * factorial(k) ** 2 * (2 * k + 1)) for k in range(12)]
"""The same for up to sin(pi / 16)."""
_SPREADS: Final = (
    (16, 0x0000FFFF0000FFFF),
    (8, 0x00FF00FF00FF00FF),
    (4, 0x0F0F0F0F0F0F0F0F),
    (2, 0x3333333333333333),
    (1, 0x5555555555555555),
)

Degrees = Any
"""A float or an array of them."""


def encode(longitude: float, latitude: float, latitude_max: float = LATITUDE_MAX) -> int:
    """The geohash of a place on the map."""
    return _interleaved(_cell(latitude, latitude_max, 1 << STEP_MAX), _cell(longitude, LONGITUDE_MAX, 1 << STEP_MAX))


def is_geohash(score: float) -> bool:
    """Whether a score stands for a place."""
    return 0 <= score < SCORE_END


def decode(scores: Any) -> tuple[Degrees, Degrees]:
    """Longitudes and latitudes, each the middle of its cell, of an array of scores that are geohashes."""
    bits = np.asarray(scores).astype(np.uint64)
    middles = []
    for shift, degrees_max in ((1, LONGITUDE_MAX), (0, LATITUDE_MAX)):
        index = _gathered(bits >> np.uint64(shift)).astype(np.float64)
        low = index / (1 << STEP_MAX) * (2 * degrees_max) - degrees_max
        high = (index + 1) / (1 << STEP_MAX) * (2 * degrees_max) - degrees_max
        middles.append((low + high) / 2)
    return middles[0], middles[1]


def position(score: float) -> tuple[float, float]:
    """Longitude and latitude of a score that is a geohash."""
    longitude, latitude = decode([score])
    return float(longitude[0]), float(latitude[0])


def text(score: float) -> str:
    """The geohash as others write it, who map latitudes up to 90 degrees: 11 characters, of which 52 bits leave the last one 0."""
    bits = encode(*position(score), latitude_max=90.0)
    places = range(2 * STEP_MAX - 5, 0, -5)
    return "".join(_ALPHABET[bits >> place & 31] for place in places).ljust(_TEXT_LENGTH, _ALPHABET[0])


def distance_m(longitude: Degrees, latitude: Degrees, other_longitude: Degrees, other_latitude: Degrees) -> Any:
    """The distance of places along the sphere, by the haversine formula."""
    between_latitudes = _sine(np.abs(other_latitude - latitude) / 2 * _DEGREE)
    apart = np.abs(other_longitude - longitude)
    between_longitudes = _sine(np.minimum(apart, 360 - apart) / 2 * _DEGREE)
    cosines = _cosine(latitude) * _cosine(other_latitude)
    haversine = between_latitudes * between_latitudes + cosines * between_longitudes * between_longitudes
    return 2 * EARTH_RADIUS_M * _arcsine(np.minimum(1.0, np.sqrt(haversine)))


def meridian_distance_m(latitude: Degrees, other_latitude: Degrees) -> Any:
    """The distance of two parallels."""
    return EARTH_RADIUS_M * (np.abs(other_latitude - latitude) * _DEGREE)


def circle_width(latitude: float, radius_m: float) -> tuple[float, float]:
    """Degrees of latitude, and of longitude, by which no place of a circle around one at a latitude is farther; 180: all are within."""
    angle = radius_m / EARTH_RADIUS_M
    height = min(180.0, angle / _DEGREE)
    if abs(latitude) + height + _SLACK_DEGREES >= 90:
        return height + _SLACK_DEGREES, 180.0
    sine = min(1.0, _sine(angle) / _cosine(latitude))
    return height + _SLACK_DEGREES, float(_arcsine(sine)) / _DEGREE + _SLACK_DEGREES


def box_width(latitude: float, width_m: float, height_m: float) -> tuple[float, float]:
    """The same of a box, whose places are within its width of the center's meridian, each at its own latitude."""
    height = min(180.0, height_m / 2 / EARTH_RADIUS_M / _DEGREE) + _SLACK_DEGREES
    angle = width_m / 4 / EARTH_RADIUS_M
    if angle >= pi / 2:
        return height, 180.0
    # A width is most degrees at the latitude that is nearest to a pole.
    sine = _sine(angle) / _cosine(min(LATITUDE_MAX, abs(latitude) + height))
    if sine >= 1:
        return height, 180.0
    return height, min(180.0, 2 * float(_arcsine(sine)) / _DEGREE + _SLACK_DEGREES)


def ranges(longitude: float, latitude: float, width: float, height: float) -> list[tuple[int, int]]:
    """Ranges of geohashes, each from one up to and without another one, in order, that hold all places within degrees of one.

    They are those of the smallest cells of which 9 or fewer cover the area.
    """
    for step in range(STEP_MAX, -1, -1):
        cell_count = 1 << step
        south = _cell(latitude - height, LATITUDE_MAX, cell_count)
        north = _cell(latitude + height, LATITUDE_MAX, cell_count)
        west = floor((longitude - width + 180) / 360 * cell_count)
        east = floor((longitude + width + 180) / 360 * cell_count)
        columns = min(cell_count, east - west + 1)
        if (north - south + 1) * columns <= CELLS_MAX:
            break
    cells = sorted(
        _interleaved(row, (west + column) % cell_count) for row in range(south, north + 1) for column in range(columns)
    )
    shift = 2 * (STEP_MAX - step)
    joined: list[tuple[int, int]] = []
    for cell in cells:
        start, stop = cell << shift, cell + 1 << shift
        if joined and joined[-1][1] == start:
            start, _ = joined.pop()
        joined.append((start, stop))
    return joined


def _cell(degrees: float, degrees_max: float, cell_count: int) -> int:
    """Which of so many cells between two bounds a coordinate is in; what is beyond them is in the last."""
    return max(0, min(cell_count - 1, floor((degrees + degrees_max) / (2 * degrees_max) * cell_count)))


def _interleaved(even: int, odd: int) -> int:
    for shift, mask in _SPREADS:
        even = (even | even << shift) & mask
        odd = (odd | odd << shift) & mask
    return even | odd << 1


def _gathered(bits: Any) -> Any:
    """Every second bit of an array of uint64, beginning with the lowest."""
    bits &= np.uint64(_SPREADS[-1][1])
    for (shift, _), (_, mask) in zip(_SPREADS[::-1], (*_SPREADS[-2::-1], (0, 0xFFFFFFFF)), strict=True):
        bits = (bits | bits >> np.uint64(shift)) & np.uint64(mask)
    return bits


def _sine(angle: Any) -> Any:
    """Of radians, 0 to a quarter of a turn."""
    return angle * _series(_SINE, angle * angle)


def _cosine(latitude: Degrees) -> Any:
    """Of degrees, -90 to 90."""
    return _sine((90 - np.abs(latitude)) * _DEGREE)


def _arcsine(sine: Any) -> Any:
    """Radians of 0 to 1."""
    cosine = np.sqrt((1 - sine) * (1 + sine))
    for _ in range(3):
        # Of half the angle.
        sine = sine / np.sqrt(2 * (1 + cosine))
        cosine = np.sqrt((1 + cosine) / 2)
    return 8 * sine * _series(_ARCSINE, sine * sine)


def _series(coefficients: list[float], square: Any) -> Any:
    total = coefficients[-1]
    for coefficient in coefficients[-2::-1]:
        total = total * square + coefficient
    return total
