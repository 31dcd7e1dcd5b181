"""Limits on sizes and counts, in one place. The API's comments and docs/limits.md name the same numbers.

Those that applying a record meets are part of what is on disk: see GROW_ONLY and FROZEN.
"""

from __future__ import annotations

from typing import Final

MESSAGE_BYTES_MAX: Final = 64 * 1024 * 1024
COLLECTIONS_MAX: Final = 1_000
COLLECTION_NAME_BYTES_MAX: Final = 128
DESCRIPTION_BYTES_MAX: Final = 4_096
VECTORS_PER_COLLECTION_MAX: Final = 64
VECTOR_NAME_BYTES_MAX: Final = 64
DIMENSION_MAX: Final = 16_384
POINT_ID_BYTES_MAX: Final = 512
PAYLOAD_BYTES_MAX: Final = 1024 * 1024
PAYLOAD_DEPTH_MAX: Final = 64
POINTS_PER_REQUEST_MAX: Final = 10_000
IDS_PER_REQUEST_MAX: Final = 10_000
HITS_MAX: Final = 10_000
"""Largest offset + limit of a query."""
QUERIES_PER_BATCH_MAX: Final = 1_024
REQUESTS_PER_BATCH_MAX: Final = 1_024
"""Upserts of one UpsertBatch, gets of one GetBatch."""
PAGE_SIZE_MAX: Final = 10_000
PAGE_SIZE_DEFAULT: Final = 100
COLLECTION_PAGE_SIZE_MAX: Final = 1_000
REQUEST_ID_BYTES_MAX: Final = 128
FILTER_DEPTH_MAX: Final = 16
FILTER_NODES_MAX: Final = 1_000
FILTER_VALUES_MAX: Final = 10_000
"""Values of one any_of or none_of test, and ids of one has_id."""
FIELD_PATH_BYTES_MAX: Final = 512
FIELD_PATH_SEGMENTS_MAX: Final = 16
FIELD_PATHS_MAX: Final = 256
"""Paths of one payload selector or removal."""

KEY_BYTES_MAX: Final = 1_024
"""Of a key, and of a pattern for keys."""
KEYS_PER_REQUEST_MAX: Final = 1_024
MEMBER_BYTES_MAX: Final = 1_024
"""Of a member of a set or a sorted set, and of a field of a hash."""
MEMBERS_PER_REQUEST_MAX: Final = 1_024
"""Members or fields that one operation names."""
STRING_BYTES_MAX: Final = 32 * 1024 * 1024
OPERATIONS_PER_PIPELINE_MAX: Final = 1_024
CHANNELS_PER_SUBSCRIPTION_MAX: Final = 1_024
"""Channels and patterns."""
SUBSCRIPTION_PATTERN_BYTES_MAX: Final = 8 * 1024
"""Of all patterns of one subscription: reading them takes a tenth of a second."""
MESSAGES_PER_PUBLICATION_MAX: Final = 1_024
CHANNEL_MESSAGE_BYTES_MAX: Final = 1024 * 1024
PUBLICATION_BYTES_MAX: Final = 8 * 1024 * 1024
"""Of messages published at once: half of what may wait for a subscriber, so that one who keeps up is not cut off by a single call."""
SUBSCRIBER_MESSAGES_MAX: Final = 10_000
SUBSCRIBER_BYTES_MAX: Final = 16 * 1024 * 1024
"""Of messages that a subscriber has not read; one that is further behind is cut off with SLOW_CONSUMER."""
WATCH_TARGETS_MAX: Final = 1_024
WAIT_MS_MAX: Final = 60 * 60 * 1_000
"""How long a call waits for something to take."""
TRANSACTION_COMPARISONS_MAX: Final = 128
TRANSACTION_STEPS_MAX: Final = 128
"""Steps of one branch."""
LIST_ITEMS_PER_REQUEST_MAX: Final = 1_024
"""Items of a push or a pop."""
LIST_ITEMS_PER_REPLY_MAX: Final = 10_000
"""Items of a range, and indexes of a search."""
LIST_REPLY_BYTES_MAX: Final = 32 * 1024 * 1024
"""Size of the items of a range or a pop; one of STRING_BYTES_MAX fits."""
SORTED_SET_MEMBERS_PER_REPLY_MAX: Final = 10_000
RESULT_BYTES_MAX: Final = 40 * 1024 * 1024
"""Values and members that the writes of one record return, together: less than the deduplication window holds."""
COMBINED_MEMBERS_MAX: Final = 2_000_000
"""Members of all sets that one operation combines, one that is named twice counted twice."""
GEO_LOOKS_MAX: Final = 1_000_000
"""Members in the cells of an area that a search by place looks at."""
COMBINED_BITMAP_BYTES_MAX: Final = 512 * 1024 * 1024
"""Of all strings that one operation combines, one that is named twice counted twice."""
QUEUE_MESSAGES_PER_REQUEST_MAX: Final = 1_024
"""Messages that one operation on a delayed queue adds, delivers or names."""
DEAD_MESSAGES_PER_RECEIVE_MAX: Final = 1_024
"""Messages that one receive sets aside."""
QUEUE_REPLY_BYTES_MAX: Final = 32 * 1024 * 1024
"""Size of the bodies of messages delivered, or peeked at, together; one of STRING_BYTES_MAX fits."""
QUEUE_MESSAGE_REPLY_BYTES: Final = 64
"""What a delivered message counts for beside its body."""
RATE_LIMIT_PERMITS_MAX: Final = 2**53
RATE_LIMIT_GRANTS_MAX: Final = 1_024
"""Entries that a sliding window keeps."""
IDEMPOTENT_RESULT_BYTES_MAX: Final = 1024 * 1024
STREAM_ENTRY_BYTES_MAX: Final = 32 * 1024 * 1024
"""Of an entry of a stream: its fields and values together."""
STREAM_ENTRIES_PER_REPLY_MAX: Final = 10_000
STREAM_ENTRIES_DEFAULT: Final = 100
"""Entries that a read or a claim returns at most where the request says nothing."""
STREAM_REPLY_BYTES_MAX: Final = 32 * 1024 * 1024
"""What entries that a read or a claim returns count for, together; one of STREAM_ENTRY_BYTES_MAX fits always."""
STREAM_ENTRY_REPLY_BYTES: Final = 64
"""What a returned entry counts for beside its fields."""
STREAM_FIELD_REPLY_BYTES: Final = 64
"""What each of its fields counts for beside its bytes and those of its value."""
STREAM_LOOKS_PER_CLAIM: Final = 10
"""Pending entries that an automatic claim looks at for each that it may return."""
JSON_DOCUMENT_BYTES_MAX: Final = 16 * 1024 * 1024
"""What a JSON document takes in memory, as it is counted, and how long JSON in a request may be."""
JSON_DEPTH_MAX: Final = 128
"""Levels of a JSON document."""
JSON_PATHS_MAX: Final = 64
"""Paths of one read of a JSON document."""
JSON_PATH_BYTES_MAX: Final = 4_096
JSON_PATH_EXPRESSIONS_MAX: Final = 64
"""Expressions in the filters of one JSONPath."""
JSON_PATH_VISITS_MAX: Final = 100_000
"""Values that a JSONPath, or all of one read, look at: about a fifth of a second."""
JSON_MATCH_REPLY_BYTES: Final = 16
"""What a write of a JSON document counts for each match that it tells of, beside what it returns of it."""
TIME_MS_MAX: Final = 2**53
INT64_MIN: Final = -(2**63)
INT64_MAX: Final = 2**63 - 1

EF_MIN: Final = 1
EF_MAX: Final = 10_000
EF_DEFAULT: Final = 64
M_MIN: Final = 4
M_MAX: Final = 128
M_DEFAULT: Final = 16
EF_CONSTRUCTION_MIN: Final = 8
EF_CONSTRUCTION_MAX: Final = 4_096
EF_CONSTRUCTION_DEFAULT: Final = 200
TARGET_RECALL_MIN: Final = 0.5
TARGET_RECALL_DEFAULT: Final = 0.97
PAYLOAD_INDEXES_MAX: Final = 64
SEARCH_QUEUE_MAX: Final = 4_096
"""Queries that wait to be searched; beyond it more are refused with OVERLOADED."""

GROW_ONLY: Final = (
    "JSON_PATH_BYTES_MAX",
    "JSON_PATH_EXPRESSIONS_MAX",
    "FILTER_DEPTH_MAX",
    "FILTER_NODES_MAX",
    "FILTER_VALUES_MAX",
    "FIELD_PATH_BYTES_MAX",
    "FIELD_PATH_SEGMENTS_MAX",
    "FIELD_PATHS_MAX",
    "POINT_ID_BYTES_MAX",
)
"""Checked again when a record is applied: a smaller value would refuse records that were acknowledged."""
FROZEN: Final = (
    "PAYLOAD_BYTES_MAX",
    "STRING_BYTES_MAX",
    "RESULT_BYTES_MAX",
    "COMBINED_MEMBERS_MAX",
    "COMBINED_BITMAP_BYTES_MAX",
    "GEO_LOOKS_MAX",
    "LIST_REPLY_BYTES_MAX",
    "DEAD_MESSAGES_PER_RECEIVE_MAX",
    "QUEUE_REPLY_BYTES_MAX",
    "QUEUE_MESSAGE_REPLY_BYTES",
    "RATE_LIMIT_GRANTS_MAX",
    "STREAM_ENTRIES_DEFAULT",
    "STREAM_REPLY_BYTES_MAX",
    "STREAM_ENTRY_REPLY_BYTES",
    "STREAM_FIELD_REPLY_BYTES",
    "STREAM_LOOKS_PER_CLAIM",
    "JSON_DOCUMENT_BYTES_MAX",
    "JSON_DEPTH_MAX",
    "JSON_PATH_VISITS_MAX",
    "JSON_MATCH_REPLY_BYTES",
    "DEDUPLICATION_ENTRIES_MAX",
    "DEDUPLICATION_BYTES_MAX",
    "DEDUPLICATION_WINDOW_MS",
    "CHANGES_BYTES_MAX",
)
"""Decide the outcome of records: another value would replay them to another state."""

DEDUPLICATION_ENTRIES_MAX: Final = 65_536
DEDUPLICATION_BYTES_MAX: Final = 64 * 1024 * 1024
"""Size of all results remembered; one that lists thousands of conflicts is large."""
DEDUPLICATION_WINDOW_MS: Final = 10 * 60 * 1_000
"""Part of the on-disk semantics: a replay must forget request ids at the same records."""

CHANGES_BYTES_MAX: Final = 32 * 1024 * 1024
"""Of the newest changes, which a change feed can begin with; about half a million of single keys."""

STREAM_BATCHES_OUTSTANDING_MAX: Final = 4
"""Batches of one UpsertStream that may wait for durability before the server stops reading."""
STREAM_BYTES_OUTSTANDING_MAX: Final = 32 * 1024 * 1024
"""Size of their records; one that is larger waits alone."""
COMMIT_QUEUE_BYTES_MAX: Final = 256 * 1024 * 1024
"""Records waiting for durability; beyond it streams wait and other writes are refused with OVERLOADED."""
COMMIT_BATCH_BYTES_MAX: Final = 8 * 1024 * 1024
COMMIT_BATCH_RECORDS_MAX: Final = 1_024
