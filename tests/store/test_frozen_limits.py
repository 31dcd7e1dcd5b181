"""Limits that a replay meets keep their values: records that were acknowledged must replay to the same state."""

from __future__ import annotations

from vecmem import limits
from vecmem.store.keyspace import json_paths, json_value

FIRST_RELEASE_FROZEN = {
    "PAYLOAD_BYTES_MAX": 1_048_576,
    "STRING_BYTES_MAX": 33_554_432,
    "LIST_REPLY_BYTES_MAX": 33_554_432,
    "DEAD_MESSAGES_PER_RECEIVE_MAX": 1_024,
    "QUEUE_REPLY_BYTES_MAX": 33_554_432,
    "QUEUE_MESSAGE_REPLY_BYTES": 64,
    "RESULT_BYTES_MAX": 41_943_040,
    "COMBINED_MEMBERS_MAX": 2_000_000,
    "COMBINED_BITMAP_BYTES_MAX": 536_870_912,
    "GEO_LOOKS_MAX": 1_000_000,
    "RATE_LIMIT_GRANTS_MAX": 1_024,
    "STREAM_ENTRIES_DEFAULT": 100,
    "STREAM_REPLY_BYTES_MAX": 33_554_432,
    "STREAM_ENTRY_REPLY_BYTES": 64,
    "STREAM_FIELD_REPLY_BYTES": 64,
    "STREAM_LOOKS_PER_CLAIM": 10,
    "JSON_DOCUMENT_BYTES_MAX": 16_777_216,
    "JSON_DEPTH_MAX": 128,
    "JSON_PATH_VISITS_MAX": 100_000,
    "JSON_MATCH_REPLY_BYTES": 16,
    "DEDUPLICATION_ENTRIES_MAX": 65_536,
    "DEDUPLICATION_BYTES_MAX": 67_108_864,
    "DEDUPLICATION_WINDOW_MS": 600_000,
    "CHANGES_BYTES_MAX": 33_554_432,
}
FIRST_RELEASE_SMALLEST = {
    "JSON_PATH_BYTES_MAX": 4_096,
    "JSON_PATH_EXPRESSIONS_MAX": 64,
    "FILTER_DEPTH_MAX": 16,
    "FILTER_NODES_MAX": 1_000,
    "FILTER_VALUES_MAX": 10_000,
    "FIELD_PATH_BYTES_MAX": 512,
    "FIELD_PATH_SEGMENTS_MAX": 16,
    "FIELD_PATHS_MAX": 256,
    "POINT_ID_BYTES_MAX": 512,
}


def test_what_decides_the_outcome_of_records_never_changes() -> None:
    """Another value would give another state from the same log."""
    assert {name: getattr(limits, name) for name in limits.FROZEN} == FIRST_RELEASE_FROZEN


def test_what_json_values_count_for_never_changes() -> None:
    """It decides which documents are too large, and which paths look at too much."""
    sizes = ("OBJECT_BYTES", "MEMBER_BYTES", "ARRAY_BYTES", "ITEM_BYTES", "STRING_VALUE_BYTES", "NUMBER_BYTES")
    assert [getattr(json_value, name) for name in sizes] == [64, 64, 56, 8, 56, 32]
    assert (json_value.STRING_CHARACTERS_PER_STEP, json_paths.SKIPPED_PER_VISIT) == (4_096, 8)


def test_what_is_checked_again_when_applied_never_shrinks() -> None:
    """A smaller value would refuse records that were acknowledged."""
    assert set(limits.GROW_ONLY) == set(FIRST_RELEASE_SMALLEST)
    for name, smallest in FIRST_RELEASE_SMALLEST.items():
        assert getattr(limits, name) >= smallest
