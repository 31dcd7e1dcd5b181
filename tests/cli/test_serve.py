"""`vecmem serve` comes up as told, says so, drains at SIGTERM, and says in one line why it did not come up."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager

import pytest

from vecmem.config import setting_fields
from vecmem_client import Client, Point, VectorConfig

COMMAND = [sys.executable, "-m", "vecmem.cli.main", "serve"]


@contextmanager
def serving(*arguments, environment=None):
    """The process, and its first line."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("VECMEM_")}
    process = subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=inherited | (environment or {}),
        text=True,
    )
    try:
        yield process, process.stdout.readline()
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def failing(*arguments, environment=None):
    """Run a server that must not come up: exit code and standard error."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("VECMEM_")}
    done = subprocess.run(
        [*COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=inherited | (environment or {}),
    )
    assert done.stdout == ""
    return done.returncode, done.stderr


def test_the_ready_line_names_the_address_and_sigterm_drains_and_exits_0(tmp_path):
    with serving("--json", "--listen", "127.0.0.1:0", "--data-dir", tmp_path / "data") as (process, line):
        ready = json.loads(line)
        assert set(ready) == {"event", "address", "pid", "version", "grpc_engine"}
        assert (ready["event"], ready["pid"]) == ("ready", process.pid)
        with Client(ready["address"]) as client:
            client.create_collection("c", VectorConfig(2))
            client.upsert("c", [Point("a", [1.0, 0.0])])
        process.send_signal(signal.SIGTERM)
        rest, _ = process.communicate(timeout=60)
        assert (process.returncode, rest) == (0, "")
    assert (tmp_path / "data").is_dir()


def test_people_get_a_line_too_and_sigint_is_as_good_as_sigterm(tmp_path):
    with serving("--listen", "127.0.0.1:0", "--data-dir", tmp_path / "data") as (process, line):
        assert "serves on 127.0.0.1:" in line
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
        assert process.returncode == 0


def test_settings_come_from_file_environment_and_flags(tmp_path):
    (tmp_path / "vecmem.toml").write_text(f'data_dir = "{tmp_path / "from-file"}"\nlisten = "192.0.2.1:1"\n')
    environment = {"VECMEM_CONFIG": str(tmp_path / "vecmem.toml"), "VECMEM_LISTEN": "192.0.2.2:2"}
    with serving("--json", "--listen", "127.0.0.1:0", environment=environment) as (_, line):
        assert json.loads(line)["address"].startswith("127.0.0.1:")
        assert (tmp_path / "from-file").is_dir()


def test_another_address_than_loopback_needs_a_flag_and_warns(tmp_path):
    arguments = ("--listen", "0.0.0.0:0", "--data-dir", tmp_path / "data")
    code, stderr = failing(*arguments)
    assert code == 2
    assert "--allow-remote" in stderr
    with serving(*arguments, "--allow-remote") as (process, line):
        assert "serves on" in line
        process.terminate()
        _, stderr = process.communicate(timeout=60)
        assert process.returncode == 0
    assert "no users and no TLS" in stderr


def test_wrong_settings_exit_2_with_key_and_source(tmp_path):
    (tmp_path / "vecmem.toml").write_text("durable = false\n")
    code, stderr = failing("--json", "--config", tmp_path / "vecmem.toml")
    error = json.loads(stderr)["error"]
    assert (code, error["reason"]) == (2, "CONFIGURATION")
    assert error["metadata"] == {"key": "durable", "source": str(tmp_path / "vecmem.toml")}
    code, stderr = failing(environment={"VECMEM_SYNC": "off"})
    assert code == 2
    assert "VECMEM_SYNC" in stderr


def test_an_address_in_use_exits_4_with_one_line(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        code, stderr = failing("--json", "--listen", address, "--data-dir", tmp_path / "data")
    assert code == 4
    assert address in json.loads(stderr.splitlines()[-1])["error"]["message"]


def test_a_data_directory_in_use_exits_6_with_one_line(tmp_path):
    arguments = ("--json", "--listen", "127.0.0.1:0", "--data-dir", tmp_path / "data")
    with serving(*arguments) as (process, _):
        code, stderr = failing(*arguments)
        assert code == 6
        assert str(tmp_path / "data") in json.loads(stderr.splitlines()[-1])["error"]["message"]
        assert process.poll() is None


def test_a_damaged_data_directory_exits_3_and_verify_finds_it(tmp_path, vecmem):
    data_dir = tmp_path / "data"
    with serving("--json", "--listen", "127.0.0.1:0", "--data-dir", data_dir) as (
        process,
        line,
    ):
        with Client(json.loads(line)["address"]) as client:
            client.create_collection("c", VectorConfig(2))
            for index in range(50):
                client.upsert("c", [Point(f"p{index}", [1.0, 0.5], {"text": "x" * 200})])
        # In use: nothing to see for an offline check.
        assert vecmem("verify", data_dir).code == 6
        process.kill()
        process.wait()
    sound = vecmem("verify", data_dir, "--json")
    assert (sound.code, sound.document["damage"]) == (0, [])
    assert sound.document["log"]["records"] == 51
    assert "51" in vecmem("info", data_dir).stdout

    log_file = max(data_dir.rglob("*.log"), key=lambda path: path.stat().st_size)
    content = bytearray(log_file.read_bytes())
    content[len(content) // 3] ^= 0x40
    log_file.write_bytes(content)

    found = vecmem("verify", data_dir, "--json")
    assert found.code == 1
    assert found.document["damage"][0]["path"]
    assert "DAMAGE: " in vecmem("verify", data_dir).stdout
    code, stderr = failing("--json", "--listen", "127.0.0.1:0", "--data-dir", data_dir)
    assert code == 3
    assert json.loads(stderr.splitlines()[-1])["error"]["reason"] == "CORRUPTION"


@pytest.mark.parametrize("setting", setting_fields(), ids=lambda setting: setting.name)
def test_every_setting_has_a_flag(vecmem, setting):
    assert f"--{setting.name.replace('_', '-')}" in vecmem("serve", "--help").stdout


def test_a_directory_without_data_is_not_taken_for_a_sound_one(tmp_path, vecmem):
    result = vecmem("verify", tmp_path, "--json")
    assert (result.code, result.stdout) == (6, "")
    assert str(tmp_path) in result.error["message"]
