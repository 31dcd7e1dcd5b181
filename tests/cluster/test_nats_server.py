"""NATS servers: configured to sync always, ready when they say so, and gone when they are ended."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.nats import ask_jetstream, servers_in
from vecmem.cluster import nats_server as module
from vecmem.cluster.nats_server import NatsServer, NatsServers, configuration_of, free_ports, plan_servers
from vecmem.errors import ConfigurationError, UnavailableError
from vecmem.log.nats_durability import check_durability


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_server_takes_requests_once_it_is_ready_and_keeps_its_messages(own_nats_server: NatsServers) -> None:
    stream = {"name": "kept", "subjects": ["kept"], "storage": "file"}
    ask_jetstream(own_nats_server, "STREAM.CREATE.kept", stream)
    (server,) = own_nats_server.servers
    for end in (server.stop, server.kill):
        pid = server.pid
        end()
        assert not is_alive(pid)
        assert not server.running
        server.launch()
        server.wait_until_ready()
        assert ask_jetstream(own_nats_server, "STREAM.INFO.kept")["config"]["name"] == "kept"


def test_a_cluster_has_a_leader_for_its_metadata_once_it_is_ready(nats_cluster: NatsServers) -> None:
    leaders = {server.page("/jsz")["meta_cluster"]["leader"] for server in nats_cluster.servers}
    assert len(leaders) == 1
    assert leaders <= {server.plan.name for server in nats_cluster.servers}
    stream = {"name": "three", "subjects": ["three"], "num_replicas": 3}
    assert len(ask_jetstream(nats_cluster, "STREAM.CREATE.three", stream)["cluster"]["replicas"]) == 2
    ask_jetstream(nats_cluster, "STREAM.DELETE.three")


def test_none_is_left_when_the_block_fails(tmp_path: Path) -> None:
    pids = []

    def fail() -> None:
        with servers_in(tmp_path, 3) as servers:
            pids.extend(server.pid for server in servers.servers)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert len(pids) == 3
    assert not any(is_alive(pid) for pid in pids)


def test_a_server_that_does_not_come_up_says_why_and_leaves_none(tmp_path: Path, nats_server: NatsServers) -> None:
    taken = nats_server.servers[0].plan.client_port
    plans = plan_servers(tmp_path, count=2)
    servers = NatsServers([plans[0], replace(plans[1], client_port=taken)])
    with pytest.raises(UnavailableError, match="address already in use"):
        servers.start()
    assert not any(server.running for server in servers.servers)


def test_a_server_is_not_started_twice(nats_server: NatsServers) -> None:
    with pytest.raises(UnavailableError, match="runs already"):
        nats_server.servers[0].launch()


def test_a_missing_program_is_named_with_the_extra_that_brings_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PROGRAM", "no-such-nats-server")
    with pytest.raises(ConfigurationError, match=r"vecmem\[cluster\]"):
        NatsServer(plan_servers(tmp_path, count=1)[0]).launch()


def test_a_path_with_quotes_and_spaces_stays_one_path(tmp_path: Path) -> None:
    directory = tmp_path / 'with "quotes" and # spaces'
    with servers_in(directory, 1) as servers:
        config = servers.servers[0].page("/varz")["jetstream"]["config"]
        assert config["store_dir"].startswith(str(directory))


def test_ports_are_distinct_and_below_those_of_outgoing_connections() -> None:
    ports = free_ports(50)
    assert len(set(ports)) == 50
    assert all(20_000 <= port < 32_000 for port in ports)


def test_the_configuration_syncs_always_unless_a_test_wants_it_otherwise(tmp_path: Path) -> None:
    (plan,) = plan_servers(tmp_path, count=1)
    assert "sync_interval: always" in configuration_of(plan)
    assert "sync_interval" not in configuration_of(replace(plan, sync_always=False))


def test_durable_servers_pass(nats_cluster: NatsServers) -> None:
    names = {server.plan.name for server in nats_cluster.servers}
    assert check_durability(names, nats_cluster.monitoring_urls) is None


def test_a_server_that_syncs_lazily_is_refused_unless_allowed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with servers_in(tmp_path, 1, sync_always=False) as lazy:
        with pytest.raises(ConfigurationError, match=r"nats-1 acknowledge before they sync.*sync_interval: always"):
            check_durability({"nats-1"}, lazy.monitoring_urls, allow_unknown=True)
        check_durability({"nats-1"}, lazy.monitoring_urls, allow_lazy=True)
    assert "loses acknowledged writes" in caplog.text


def test_a_server_that_cannot_be_asked_is_refused_unless_allowed(
    nats_server: NatsServers, caplog: pytest.LogCaptureFixture
) -> None:
    (nobody,) = free_ports(1)
    for urls, why in (
        ((), "none of the monitoring pages"),
        ((f"http://127.0.0.1:{nobody}",), "refused"),
        ((nats_server.servers[0].plan.url.replace("nats:", "http:"),), "no page of a monitoring port"),
    ):
        with pytest.raises(UnavailableError, match=why):
            check_durability({"nats-1"}, urls, allow_lazy=True)
        caplog.clear()
        check_durability({"nats-1"}, urls, allow_unknown=True)
        assert "is not known" in caplog.text
    with pytest.raises(UnavailableError, match="nats-2"):
        check_durability({"nats-1", "nats-2"}, nats_server.monitoring_urls)
