"""The commands on collections and points do what their names say, as JSON and as tables."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from rich.console import Console

from vecmem.cli.session import points_table
from vecmem_client import Hit

POINTS = [
    {"id": "north", "vector": [0, 1], "kind": "pole", "rank": 1},
    {"id": "east", "vector": [1, 0], "kind": "side", "rank": 2},
    {"id": "northeast", "vector": [1, 1], "kind": "corner", "rank": 3},
]


@pytest.fixture
def filled(ask, collection_name, tmp_path):
    """A collection with POINTS."""
    path = tmp_path / "points.jsonl"
    path.write_text("".join(json.dumps(point) + "\n" for point in POINTS))
    ask("import", path, "--collection", collection_name, "--create")
    return collection_name


def ids(document, key):
    return [each["id"] for each in document[key]]


def test_a_collection_lives_from_create_to_delete(ask, refused, collection_name):
    made = ask(
        *("collections", "create", collection_name, "--dimension", 3, "--metric", "dot", "--m", 8, "--ef", 50),
        *("--vector", "title:4", "--description", "first"),
    )
    assert made["vector"] == {
        "dimension": 3,
        "metric": "dot",
        "index": {"m": 8, "ef_construction": 200, "ef": 50, "graph": None, "target_recall": 0.97},
        "storage": "float32",
    }
    assert made["vectors"]["title"]["dimension"] == 4
    assert ask("collections", "get", collection_name) == made
    assert made in ask("collections", "list")["collections"]
    assert refused("collections", "create", collection_name, "--dimension", 3).error["reason"] == "COLLECTION_EXISTS"

    changed = ask("collections", "update", collection_name, "--ef", 99)
    assert changed["vector"]["index"] == made["vector"]["index"] | {"ef": 99}
    assert changed["description"] == "first"
    changed = ask("collections", "update", collection_name, "--using", "title", "--m", 6, "--description", "second")
    assert changed["vectors"]["title"]["index"]["m"] == 6
    assert changed["vector"]["index"]["m"] == 8
    assert changed["description"] == "second"

    assert ask("collections", "stats", collection_name)["point_count"] == 0
    assert ask("collections", "delete", collection_name, "--yes")["deleted_count"] == 0
    gone = refused("collections", "get", collection_name)
    assert (gone.code, gone.error["reason"]) == (1, "COLLECTION_NOT_FOUND")


def test_storage_codes_recall_and_payload_indexes_are_given_and_changed(ask, refused, collection_name):
    made = ask(
        *("collections", "create", collection_name, "--dimension", 2, "--storage", "float16", "--graph", "float32"),
        *("--target-recall", 0.9, "--payload-index", "kind:keyword", "--payload-index", "a:b:time", "--vector", "n:3"),
    )
    for vector in (made["vector"], made["vectors"]["n"]):
        assert vector["storage"] == "float16"
        assert (vector["index"]["graph"], vector["index"]["target_recall"]) == ("float32", 0.9)
    assert made["payload_indexes"] == {"kind": "keyword", "a:b": "time"}

    update = ("collections", "update", collection_name)
    changed = ask(*update, "--graph", "auto", "--target-recall", 0.99, "--storage", "float32")
    assert changed["vector"]["storage"] == "float32"
    assert changed["vector"]["index"] == made["vector"]["index"] | {"graph": None, "target_recall": 0.99}
    assert changed["vectors"] == made["vectors"]
    changed = ask(*update, "--using", "n", "--storage", "float32")
    assert changed["vectors"]["n"] == made["vectors"]["n"] | {"storage": "float32"}
    changed = ask(*update, "--payload-index", "size:integer", "--drop-payload-index", "kind")
    assert changed["payload_indexes"] == {"a:b": "time", "size": "integer"}

    assert refused(*update, "--drop-payload-index", "kind").code == 2
    assert refused(*update, "--payload-index", "kind:string").code == 2
    assert refused(*update).code == 2
    assert ask("collections", "get", collection_name) == changed
    assert ask("collections", "stats", collection_name)["vectors"]["n"]["storage"] == "float32"


def test_a_flat_collection(ask, collection_name):
    assert ask("collections", "create", collection_name, "--dimension", 2, "--flat")["vector"]["index"] == {}


def test_query_by_vector_by_id_and_by_row_of_a_file(ask, filled, tmp_path):
    assert ids(ask("query", filled, "--vector", "[0.1, 1]"), "hits") == ["north", "northeast", "east"]
    assert ids(ask("query", filled, "--id", "north", "--limit", 1), "hits") == ["northeast"]
    np.save(tmp_path / "q.npy", np.array([[0, 1], [1, 0]], dtype=np.float16))
    document = ask("query", filled, "--vector-file", tmp_path / "q.npy", "--row", 1, "--exact", "--with-vectors")
    best = document["hits"][0]
    assert (best["id"], best["payload"]) == ("east", {"kind": "side", "rank": 2})
    assert best["score"] == pytest.approx(1)
    assert best["vector"] == pytest.approx([1, 0])


def test_query_takes_filter_offset_threshold_and_effort(ask, filled):
    condition = json.dumps({"field": {"path": "rank", "numberRange": {"gte": {"integer": "2"}}}})
    for effort in (("--ef", 10), ("--target-recall", 0.9), ("--exact",)):
        hits = ask("query", filled, "--vector", "[0, 1]", "--filter", condition, *effort)
        assert ids(hits, "hits") == ["northeast", "east"]
    assert ids(ask("query", filled, "--vector", "[0, 1]", "--offset", 1, "--limit", 1), "hits") == ["northeast"]
    assert ids(ask("query", filled, "--vector", "[0, 1]", "--score-threshold", 0.9), "hits") == ["north"]


def test_query_explains_and_stats_show_the_index_it_made(ask, vecmem, server, filled):
    condition = json.dumps({"field": {"path": "rank", "numberRange": {"gte": {"integer": "2"}}}})
    arguments = ("query", filled, "--vector", "[0, 1]", "--filter", condition)
    document = ask(*arguments, "--explain")
    assert ids(document, "hits") == ["northeast", "east"]
    told = document["explanation"]
    assert (told["plan"], told["matching_count"], told["filter_paths"]) == ("scan", 2, ["rank"])
    assert "explanation" not in ask(*arguments)
    assert [index["path"] for index in ask("collections", "stats", filled)["payload_indexes"]] == ["rank"]

    tables = vecmem("--address", server.address, *arguments, "--explain").stdout
    assert "matching_count" in tables
    assert "payload index" in vecmem("--address", server.address, "collections", "stats", filled).stdout
    refused = vecmem("--address", server.address, *arguments, "--target-recall", 2)
    assert refused.code == 1
    assert "target_recall" in refused.stderr


def test_a_row_beyond_the_file_is_wrong_usage(refused, filled, tmp_path):
    np.save(tmp_path / "q.npy", np.zeros((1, 2)))
    assert refused("query", filled, "--vector-file", tmp_path / "q.npy", "--row", 1).code == 2


def test_what_the_server_refuses_comes_with_its_reason(refused, filled):
    result = refused("query", filled, "--vector", "[1, 2, 3]")
    assert (result.code, result.error["reason"]) == (1, "DIMENSION_MISMATCH")
    assert refused("query", filled, "--id", "nobody").error["reason"] == "POINT_NOT_FOUND"


def test_get_scroll_count_and_delete(ask, filled):
    assert ids(ask("get", filled, "east", "nobody", "north"), "points") == ["east", "north"]
    assert ids(ask("scroll", filled), "points") == ["east", "north", "northeast"]
    assert ids(ask("scroll", filled, "--limit", 2), "points") == ["east", "north"]
    poles = '{"field": {"path": "kind", "match": {"keyword": "pole"}}}'
    assert ids(ask("scroll", filled, "--filter", poles), "points") == ["north"]
    assert ask("count", filled, "--filter", poles) == {"count": 1}
    assert ask("delete", filled, "--filter", poles, "--yes")["deleted_count"] == 1
    assert ask("delete", filled, "east", "nobody")["deleted_count"] == 1
    assert ask("count", filled) == {"count": 1}
    assert ask("delete", filled, "--all", "--yes")["deleted_count"] == 1


def test_people_get_tables(vecmem, server, filled):
    def table(*arguments):
        result = vecmem("--address", server.address, *arguments)
        assert (result.code, result.stderr) == (0, "")
        return result.stdout

    hits = table("query", filled, "--vector", "[0, 1]").splitlines()
    assert any("north" in line and "1.0000" in line and '"pole"' in line for line in hits)
    assert "hnsw m=16" in table("collections", "get", filled)
    assert any(filled in line and " 3 " in line for line in table("collections", "list").splitlines())
    assert "tail" in table("collections", "stats", filled)
    assert "log_last_sequence" in table("info")


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_only_the_payload_is_cut_where_a_terminal_is_narrow(columns):
    hits = [
        Hit(f"a-rather-long-name-{number}", 123_456 + number, b'{"text": "%s"}' % (b"long " * 100), score=-0.5 - number)
        for number in range(3)
    ]
    console = Console(width=columns, file=io.StringIO())
    console.print(points_table(hits), crop=False)
    heading, _, *lines = console.file.getvalue().splitlines()
    assert heading.split() == ["id", "score", "version", "payload"]
    assert len(lines) == len(hits)
    for hit, line in zip(hits, lines, strict=True):
        assert line.split()[:3] == [hit.id, f"{hit.score:.4f}", f"{hit.version:,}"]
        assert line.split()[3].startswith('{"')
        assert line.endswith("…")
        assert len(line) == columns


def test_ids_are_whole_even_where_the_terminal_is_narrower():
    console = Console(width=40, file=io.StringIO())
    console.print(points_table([Hit("x" * 60, 1, b'{"a": 1}', score=1.0)]), crop=False)
    assert "x" * 60 + "   1.0000         1   " in console.file.getvalue()


def test_info_and_checkpoint_tell_of_the_server(ask, filled):
    published = ask("checkpoint")
    assert published["size_bytes"] > 0
    info = ask("info")
    assert info["checkpoint_sequence"] >= published["sequence"] > 0
    assert info["log_last_sequence"] >= published["sequence"]
    assert info["collection_count"] >= 1
    assert info["recovery"]["torn_tail_bytes"] == 0
