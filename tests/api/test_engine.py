"""Which gRPC engine serves, what the server says about it, and what both must answer alike where they differ inside."""

from __future__ import annotations

import subprocess

import grpc
import pytest

from tests.api.tweaked import TweakedServer
from tests.support.api import DOT, connect, params, point
from tests.support.server import ServerProcess

WITHOUT_NATIVE = "import sys; sys.modules['pygrpc_native'] = None"
"""Then its import fails as where it is not installed."""


@pytest.fixture
def make_server(tmp_path, monkeypatch):
    """Makes servers that get their engine from the arguments alone."""
    monkeypatch.delenv("VECMEM_GRPC_ENGINE", raising=False)
    return lambda *arguments: ServerProcess(tmp_path / "data", arguments=arguments)


def log_of(server):
    return server.log_path.read_text()


@pytest.mark.parametrize(
    ("arguments", "engine"),
    [
        ((), "native"),
        (("--grpc-engine", "native"), "native"),
        (("--grpc-engine", "grpcio"), "grpcio"),
    ],
)
def test_the_engine_is_told_in_the_ready_line_the_log_and_the_server_info(make_server, arguments, engine):
    with make_server(*arguments) as server, connect(server.address) as api:
        assert server.ready["grpc_engine"] == engine
        assert api.info().grpc_engine == engine
        (line,) = [line for line in log_of(server).splitlines() if "gRPC engine: " in line]
    assert f"gRPC engine: {engine}" in line
    assert ("without: an end of connections by age" in line) == (engine == "native")
    assert ("UpsertStream and reflection go to grpcio" in line) == (engine == "native")


def test_a_listener_that_others_reach_gets_grpcio_unless_native_is_asked_for(make_server):
    server = make_server("--allow-remote")
    server.address = "0.0.0.0:0"
    with server:
        assert server.ready["grpc_engine"] == "grpcio"
        assert "is not loopback and native reads messages of any size" in log_of(server)
    chosen = make_server("--allow-remote", "--grpc-engine", "native")
    chosen.address = "0.0.0.0:0"
    with chosen:
        assert chosen.ready["grpc_engine"] == "native"


def test_where_native_is_not_installed_grpcio_serves_and_native_is_refused_with_what_to_install(tmp_path, monkeypatch):
    monkeypatch.delenv("VECMEM_GRPC_ENGINE", raising=False)
    with TweakedServer(tmp_path / "data", WITHOUT_NATIVE) as server, connect(server.address) as api:
        assert api.info().grpc_engine == "grpcio"
        assert "native cannot be loaded" in log_of(server)
    asked = TweakedServer(tmp_path / "other", WITHOUT_NATIVE, arguments=["--grpc-engine", "native"])
    refused = subprocess.run(asked.command(), capture_output=True, text=True, timeout=60, check=False)
    assert refused.returncode == 2
    assert "grpc_engine" in refused.stderr
    assert "pip install 'vecmem[native]'" in refused.stderr
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("engine", ["grpcio", "native"])
def test_two_servers_never_share_a_port(make_server, tmp_path, engine):
    with make_server("--grpc-engine", engine) as first, connect(first.address) as api:
        second = ServerProcess(tmp_path / "second", arguments=["--grpc-engine", engine])
        second.address = first.address
        with pytest.raises(RuntimeError, match="exited with 4"):
            second.start()
        assert first.address in second.last_words()
        assert api.info().version


@pytest.mark.parametrize("engine", ["grpcio", "native"])
def test_a_client_of_one_engine_goes_on_with_the_other_after_a_restart(make_server, tmp_path, engine):
    other = {"grpcio": "native", "native": "grpcio"}[engine]
    with make_server("--grpc-engine", engine) as first, connect(first.address) as api:
        api.create("c", params(2, DOT))
        api.upsert("c", [point("a", [1.0, 0.0])])
        before = api.everything()
        first.kill()
        second = make_server("--grpc-engine", other)
        second.address = first.address
        with second:
            grpc.channel_ready_future(api.channel).result(60)
            assert api.info().grpc_engine == other
            assert api.everything() == before
