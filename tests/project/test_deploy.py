"""What is deployed fits itself, Ray's own checks, and the program that it runs."""

from __future__ import annotations

import fnmatch
import json
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import typer.main
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import start

from jobs.__main__ import app
from jobs.spec.configurations import expand
from jobs.spec.trial_spec import TrialSpec, read_spec

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "cluster" / "deploy"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
RAY = re.search(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[1]  # type: ignore[index]
IMAGE = f"optrial:{PROJECT['project']['version']}"


def resources() -> dict[str, dict[str, Any]]:
    """Of rayjob.yaml, by kind."""
    return {each["kind"]: each for each in yaml.safe_load_all(text("rayjob.yaml"))}


def text(name: str) -> str:
    return (DEPLOY / name).read_text()


def groups() -> tuple[dict[str, Any], dict[str, Any]]:
    """The head's group, and the workers'."""
    cluster = resources()["RayJob"]["spec"]["rayClusterSpec"]
    (workers,) = cluster["workerGroupSpecs"]
    return cluster["headGroupSpec"], workers


def trial(folder: Path) -> TrialSpec:
    file = folder / "trial.yaml"
    file.write_text(resources()["ConfigMap"]["data"]["trial.yaml"])
    return read_spec(file)


def test_one_version_of_ray_everywhere() -> None:
    assert ray.__version__ == RAY
    base = re.search(r"^FROM rayproject/ray:(\S+)-py(\d+)$", text("Dockerfile"), re.MULTILINE)
    assert base is not None
    assert base[1] == RAY
    lowest = PROJECT["project"]["requires-python"].removeprefix(">=")
    assert base[2] == lowest.replace(".", "")
    assert resources()["RayJob"]["spec"]["rayClusterSpec"]["rayVersion"] == RAY


def test_one_image_everywhere() -> None:
    for group in groups():
        (container,) = group["template"]["spec"]["containers"]
        assert container["image"] == IMAGE
    assert yaml.safe_load(text("cluster.yaml"))["docker"]["image"] == IMAGE
    assert f"-t {IMAGE} " in text("Dockerfile")
    assert IMAGE in (ROOT / "docs" / "cluster.md").read_text()


def test_the_entrypoint_is_a_command_on_a_file_that_is_mounted(tmp_path: Path) -> None:
    words = shlex.split(resources()["RayJob"]["spec"]["entrypoint"])
    assert words[:3] == ["python", "-m", "jobs"]
    program = typer.main.get_command(app)
    command = program.get_command(program.make_context("optrial", [words[3]]), words[3])  # type: ignore[attr-defined]
    spec = Path(command.make_context(words[3], words[4:]).params["spec"])
    for group in groups():
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        mounts = {each["name"]: Path(each["mountPath"]) for each in container["volumeMounts"]}
        volumes = {each["name"]: each for each in pod["volumes"]}
        assert mounts.keys() == volumes.keys()
        claim = volumes["results"]["persistentVolumeClaim"]["claimName"]
        assert claim == resources()["PersistentVolumeClaim"]["metadata"]["name"]
        files = volumes["trial"]["configMap"]["name"]
        assert files == resources()["ConfigMap"]["metadata"]["name"]
        assert spec.parent == mounts["trial"]
        assert Path(trial(tmp_path).output).is_relative_to(mounts["results"])
    assert spec.name in resources()["ConfigMap"]["data"]
    shared = resources()["PersistentVolumeClaim"]["spec"]["accessModes"]
    assert shared == ["ReadWriteMany"], "driver and workers write from several nodes"


def test_the_trial_runs_and_its_workers_fit_the_nodes(tmp_path: Path) -> None:
    spec = trial(tmp_path)
    assert [c.name for c in expand(spec)] == ["static", "static.repeat", "vattention"]
    head, group = groups()
    assert group["minReplicas"] >= 1, "a trial begins with the workers that there is room for"
    assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    (worker,) = group["template"]["spec"]["containers"]
    asked = worker["resources"]["limits"]
    assert asked == worker["resources"]["requests"], "times on a throttled CPU mean nothing"
    per_node = min(
        int(asked["cpu"]) // spec.workers.cpus, int(asked["nvidia.com/gpu"]) // spec.workers.gpus
    )
    assert per_node == 1, "a node's GPU is one worker's alone"
    assert spec.workers.count == group["maxReplicas"]
    assert spec.workers.start_timeout_s > 0
    assert head["rayStartParams"]["num-cpus"] == "0"
    for each in (head, group):
        assert each["template"]["spec"]["securityContext"]["runAsNonRoot"] is True


def test_the_job_retries_by_new_clusters_only_and_ends() -> None:
    job = resources()["RayJob"]["spec"]
    assert job["backoffLimit"] > 0
    assert job["submitterConfig"]["backoffLimit"] == 0
    assert job["shutdownAfterJobFinishes"] is True
    assert job["ttlSecondsAfterFinished"] > 0
    assert job["activeDeadlineSeconds"] > 0
    assert job["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    assert job["rayClusterSpec"]["enableInTreeAutoscaling"] is True
    environment = yaml.safe_load(job["runtimeEnvYAML"])["env_vars"]
    assert all(isinstance(value, str) for value in environment.values())


def test_rays_launcher_takes_the_cluster() -> None:
    config = yaml.safe_load(text("cluster.yaml"))
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(config, schema)
    prepared = prepare_config(config)
    validate_config(prepared)
    types = prepared["available_node_types"]
    assert types[prepared["head_node_type"]]["resources"]["CPU"] == 0
    workers = types["gpu"]
    assert 1 <= workers["min_workers"] <= workers["max_workers"] <= prepared["max_workers"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(config | {"max_wrokers": 1}, schema)


def test_rays_command_line_takes_how_nodes_are_started() -> None:
    config = yaml.safe_load(text("cluster.yaml"))
    for kind in ("head", "worker"):
        commands = config[f"{kind}_start_ray_commands"]
        (starting,) = [each for each in commands if "ray start" in each]
        settings, _, options = starting.partition("ray start ")
        assert "RAY_AUTH_MODE=token" in settings.split()
        parsed = start.make_context("start", shlex.split(options)).params
        assert parsed["head"] is (kind == "head")
        assert (parsed["address"] is None) is (kind == "head")
        if kind == "head":
            assert parsed["num_cpus"] == 0
            assert parsed["dashboard_host"] == "127.0.0.1", "jobs are code of whoever reaches it"
    assert "/home/ray/.ray/auth_token" in config["file_mounts"]


def test_the_image_is_built_of_what_is_there_and_runs_without_root() -> None:
    lines = [line.strip() for line in text("Dockerfile").splitlines()]
    assert [line for line in lines if line.startswith("USER ")][-1] == "USER ray"
    ignored = [
        line for line in text("Dockerfile.dockerignore").splitlines() if not line.startswith("#")
    ]
    assert ignored[0] == "*"
    allowed = {line[1:] for line in ignored if line.startswith("!")}
    for line in lines:
        if line.startswith("COPY "):
            *sources, _ = line.split()[2:]
            for source in sources:
                assert (ROOT / source).exists()
                assert source in allowed
    extras = re.search(r"'\.\[(.+)\]'", text("Dockerfile"))
    assert extras is not None
    assert set(extras[1].split(",")) <= PROJECT["project"]["optional-dependencies"].keys()


def test_nothing_secret_is_written_down() -> None:
    secret = re.compile(
        r"(secret_access_key|access_key_id|auth_token|password)\s*[:=]\s*[^\s~/]", re.I
    )
    for file in DEPLOY.iterdir():
        assert not secret.search(file.read_text())


def test_the_files_are_distributed() -> None:
    build = PROJECT["tool"]["hatch"]["build"]["targets"]
    assert "cluster" in build["wheel"]["packages"]
    included = build["sdist"]["include"]
    assert "/cluster" in included
    assert "/constraints.txt" in included, "the image is built with it"
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    for file in DEPLOY.iterdir():
        assert not any(fnmatch.fnmatch(file.name, pattern) for pattern in ignored)
