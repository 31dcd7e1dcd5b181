"""Delayed queues in the `vecmem` command: run and shown."""

from __future__ import annotations

import base64
import json


def text(value):
    return base64.b64encode(value.encode()).decode()


def test_a_queue_is_filled_received_from_and_shown(ask, vecmem, server, collection_name):
    def run(**operation):
        [result] = ask("keys", "run", json.dumps(operation))["results"]
        return result

    key = text(collection_name)
    messages = [{"body": text("a")}, {"body": text("b")}, {"body": text("late"), "delayMs": 3_600_000}]
    ids = [int(number) for number in run(enqueueMessages={"key": key, "messages": messages})["messageIds"]]
    [got] = run(receiveMessages={"key": key, "visibilityTimeoutMs": 60_000})["messages"]
    assert (int(got["messageId"]), base64.b64decode(got["body"])) == (ids[0], b"a")
    described = ask("keys", "describe", collection_name)
    assert (described["type"], described["size"]) == ("delayed_queue", 3)
    shown = ask("keys", "show", collection_name)["items"]
    assert [(each["id"], each["state"], each["delivery_count"], each["body"]) for each in shown] == [
        (ids[1], "ready", 0, "b"),
        (ids[0], "in_flight", 1, "a"),
        (ids[2], "delayed", 0, "late"),
    ]
    assert all(each["due_at"].startswith("20") for each in shown)
    assert collection_name in ask("keys", "scan", f"{collection_name}*", "--type", "delayed_queue")["keys"]

    receipt = {"messageId": got["messageId"], "receipt": got["receipt"]}
    assert run(releaseMessages={"key": key, "receipts": [receipt]}) == {"released": [True]}
    received = run(receiveMessages={"key": key, "count": 2, "visibilityTimeoutMs": 60_000, "maxDeliveries": 1})
    assert (received["deadCount"], [each["messageId"] for each in received["messages"]]) == (1, [str(ids[1])])
    shown = ask("keys", "show", collection_name)["items"]
    assert [(each["id"], each["state"]) for each in shown] == [
        (ids[1], "in_flight"),
        (ids[2], "delayed"),
        (ids[0], "dead"),
    ]
    told = vecmem("--address", server.address, "keys", "show", collection_name, "--limit", 2)
    assert "2 of 3 items" in told.stderr
