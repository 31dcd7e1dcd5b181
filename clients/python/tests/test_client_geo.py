"""Places with both clients over a real server."""

from __future__ import annotations

import pytest

from vecmem_client import InvalidArgumentError, WrongTypeError, geo, sorted_sets, strings

CITIES = {
    "palermo": geo.Position(13.361389, 38.115556),
    "catania": geo.Position(15.087269, 37.502669),
    "rome": geo.Position(12.496366, 41.902782),
}


@pytest.fixture
def key(collection_name: str) -> str:
    """A key that no other test uses; others with the same tag share its slot."""
    return f"{{{collection_name}}}"


async def test_positions_and_distances(client, key):
    assert await client.run(geo.add(key, CITIES)) == sorted_sets.Added(3, 0)
    assert await client.run(geo.add(key, {"rome": CITIES["palermo"]}, condition="absent")) == sorted_sets.Added(0, 0)
    palermo, nowhere = await client.run(geo.positions(key, ["palermo", "nowhere"]))
    assert nowhere is None
    assert palermo.longitude == pytest.approx(13.361389, abs=1e-5)
    assert palermo.latitude == pytest.approx(38.115556, abs=1e-5)
    assert await client.run(geo.distance_m(key, "palermo", "catania")) == pytest.approx(166_274.15, abs=0.01)
    assert await client.run(geo.distance_m(key, "palermo", "nowhere")) is None
    assert await client.run(geo.geohashes(key, ["palermo", "nowhere"])) == ["sqc8b49rny0", None]
    assert len(await client.run(sorted_sets.get_range(key))) == 3
    with pytest.raises(InvalidArgumentError):
        await client.run(geo.add(key, {"pole": geo.Position(0, 90)}))


async def test_searches(client, key):
    await client.run(geo.add(key, CITIES))
    center = geo.Position(15, 37)
    found = await client.run(geo.search(key, center, geo.Circle(200_000), with_positions=True))
    assert [hit.member for hit in found.hits] == [b"catania", b"palermo"]
    assert found.hits[0].distance_m == pytest.approx(56_441.2578, abs=0.01)
    assert found.hits[0].position == (await client.run(geo.positions(key, ["catania"])))[0]
    assert (found.found_count, found.center) == (2, center)
    far = await client.run(geo.search(key, center, geo.Box(400_000, 400_000), order="farthest", count=1))
    assert [(hit.member, hit.position) for hit in far.hits] == [(b"palermo", None)]
    assert far.found_count == 2
    assert len((await client.run(geo.search(key, "rome", geo.Circle(1e6), count=2, any=True))).hits) == 2
    assert (await client.run(geo.search(key, "nowhere", geo.Circle(1e6)))).center is None
    other = key + "2"
    assert await client.run(geo.store_search(other, key, center, geo.Circle(200_000), store_distances=True)) == 2
    assert [item.member for item in await client.run(sorted_sets.get_range(other))] == [b"catania", b"palermo"]
    assert await client.run(geo.store_search(other, key, "nowhere", geo.Circle(1))) is None
    assert await client.run(geo.store_search(other, key, geo.Position(-100, 0), geo.Circle(1))) == 0
    await client.run(strings.set(other, "text"))
    with pytest.raises(WrongTypeError):
        await client.run(geo.search(other, center, geo.Circle(1)))
