"""Bitmaps, HyperLogLog sketches and places in the `vecmem` command: run and shown."""

from __future__ import annotations

import base64
import json


def text(value):
    return base64.b64encode(value.encode()).decode()


def test_a_sketch_is_added_to_and_its_estimate_shown(ask, vecmem, server, collection_name):
    add = {"addHyperLogLogItems": {"key": text(collection_name), "items": [text("ada"), text("bob"), text("ada")]}}
    count = {"countHyperLogLog": {"keys": [text(collection_name)]}}
    assert ask("keys", "run", json.dumps(add), json.dumps(count))["results"] == [{"changed": True}, {"count": "2"}]
    shown = ask("keys", "show", collection_name)
    assert shown == {"type": "hyperloglog", "size": 2, "items": [{"estimated_count": 2}]}
    told = vecmem("--address", server.address, "keys", "show", collection_name)
    assert "2" in told.stdout
    assert "items" not in told.stderr


def test_bits_are_set_and_counted(ask, collection_name):
    key = text(collection_name)
    operations = [{"setBit": {"key": key, "offset": 5, "bit": True}}, {"countBits": {"key": key}}]
    assert ask("keys", "run", *map(json.dumps, operations))["results"] == [{}, {"count": "1"}]


def test_places_are_shown_as_the_sorted_set_that_they_are(ask, collection_name):
    key = text(collection_name)
    member = {"member": text("palermo"), "position": {"longitude": 13.361389, "latitude": 38.115556}}
    search = {"position": {"longitude": 13.36, "latitude": 38.11}, "radiusM": 1_000}
    operations = [{"addGeoMembers": {"key": key, "members": [member]}}, {"searchGeo": {"key": key, "search": search}}]
    added, found = ask("keys", "run", *map(json.dumps, operations))["results"]
    assert added == {"addedCount": 1}
    assert [hit["member"] for hit in found["hits"]] == [text("palermo")]
    shown = ask("keys", "show", collection_name)
    assert (shown["type"], shown["items"]) == ("sorted_set", [{"score": 3479099956230698.0, "member": "palermo"}])
