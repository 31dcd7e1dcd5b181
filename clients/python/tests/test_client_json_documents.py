"""JSON documents with both clients over a real server."""

from __future__ import annotations

import pytest

from vecmem_client import (
    InvalidArgumentError,
    NumberOverflowError,
    WrongTypeError,
    json_documents,
    keys,
    strings,
)


@pytest.fixture
def key(collection_name: str) -> str:
    """A key that no other test uses."""
    return collection_name


async def test_whole_documents_and_parts(client, key):
    book = {"title": "Graphs", "tags": ["a", "b"], "stock": {"berlin": 3, "paris": 1.5}}
    written = await client.run(json_documents.set(key, "$", book))
    assert (written.written_count, written.new_count) == (1, 1)
    assert (await client.run(json_documents.document(key))).value == book
    assert await client.run(json_documents.get(key, "$.stock.*")) == [3, 1.5]
    [titles, tags] = await client.run(json_documents.get_several(key, ["$.title", "$.tags[*]"], with_locations=True))
    assert (titles.values, tags.values) == (["Graphs"], ["a", "b"])
    assert tags.locations == ["$['tags'][0]", "$['tags'][1]"]
    assert await client.run(json_documents.add(key, "$.stock.berlin", 2)) == [5]
    assert await client.run(json_documents.append(key, "$.tags", ["c"])) == [3]
    assert await client.run(json_documents.pop(key, "$.tags", 0)) == ["a"]
    assert await client.run(json_documents.merge(key, "$", {"title": None, "year": 2016})) == 1
    assert await client.run(json_documents.get(key, "$.title")) == []
    [described] = await client.run(json_documents.describe(key, "$.tags"))
    assert (described.type, described.length) == ("array", 2)
    assert await client.run(json_documents.delete(key, "$.stock.paris")) == 1
    assert (await client.run(json_documents.document(key))).value == {
        "tags": ["b", "c"],
        "stock": {"berlin": 5},
        "year": 2016,
    }
    assert (await client.run(keys.describe(key))).type == "json"
    assert await client.run(json_documents.delete(key)) == 1
    assert await client.run(json_documents.document(key)) is None


async def test_what_is_refused_changes_nothing(client, key):
    await client.run(json_documents.set(key, "$", {"n": 2**63 - 1}))
    with pytest.raises(NumberOverflowError):
        await client.run(json_documents.add(key, "$.n", 1))
    with pytest.raises(InvalidArgumentError) as refused:
        await client.run(json_documents.get(key, "$..["))
    assert refused.value.metadata["field"].startswith("paths[0]")
    with pytest.raises(InvalidArgumentError):
        await client.run(json_documents.set(key, "$.m", b'{"a":'))
    await client.run(strings.set(key + "s", "text"))
    with pytest.raises(WrongTypeError):
        await client.run(json_documents.get(key + "s"))
    assert (await client.run(json_documents.document(key))).value == {"n": 2**63 - 1}


async def test_documents_in_pipelines_and_transactions(client, key):
    [written, values] = await client.pipeline(
        [json_documents.set(key, "$", {"visits": 0}), json_documents.get(key, "$.visits")]
    )
    assert (written.new_count, values) == (1, [0])
    result = await client.commit(then=[json_documents.add(key, "$.visits"), json_documents.get(key, "$.visits")])
    assert result.results == [[1], [1]]
    with pytest.raises(NumberOverflowError):
        await client.commit(
            then=[
                json_documents.add(key, "$.visits"),
                json_documents.set(key, "$.big", 2**63 - 1),
                json_documents.add(key, "$.big"),
            ]
        )
    assert (await client.run(json_documents.document(key))).value == {"visits": 1}


async def test_matches_of_another_type_are_told_of(client, key):
    await client.run(
        json_documents.set(key, "$", {"list": [3, 1, 1], "text": "ab", "flag": True, "o": {"x": 1, "y": 2}})
    )
    assert await client.run(json_documents.insert(key, "$.*", -1, [{"n": None}, 2])) == [5, None, None, None]
    assert await client.run(json_documents.insert(key, "$.list", 9, [1])) == [None]
    assert await client.run(json_documents.index_of(key, "$.*", 1, 2)) == [4, None, None, None]
    assert await client.run(json_documents.index_of(key, "$.list", {"n": None}, 0, 1)) == [-1]
    assert await client.run(json_documents.trim(key, "$.*", 1, -2)) == [3, None, None, None]
    assert await client.run(json_documents.pop(key, "$.*", default="none")) == [2, "none", "none", "none"]
    assert await client.run(json_documents.append_text(key, "$.*", "é")) == [None, 3, None, None]
    assert await client.run(json_documents.toggle(key, "$.*")) == [None, None, False, None]
    assert await client.run(json_documents.names(key, "$.*")) == [None, None, None, ["x", "y"]]
    assert await client.run(json_documents.add(key, "$.o.*", 0.5)) == [1.5, 2.5]
    absent = await client.run(json_documents.set(key, "$.o.x", 9, condition="absent"))
    present = await client.run(json_documents.set(key, "$.o.z", 9, condition="present"))
    assert (absent.written_count, present.written_count) == (0, 0)
    expected = {"list": [1, {"n": None}], "text": "abé", "flag": False, "o": {"x": 1.5, "y": 2.5}}
    assert await client.run(json_documents.get(key)) == [expected]
    assert await client.run(json_documents.clear(key, "$.*")) == 2
    assert await client.run(json_documents.get(key)) == [expected | {"list": [], "o": {}}]


def test_values_are_json(key):
    with pytest.raises(ValueError, match="not JSON compliant"):
        json_documents.set(key, "$", [float("nan")])
    with pytest.raises(TypeError):
        json_documents.set(key, "$", {"when": object()})
