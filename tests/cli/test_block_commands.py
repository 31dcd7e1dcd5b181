"""`vecmem keys` with rate limiters, locks and work that is done once."""

from __future__ import annotations

import base64
import json


def text(value):
    return base64.b64encode(value.encode()).decode()


def test_limiters_locks_and_work_are_made_and_shown(ask, collection_name):
    prefix = f"{{{collection_name}}}"
    bucket = {"capacity": 10, "refillPermits": 1, "intervalMs": 3_600_000}
    window = {"limit": 5, "windowMs": 3_600_000}
    work = {"fingerprint": text("f"), "leaseMs": 3_600_000, "retentionMs": 3_600_000}
    operations = [
        {"acquirePermits": {"key": text(prefix + "b"), "cost": 3, "tokenBucket": bucket}},
        {"acquirePermits": {"key": text(prefix + "w"), "slidingWindow": window}},
        {"acquireLock": {"key": text(prefix + "l"), "owner": text("me"), "leaseMs": 3_600_000}},
        {"beginIdempotent": {"key": text(prefix + "i"), **work}},
        {"releaseLock": {"key": text(prefix + "l"), "owner": text("me")}},
    ]
    results = ask("keys", "run", *map(json.dumps, operations))["results"]
    assert results[0] == {"allowed": True, "remaining": "7", "resetAfterMs": "10800000"}
    assert results[2]["fencingToken"] == results[2]["holder"]["fencingToken"]
    assert results[3]["status"] == "IDEMPOTENT_STATUS_STARTED"
    assert results[4]["error"]["reason"] == "INVALID_ARGUMENT"
    shown = {suffix: ask("keys", "show", prefix + suffix) for suffix in "bwli"}
    assert [shown[suffix]["type"] for suffix in "bwli"] == ["rate_limiter", "rate_limiter", "lock", "idempotency_key"]
    items = {suffix: found["items"] for suffix, found in shown.items()}
    assert [(item["limit"], item["remaining"]) for item in items["b"]] == [("10 at most, 1 more each 3600 s", 7)]
    assert [(item["limit"], item["remaining"]) for item in items["w"]] == [("5 within 3600 s", 4)]
    assert [(item["owner"], item["fencing_token"]) for item in items["l"]] == [("me", int(results[2]["fencingToken"]))]
    assert 0 < items["l"][0]["remaining_seconds"] <= 3_600
    assert [(item["attempt"], item["fingerprint"], item["result"]) for item in items["i"]] == [(1, "f", None)]
    done = {"completeIdempotent": {"key": text(prefix + "i"), "token": results[3]["token"], "result": text("done")}}
    assert ask("keys", "run", json.dumps(done))["results"] == [{"completed": True}]
    assert ask("keys", "show", prefix + "i")["items"][0]["result"] == "done"
    assert ask("keys", "scan", prefix + "*", "--type", "lock")["keys"] == [prefix + "l"]


def test_a_lock_whose_lease_has_ended_is_shown_as_nobodys(ask, collection_name):
    lock = {"acquireLock": {"key": text(collection_name), "owner": text("me"), "leaseMs": 1}}
    persist = {"persistKey": {"key": text(collection_name)}}
    ask("keys", "run", json.dumps(lock), json.dumps(persist))
    found = ask("keys", "show", collection_name)
    assert (found["type"], found["items"]) == ("lock", [])
