"""`vecmem cluster nats-config` and `vecmem health`: what people run a cluster with beside the server."""

from __future__ import annotations

import signal
import socket
import threading

import pytest

ROUTES = ("--route", "nats://a:6222", "--route", "nats://b:6222", "--route", "nats://c:6222")


def test_a_server_of_a_cluster_syncs_always_and_knows_the_others(vecmem):
    printed = vecmem("cluster", "nats-config", "--name", "a", "--listen", "10.0.0.1:4222", *ROUTES)
    assert printed.code == 0
    lines = printed.stdout.splitlines()
    assert lines[0].startswith("# vecmem cluster nats-config --name a --listen 10.0.0.1:4222 ")
    for line in (
        'server_name: "a"',
        'listen: "10.0.0.1:4222"',
        'http: "10.0.0.1:8222"',
        "  sync_interval: always",
        '  listen: "10.0.0.1:6222"',
        '  routes: ["nats://a:6222", "nats://b:6222", "nats://c:6222"]',
    ):
        assert line in lines
    assert vecmem(*lines[0].removeprefix("# vecmem ").split()).stdout == printed.stdout
    as_json = vecmem("cluster", "nats-config", "--name", "a", "--listen", "10.0.0.1:4222", *ROUTES, "--json")
    assert as_json.document == {"configuration": printed.stdout}


def test_a_server_alone_has_no_cluster(vecmem):
    assert "cluster {" not in vecmem("cluster", "nats-config").stdout


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        (("--name", "a b"), "name"),
        (("--name", '"'), "name"),
        (("--listen", "4222"), "listen"),
        (("--listen", "a:0"), "listen"),
        (("--monitoring", "a:99999"), "monitoring"),
        (("--store-dir", "relative"), "store-dir"),
        (("--cluster-listen", "a:6222"), "route, cluster-listen"),
        (("--route", "a:6222"), "route"),
        (("--route", "nats://a"), "route"),
        ((*ROUTES, "--route", "nats://a:6222"), "route"),
        ((*ROUTES, "--cluster-listen", "a"), "cluster-listen"),
        ((*ROUTES, "--cluster-name", ""), "cluster-name"),
    ],
)
def test_what_nats_would_not_take_is_refused_by_name(vecmem, arguments, key):
    refused = vecmem("cluster", "nats-config", *arguments)
    assert refused.code == 2
    assert not refused.stdout
    assert refused.stderr.startswith(f"vecmem: {key}: ")


def test_a_server_that_serves_is_healthy(vecmem, server):
    assert vecmem("--address", server.address, "health").stdout == "SERVING\n"
    assert vecmem("--address", server.address, "health", "--json").document == {"status": "SERVING"}


def test_a_server_that_hangs_or_is_none_is_not_reached(vecmem, own_server):
    own_server.send_signal(signal.SIGSTOP)
    try:
        hanging = vecmem("--address", own_server.address, "health", "--timeout", "0.2")
    finally:
        own_server.send_signal(signal.SIGCONT)
    assert hanging.code == 5
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        host, port = stranger.getsockname()
        threading.Thread(target=lambda: stranger.accept()[0].close(), daemon=True).start()
        refused = vecmem("--address", f"{host}:{port}", "health", "--timeout", "2", "--json")
    assert refused.code == 5
    assert refused.error["reason"] in {"UNAVAILABLE", "DEADLINE_EXCEEDED"}


def test_the_health_of_several_servers_is_not_one_answer(vecmem, server):
    refused = vecmem("--address", f"{server.address},{server.address}", "health")
    assert refused.code == 2
    assert "not of several" in refused.stderr
