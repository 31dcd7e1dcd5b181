"""The files of deploy/: each passes its linter, the linter finds what is broken, and settings in them are settings."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
import yaml

from vecmem.cli.main import vecmem
from vecmem.cluster.nats_server import server_program
from vecmem.config import Settings, load_settings
from vecmem.server.cluster_node import RELEASE_SECONDS_MAX

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
BIN = Path(sys.executable).parent
NATS_CONFIGURATIONS = sorted(DEPLOY.rglob("nats-server.conf"))
MANIFESTS = sorted(set((DEPLOY / "kubernetes").glob("*.yaml")) - {DEPLOY / "kubernetes" / "kustomization.yaml"})
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
DOCKERFILE = DEPLOY / "docker" / "Dockerfile"
COMPOSE = yaml.safe_load((DEPLOY / "docker" / "compose.yaml").read_text())
SECONDS_MAX = 120


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=SECONDS_MAX, check=False
    )


def expect_pass(ran: subprocess.CompletedProcess[str]) -> None:
    assert ran.returncode == 0, ran.stdout + ran.stderr


def broken(source: Path, old: str, new: str, directory: Path) -> Path:
    """A copy of a file in which something was replaced."""
    text = source.read_text()
    assert old in text
    copy = directory / source.name
    copy.write_text(text.replace(old, new, 1))
    return copy


def linted_yaml(path: Path) -> subprocess.CompletedProcess[str]:
    return run(BIN / "yamllint", "--strict", "--config-file", DEPLOY / ".yamllint.yaml", path)


def validated(*manifests: Path) -> subprocess.CompletedProcess[str]:
    return run(BIN / "kubernetes-validate", "--strict", *manifests)


def linted_dockerfile(path: Path) -> subprocess.CompletedProcess[str]:
    return run(BIN / "hadolint", path)


def verified(directory: Path, *units: Path) -> subprocess.CompletedProcess[str]:
    """What systemd thinks of units whose programs are those of this environment."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    copies = []
    for unit in units:
        copy = directory / "units" / unit.name
        copy.parent.mkdir(exist_ok=True)
        copy.write_text(unit.read_text().replace("/opt/vecmem/bin/", f"{BIN}/"))
        copies.append(copy)
    return run("systemd-analyze", "verify", "--man=no", *copies)


def resources(kind: str) -> list[dict]:
    documents = [each for path in MANIFESTS for each in yaml.safe_load_all(path.read_text())]
    return [each for each in documents if each["kind"] == kind]


def pods() -> list[dict]:
    return [each["spec"]["template"]["spec"] for each in resources("StatefulSet")]


def test_yaml_passes_its_linter_and_a_key_given_twice_does_not(tmp_path):
    expect_pass(linted_yaml(DEPLOY))
    twice = broken(DEPLOY / "kubernetes" / "nats.yaml", "replicas: 3", "replicas: 3\n  replicas: 2", tmp_path)
    assert 'duplication of key "replicas"' in linted_yaml(twice).stdout


def test_manifests_are_what_kubernetes_takes_and_an_unknown_field_is_not(tmp_path):
    expect_pass(validated(*MANIFESTS))
    unknown = broken(DEPLOY / "kubernetes" / "shard-0.yaml", "serviceName:", "servicesName:", tmp_path)
    ran = validated(unknown)
    assert ran.returncode != 0
    assert "servicesName" in ran.stdout + ran.stderr


def test_another_shard_is_made_of_the_first_ones_manifest_as_the_guide_says(tmp_path):
    guide = (ROOT / "docs" / "operations.md").read_text()
    (command,) = [line for line in guide.splitlines() if line.startswith("sed -e 's/shard-0/shard-1/g'")]
    ran = subprocess.run(command.partition(" > ")[0], shell=True, cwd=ROOT, capture_output=True, text=True, check=True)
    made = tmp_path / "shard-1.yaml"
    made.write_text(ran.stdout)
    expect_pass(validated(made))
    (workload,) = [each for each in yaml.safe_load_all(ran.stdout) if each["kind"] == "StatefulSet"]
    (container,) = workload["spec"]["template"]["spec"]["containers"]
    variables = {each["name"]: each.get("value") for each in container["env"]}
    assert (variables["VECMEM_SHARD"], variables["VECMEM_ADVERTISE"]) == ("1", "$(VECMEM_NODE).vecmem-shard-1:7700")
    assert "shard-0" not in ran.stdout


def test_the_kustomization_has_every_file_and_no_other():
    kustomization = yaml.safe_load((DEPLOY / "kubernetes" / "kustomization.yaml").read_text())
    assert sorted(kustomization["resources"]) == [path.name for path in MANIFESTS]
    generated = {each["name"]: each["files"] for each in kustomization["configMapGenerator"]}
    assert generated == {"vecmem-nats": ["nats-server.conf"], "vecmem": ["vecmem.toml"]}
    used = {volume["configMap"]["name"] for pod in pods() for volume in pod["volumes"] if "configMap" in volume}
    assert used == set(generated)
    assert all((DEPLOY / "kubernetes" / name).is_file() for names in generated.values() for name in names)


def test_the_dockerfile_passes_its_linter_and_one_that_runs_as_root_does_not(tmp_path):
    expect_pass(linted_dockerfile(DOCKERFILE))
    ran = linted_dockerfile(broken(DOCKERFILE, "USER 10001:10001", "USER root", tmp_path))
    assert ran.returncode != 0
    assert "DL3002" in ran.stdout


def test_units_are_what_systemd_takes_and_an_unknown_setting_is_not(tmp_path):
    ran = verified(tmp_path, *UNITS)
    expect_pass(ran)
    told = ran.stdout + ran.stderr
    assert not [line for line in told.splitlines() if any(unit.name in line for unit in UNITS)]
    unknown = broken(DEPLOY / "systemd" / "vecmem.service", "TimeoutStopSec", "TimeoutStopSecs", tmp_path)
    assert "TimeoutStopSecs" in verified(tmp_path, unknown).stderr


@pytest.mark.parametrize("path", NATS_CONFIGURATIONS, ids=lambda path: str(path.relative_to(DEPLOY)))
def test_a_nats_configuration_is_what_the_command_prints_and_nats_takes(path):
    first, _, _ = path.read_text().partition("\n")
    program, *arguments = shlex.split(first.removeprefix("# "))
    assert run(BIN / program, *arguments).stdout == path.read_text()
    assert "sync_interval: always" in path.read_text()
    expect_pass(run(server_program(), "-t", "--config", path))


def test_nats_refuses_a_configuration_with_an_unknown_field(tmp_path):
    assert len(NATS_CONFIGURATIONS) == 5
    unknown = broken(NATS_CONFIGURATIONS[0], "sync_interval", "sync_intervals", tmp_path)
    ran = run(server_program(), "-t", "--config", unknown)
    assert ran.returncode != 0
    assert "sync_intervals" in ran.stderr


@pytest.mark.parametrize("path", sorted(DEPLOY.rglob("vecmem.toml")), ids=lambda path: str(path.relative_to(DEPLOY)))
def test_the_settings_of_a_file_are_settings_of_a_cluster_that_loses_nothing(path):
    settings = load_settings(config_file=path)
    assert settings.log_replicas == 3
    assert not settings.cluster_allow_lazy_sync
    servers = [url.removeprefix("nats://").rpartition(":")[0] for url in settings.cluster.split(",")]
    pages = [url.removeprefix("http://").rpartition(":")[0] for url in settings.cluster_monitoring.split(",")]
    assert servers == pages
    assert len(set(servers)) == 3


def test_variables_in_containers_are_settings():
    written = re.findall(r"^\s+(VECMEM_\w+)=(\S+)", DOCKERFILE.read_text().replace("ENV ", "ENV \n "), re.MULTILINE)
    image = dict(written)
    assert "VECMEM_LISTEN" in image
    nodes = [service for name, service in COMPOSE["services"].items() if name.startswith("node-")]
    of_pods = [
        {each["name"]: each.get("value", "node") for each in container["env"] if each["name"].startswith("VECMEM_")}
        for pod in pods()
        for container in pod["containers"]
    ]
    for environment in (*(node["environment"] for node in nodes), *of_pods):
        settings = load_settings(environment=image | environment)
        assert settings.data_dir == Path("/var/lib/vecmem")
    assert len({node["environment"]["VECMEM_NODE"] for node in nodes}) == 3


def test_whoever_ends_a_node_gives_it_more_time_than_it_takes():
    needed_seconds = Settings().grace_seconds + RELEASE_SECONDS_MAX
    [unit] = re.findall(r"^TimeoutStopSec=(\d+)$", (DEPLOY / "systemd" / "vecmem.service").read_text(), re.MULTILINE)
    given = [unit, COMPOSE["services"]["node-1"]["stop_grace_period"].removesuffix("s")]
    given += [pod["terminationGracePeriodSeconds"] for pod in pods()]
    assert all(int(seconds) > 2 * needed_seconds for seconds in given)


def test_pods_are_restricted_stay_apart_and_get_no_variables_of_services():
    found = pods()
    assert len(found) == 2
    for pod in found:
        assert pod["enableServiceLinks"] is False
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        for container in pod["containers"]:
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert {"startupProbe", "readinessProbe", "livenessProbe"} <= set(container)
    budgets = [each["spec"]["selector"]["matchLabels"] for each in resources("PodDisruptionBudget")]
    assert budgets == [each["spec"]["selector"]["matchLabels"] for each in resources("StatefulSet")]


def test_images_are_named_without_a_registry():
    images = [container["image"] for pod in pods() for container in pod["containers"]]
    images += [service["image"] for service in COMPOSE["services"].values()]
    images += re.findall(r"^FROM (\S+)", DOCKERFILE.read_text(), re.MULTILINE)
    assert {image.partition(":")[0] for image in images} == {"vecmem", "python"}


def guide_commands(pattern: str) -> list[str]:
    """What the section of the operations guide has in its blocks of shell commands."""
    _, _, rest = (ROOT / "docs" / "operations.md").read_text().partition("\n## Three machines\n")
    section, _, _ = rest.partition("\n## ")
    blocks = "\n".join(re.findall(r"```sh\n(.*?)```", section, re.DOTALL))
    return re.findall(pattern, blocks, re.MULTILINE)


def parse(arguments: list[str]) -> None:
    """Have a command line parsed as far as to the command that would run. Raises click.UsageError."""
    command: click.Command = vecmem
    context = None
    while True:
        context = command.make_context(command.name, arguments, parent=context)
        if not isinstance(command, click.Group):
            return
        _, command, arguments = command.resolve_command(context, context._protected_args + context.args)


def test_every_command_of_the_guide_is_one(monkeypatch):
    monkeypatch.setattr(click.Path, "convert", lambda _self, value, *_: value)
    found = guide_commands(r"(?:^|until |-- |/bin/)vecmem ([^|;#\n]+)")
    assert len(found) >= 11
    for line in found:
        parse(shlex.split(line))
    with pytest.raises(click.UsageError):
        parse(["cluster", "nats-configuration"])
    with pytest.raises(click.UsageError):
        parse(["health", "--seconds", "1"])


def test_every_file_that_the_guide_names_is_there():
    found = guide_commands(r"(deploy/\S+)")
    assert len(found) >= 4
    assert all((ROOT / name).exists() for name in found)
    [printed] = guide_commands(r"vecmem (cluster nats-config [^|]+) \|")
    expected = (DEPLOY / "three-machines" / "machine-1" / "nats-server.conf").read_text()
    assert run(BIN / "vecmem", *shlex.split(printed)).stdout == expected
