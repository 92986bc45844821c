"""The files in deploy/ are valid and use only options that the commands have."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
import typer.main
import yaml

from qsync.cli.main import app
from qsync.worker import health_server as cli_health
from qsync.worker.autoscale import ScaleAdvice
from qsync.worker.supervisor import KILL_AFTER_S

DEPLOY = Path(__file__).parents[2] / "deploy"
UNIT = DEPLOY / "systemd" / "qsync-worker@.service"
ENVIRONMENT = DEPLOY / "systemd" / "shop.env"


def kubernetes(name: str) -> dict[str, Any]:
    """Return the Kubernetes objects in a file, by kind."""
    text = (DEPLOY / "kubernetes" / name).read_text()
    return {document["kind"]: document for document in yaml.safe_load_all(text)}


def pod() -> dict[str, Any]:
    found: dict[str, Any] = kubernetes("worker.yaml")["Deployment"]["spec"]["template"]["spec"]
    return found


def container() -> dict[str, Any]:
    [found] = pod()["containers"]
    return dict(found)


def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((DEPLOY / "docker" / "compose.yaml").read_text())
    return found


def environment() -> dict[str, str]:
    lines = ENVIRONMENT.read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def unit(key: str) -> list[str]:
    """Return the values of a key in the systemd unit."""
    return [
        line.split("=", 1)[1]
        for line in UNIT.read_text().splitlines()
        if line.startswith(f"{key}=")
    ]


def dockerfile(instruction: str) -> list[str]:
    """Return the command in a Dockerfile instruction, which is written as a JSON list."""
    text = (DEPLOY / "docker" / "Dockerfile").read_text().replace("\\\n", " ")
    found = re.findall(rf"^{instruction} .*?(\[.*\])$", text, re.MULTILINE)
    words: list[str] = json.loads(found[-1])
    return words


def commands() -> dict[str, list[str]]:
    """Return every command line in these files that runs qsync."""
    variables = environment()
    line = unit("ExecStart")[0].replace("/opt/%i/.venv/bin/", "")
    for name in ("QSYNC_APP", "QSYNC_OPTIONS"):
        line = line.replace(f"${name}", variables[name])
    return {
        "kubernetes": [*container()["command"], *container()["args"]],
        "systemd": shlex.split(line),
        "dockerfile": dockerfile("CMD"),
        "compose": compose()["services"]["worker"]["command"],
    }


def parsed(words: list[str]) -> dict[str, Any]:
    """Return the parsed options of a command line, without running it."""
    group: Any = typer.main.get_command(app)
    assert words[0] == "qsync"
    command = group.commands[words[1]]
    with command.make_context(words[1], list(words[2:])) as context:
        return dict(context.params)


@pytest.mark.parametrize("where", ["kubernetes", "systemd", "dockerfile", "compose"])
def test_commands_and_their_options_exist(where: str) -> None:
    options = parsed(commands()[where])
    assert options["target"] == "shop.tasks:app"
    assert options["health_port"] == 8090


def test_command_line_with_an_unknown_option_is_detected() -> None:
    with pytest.raises(Exception, match="No such option"):
        parsed(["qsync", "worker", "shop:app", "--no-such-option"])


def test_grace_period_exceeds_the_shutdown_timeout() -> None:
    """Supervisors wait longer for the worker to stop than the worker waits for its tasks."""
    patience = {
        "kubernetes": float(pod()["terminationGracePeriodSeconds"]),
        "systemd": float(unit("TimeoutStopSec")[0]),
        "compose": float(compose()["services"]["worker"]["stop_grace_period"].removesuffix("s")),
    }
    for where, seconds in patience.items():
        timeout = parsed(commands()[where])["shutdown_timeout"]
        assert seconds > timeout + KILL_AFTER_S + 5, where


def test_probes_use_existing_endpoints() -> None:
    [port] = container()["ports"]
    assert port == {"name": "health", "containerPort": 8090}
    paths = {}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        asked = container()[probe]
        assert asked["httpGet"]["port"] == port["name"]
        assert asked["timeoutSeconds"] > cli_health.PROCESSES_TIMEOUT_S
        paths[probe] = asked["httpGet"]["path"]
    assert paths == {
        "startupProbe": "/startup", "readinessProbe": "/ready", "livenessProbe": "/live",
    }  # fmt: skip
    # Listen on more than the pod's loopback address, so that the probes can connect.
    for where in ("kubernetes", "dockerfile", "compose"):
        assert parsed(commands()[where])["health_host"] == "0.0.0.0"  # noqa: S104 - as above
    [url] = re.findall(r"http://[^']+", dockerfile("HEALTHCHECK")[-1])
    assert (urlsplit(url).port, urlsplit(url).path) == (8090, "/live")


def test_labels_and_names_match() -> None:
    objects = kubernetes("worker.yaml")
    deployment, service = objects["Deployment"], objects["Service"]
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"] == labels
    assert service["spec"]["selector"] == labels
    [port] = service["spec"]["ports"]
    assert (port["port"], port["targetPort"]) == (8090, "health")
    annotations = deployment["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == "8090"
    scaled = kubernetes("autoscale.yaml")["ScaledObject"]
    assert scaled["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]


def test_autoscaler_uses_existing_endpoints() -> None:
    spec = kubernetes("autoscale.yaml")["ScaledObject"]["spec"]
    [trigger] = spec["triggers"]
    asked = urlsplit(trigger["metadata"]["url"])
    assert asked.path == "/scale"
    assert asked.port == 8090
    service = kubernetes("worker.yaml")["Service"]["metadata"]["name"]
    assert (asked.hostname or "").split(".")[0] == service
    goal = cli_health._goal(dict(parse_qsl(asked.query)))
    assert goal.target_s == 30
    assert goal.minimum == spec["minReplicaCount"]
    assert trigger["metadata"]["valueLocation"] in ScaleAdvice.__struct_fields__
    # The target is 1 per replica, since the metric is the desired number of replicas.
    assert trigger["metricType"] == "AverageValue"
    assert trigger["metadata"]["targetValue"] == "1"


def test_image_installs_requirements_before_it_copies_the_code() -> None:
    """If the image copied the code first, each change to the code would reinstall the
    dependencies."""
    steps = (DEPLOY / "docker" / "Dockerfile").read_text().splitlines()
    [requirements] = [at for at, step in enumerate(steps) if step.startswith("COPY requirements")]
    [install] = [at for at, step in enumerate(steps) if "-r requirements.txt" in step]
    [code] = [at for at, step in enumerate(steps) if step.startswith("COPY . ")]
    assert requirements < install < code


def test_image_installs_qsync_from_a_clone(tmp_path: Path) -> None:
    """The image copies all files from which pip builds qsync, which is on no package index."""
    root = DEPLOY.parent
    text = (DEPLOY / "docker" / "Dockerfile").read_text()
    assert compose()["services"]["worker"]["build"]["additional_contexts"].keys() == {"qsync"}
    for words in map(str.split, re.findall(r"^COPY --from=qsync (.*)$", text, re.MULTILINE)):
        *sources, target = words
        copy = tmp_path / target.strip("/")
        copy.mkdir(parents=True, exist_ok=True)
        for source in sources:
            if (root / source).is_dir():
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(root / source, copy, ignore=ignored, dirs_exist_ok=True)
            else:
                shutil.copy(root / source, copy)
    [(folder, extras)] = re.findall(r"pip install --no-cache-dir '/(\w+)\[(.*)\]'", text)
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    assert {"prometheus", "web"} <= {*extras.split(",")} <= {*project["optional-dependencies"]}
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=tmp_path / folder, capture_output=True, check=True,
    )  # fmt: skip
    [wheel] = tmp_path.glob("*.whl")
    assert "qsync/broker/lua/fetch.lua" in zipfile.ZipFile(wheel).namelist()


def test_containers_cannot_run_as_root() -> None:
    assert pod()["securityContext"]["runAsNonRoot"] is True
    security = container()["securityContext"]
    assert security["allowPrivilegeEscalation"] is False
    assert security["capabilities"]["drop"] == ["ALL"]
    worker = compose()["services"]["worker"]
    assert worker["cap_drop"] == ["ALL"]
    assert re.search(r"^USER \d+$", (DEPLOY / "docker" / "Dockerfile").read_text(), re.MULTILINE)
    assert unit("NoNewPrivileges") == unit("DynamicUser") == ["yes"]


def test_the_store_of_the_compose_file_keeps_tasks() -> None:
    command = compose()["services"]["store"]["command"]
    assert command[command.index("--maxmemory-policy") + 1] == "noeviction"
    assert command[command.index("--appendonly") + 1] == "yes"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    text = UNIT.read_text().replace("/opt/%i/.venv/bin/qsync", sys.executable)
    copy = tmp_path / "qsync-worker@shop.service"
    copy.write_text(text)
    for verb in (["verify"], ["security", "--offline=true", "--threshold=20"]):
        ended = subprocess.run(
            ["systemd-analyze", *verb, copy],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        told = ended.stdout + ended.stderr
        assert ended.returncode == 0, told
        if verb == ["verify"]:
            assert str(copy.name) not in told, told


def options_of(command: Any) -> set[str]:
    """Return the options of a command and of its subcommands."""
    found = {option for param in command.params for option in param.opts}
    return found.union(*map(options_of, getattr(command, "commands", {}).values()))


def test_the_docs_name_options_and_files_that_exist() -> None:
    text = (DEPLOY.parent / "docs" / "operations.md").read_text()
    known = options_of(typer.main.get_command(app)) | {"--now"}  # of systemctl
    known |= {"--build", "--build-context", "--project-directory"}  # of docker
    assert set(re.findall(r"(?<![-|])--[a-z][a-z-]+", text)) <= known
    links = set(re.findall(r"\]\(\.\./([^)]+)\)", text))
    assert links == {
        str(path.relative_to(DEPLOY.parent)) for path in DEPLOY.rglob("*") if path.is_file()
    }
