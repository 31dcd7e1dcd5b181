"""Operations on JSON documents for histories that hypothesis draws."""

from __future__ import annotations

from hypothesis import strategies as st

from vecmem.v1 import pipeline_pb2

PATHS = ["$", "$", "$.a", "$.b", "$.a[0]", "$..a", "$.*", "$..*", "$[?@.a == 1]", "$[-1:]"]
VALUES = [
    b"1",
    b"-0.0",
    b'"text"',
    b"null",
    b"[1,[true,2]]",
    b'{"a":1}',
    b'{"b":{"a":[1.5]},"a":null}',
    b'[{"a":1},{}]',
]


def draw_json_operation(draw: st.DrawFn, operation: pipeline_pb2.Operation, key: bytes) -> None:
    """Draw one that writes; some are refused, as are those at other paths than `$` where there is no document."""
    kinds = ["set_json", "set_json", "merge_json", "delete_json", "clear_json", "toggle_json"]
    kinds += ["add_json_number", "append_json_array", "insert_json_array", "pop_json_array", "trim_json_array"]
    kind = draw(st.sampled_from([*kinds, "append_json_string"]))
    request = getattr(operation, kind)
    request.key, request.path = key, draw(st.sampled_from(PATHS))
    value = draw(st.sampled_from(VALUES))
    match kind:
        case "set_json":
            request.value_json, request.condition = value, draw(st.integers(0, 2))
        case "merge_json":
            request.patch_json = value
        case "add_json_number":
            if draw(st.booleans()):
                request.integer = draw(st.sampled_from([-1, 2**63 - 1]))
            else:
                request.number = draw(st.sampled_from([0.1, 1e308]))
        case "append_json_array" | "insert_json_array":
            request.items_json.extend([value, b"0"])
            if kind == "insert_json_array":
                request.index = draw(st.integers(-2, 2))
        case "pop_json_array":
            request.index = draw(st.integers(-2, 2))
        case "trim_json_array":
            request.start, request.stop = draw(st.integers(-3, 2)), draw(st.integers(-3, 2))
        case "append_json_string":
            request.text = "é"
