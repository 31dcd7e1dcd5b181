"""Settings come from defaults < file < environment < flags, and nothing wrong passes silently."""

from __future__ import annotations

import importlib.util
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import pytest

from vecmem.config import Settings, is_loopback, load_settings, setting_fields, split_address
from vecmem.errors import ConfigurationError

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def toml(tmp_path):
    def write(text: str) -> Path:
        path = tmp_path / "vecmem.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_defaults_serve_on_loopback_only():
    settings = load_settings()
    assert settings == Settings()
    assert settings.listen == "127.0.0.1:7700"
    assert settings.allow_remote is False


def test_each_source_wins_over_the_one_before(toml):
    file = toml('listen = "127.0.0.1:1"\nsearch_threads = 1\ngraph_threads = 1\n')
    environment = {"VECMEM_LISTEN": "127.0.0.1:2", "VECMEM_SEARCH_THREADS": "2", "PATH": "/bin"}
    flags = {"listen": "127.0.0.1:3", "search_threads": None, "graph_threads": None}
    settings = load_settings(config_file=file, environment=environment, flags=flags)
    assert (settings.listen, settings.search_threads, settings.graph_threads) == ("127.0.0.1:3", 2, 1)
    assert settings.grace_seconds == Settings().grace_seconds


def test_every_setting_is_read_from_the_environment_in_its_type():
    texts = {
        "data_dir": ("/tmp/elsewhere", Path("/tmp/elsewhere")),
        "listen": ("[::1]:0", "[::1]:0"),
        "allow_remote": ("Yes", True),
        "grace_seconds": ("2.5", 2.5),
        "checkpoint_on_exit": ("off", False),
        "memory_limit_bytes": ("1000000", 1_000_000),
        "eviction_policy": ("lru", "lru"),
        "log_level": ("debug", "debug"),
        "checkpoint_log_bytes": ("4096", 4096),
        "checkpoint_idle_seconds": ("1", 1.0),
        "log_retention_bytes": ("0", 0),
        "grpc_engine": ("grpcio", "grpcio"),
        "search_threads": ("3", 3),
        "graph_threads": ("4", 4),
        "cluster": ("nats://127.0.0.1:4222", "nats://127.0.0.1:4222"),
        "cluster_name": ("blue", "blue"),
        "cluster_monitoring": ("http://127.0.0.1:8222", "http://127.0.0.1:8222"),
        "cluster_allow_lazy_sync": ("true", True),
        "log_replicas": ("1", 1),
        "node": ("node-1", "node-1"),
        "shard": ("2", 2),
        "shards": ("3", 3),
        "coordination_file": ("/tmp/coordination", "/tmp/coordination"),
        "advertise": ("127.0.0.1:7701", "127.0.0.1:7701"),
        "lease_seconds": ("1", 1.0),
    }
    assert set(texts) == {setting.name for setting in setting_fields()}
    settings = load_settings(environment={f"VECMEM_{key.upper()}": text for key, (text, _) in texts.items()})
    for key, (_, value) in texts.items():
        assert getattr(settings, key) == value
        assert type(getattr(settings, key)) is type(getattr(Settings(), key))


@pytest.mark.parametrize(
    ("environment", "flags", "key", "source"),
    [
        ({"VECMEM_LISTN": "127.0.0.1:1"}, {}, "listn", "VECMEM_LISTN"),
        ({}, {"sync": False}, "sync", "--sync"),
    ],
)
def test_an_unknown_key_is_refused_with_its_source_and_the_known_ones(environment, flags, key, source):
    with pytest.raises(ConfigurationError) as caught:
        load_settings(environment=environment, flags=flags)
    assert caught.value.metadata["key"] == key
    assert source in caught.value.message
    assert "checkpoint_log_bytes, checkpoint_on_exit, cluster" in caught.value.message


def test_an_unknown_key_of_the_file_is_refused_by_the_file_name(toml):
    file = toml("durable = false\n")
    with pytest.raises(ConfigurationError, match="unknown setting 'durable'; known are") as caught:
        load_settings(config_file=file)
    assert caught.value.metadata["source"] == str(file)


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("VECMEM_SEARCH_THREADS", "two"),
        ("VECMEM_SEARCH_THREADS", "-1"),
        ("VECMEM_SEARCH_THREADS", "1.5"),
        ("VECMEM_GRACE_SECONDS", "nan"),
        ("VECMEM_GRACE_SECONDS", "inf"),
        ("VECMEM_GRACE_SECONDS", "-0.1"),
        ("VECMEM_ALLOW_REMOTE", "perhaps"),
        ("VECMEM_LOG_LEVEL", "loud"),
        ("VECMEM_DATA_DIR", ""),
        ("VECMEM_CHECKPOINT_LOG_BYTES", "0"),
    ],
)
def test_a_bad_value_of_the_environment_is_refused_by_key_and_source(variable, text):
    with pytest.raises(ConfigurationError) as caught:
        load_settings(environment={variable: text})
    assert caught.value.metadata["key"] == variable.removeprefix("VECMEM_").lower()
    assert variable in caught.value.message


@pytest.mark.parametrize(
    "line",
    [
        "search_threads = true",
        "search_threads = 1.0",
        "grace_seconds = true",
        'grace_seconds = "10"',
        "listen = 7700",
        "allow_remote = 1",
        "data_dir = 3",
        'data_dir = ""',
    ],
)
def test_a_value_of_the_wrong_type_in_the_file_is_not_converted(toml, line):
    with pytest.raises(ConfigurationError, match="must be"):
        load_settings(config_file=toml(line))


def test_an_integer_stands_for_a_number_of_seconds(toml):
    grace_seconds = load_settings(config_file=toml("grace_seconds = 3")).grace_seconds
    assert (grace_seconds, type(grace_seconds)) == (3.0, float)


@pytest.mark.parametrize("content", [b"listen = ", b"\xff\xfe"])
def test_a_file_that_is_not_toml_is_named(tmp_path, content):
    path = tmp_path / "vecmem.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match="is not TOML") as caught:
        load_settings(config_file=path)
    assert str(path) in caught.value.message


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigurationError, match=r"none\.toml: cannot be read"):
        load_settings(config_file=tmp_path / "none.toml")


def test_variables_of_the_command_and_of_kubernetes_services_are_no_settings():
    environment = {
        "VECMEM_ADDRESS": "127.0.0.1:1",
        "VECMEM_CONFIG": "x.toml",
        "VECMEM_SERVICE_HOST": "10.0.0.1",
        "VECMEM_SERVICE_PORT_GRPC": "7700",
        "VECMEM_PORT": "tcp://10.0.0.1:7700",
        "VECMEM_PORT_7700_TCP_ADDR": "10.0.0.1",
    }
    assert load_settings(environment=environment) == Settings()


@pytest.mark.parametrize("address", ["0.0.0.0:7700", "192.168.1.4:7700", "[::]:7700", "example.org:7700"])
def test_an_address_that_others_reach_needs_a_flag(address):
    with pytest.raises(ConfigurationError, match="allow_remote"):
        load_settings(flags={"listen": address})
    assert load_settings(flags={"listen": address, "allow_remote": True}).listen == address


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "127.0.0.1:", ":7700", "127.0.0.1:65536", "127.0.0.1:-1", "::1:7700", ""]
)
def test_a_malformed_address_is_refused(address):
    with pytest.raises(ConfigurationError, match="HOST:PORT"):
        load_settings(flags={"listen": address})


def test_addresses_split_into_host_and_port():
    assert split_address("[::1]:0") == ("::1", 0)
    assert split_address("localhost:65535") == ("localhost", 65_535)
    assert is_loopback("127.8.9.1")
    assert is_loopback("::1")
    assert is_loopback("localhost")
    assert not is_loopback("localhost.example.org")


def test_settings_made_in_code_are_checked_and_frozen():
    with pytest.raises(ConfigurationError):
        replace(Settings(), grace_seconds=-1)
    with pytest.raises(FrozenInstanceError):
        Settings().listen = "127.0.0.1:1"


def test_the_documentation_lists_every_setting_as_the_code_has_it():
    path = ROOT / "scripts" / "generate_configuration.py"
    specification = importlib.util.spec_from_file_location("generate_configuration", path)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    page = module.PAGE.read_text(encoding="utf-8")
    assert module.replace_table(page) == page, "run: python scripts/generate_configuration.py"
    for setting in setting_fields():
        assert f"| `{setting.name}` |" in page
