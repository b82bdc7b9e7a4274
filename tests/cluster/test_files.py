"""The files of `cluster/`, against published schemas, against each other and against this package.

What only a cloud, Kubernetes or Slurm can tell is not tested; cluster/README.md says what that is.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

import perpeft_ray
from perpeft_ray.cli.study import parse_study

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
LAUNCHER = ["aws-cpu.yaml", "aws-gpu.yaml", "gcp-cpu.yaml", "gcp-gpu.yaml"]
KUBERAY = [
    "kuberay/raycluster-cpu.yaml",
    "kuberay/raycluster-gpu.yaml",
    "kuberay/rayjob-cpu.yaml",
    "kuberay/rayjob-gpu.yaml",
]
PAIRS = ["aws", "gcp", "kuberay/raycluster", "kuberay/rayjob"]
PLACEHOLDERS = re.compile(r"REGISTRY|AMI_ID|NFS_SERVER|PROJECT_ID")
# The fields of KubeRay's API (v1, KubeRay 1.6) that the files use; Kubernetes drops unknown ones
# without a word. From its documentation; its CRDs are not copied here.
RAY_CLUSTER = {"rayVersion", "authOptions", "headGroupSpec", "workerGroupSpecs"}
HEAD_GROUP = {"rayStartParams", "template"}
WORKER_GROUP = HEAD_GROUP | {"groupName", "replicas", "minReplicas", "maxReplicas"}
RAY_JOB = {
    "entrypoint",
    "shutdownAfterJobFinishes",
    "ttlSecondsAfterFinished",
    "backoffLimit",
    "rayClusterSpec",
}


def load(name: str) -> Any:
    return yaml.safe_load((CLUSTER / name).read_text())


def ray_cluster_spec(name: str) -> Any:
    spec = load(name)["spec"]
    return spec.get("rayClusterSpec", spec)


def pinned() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if "==" in line)


@pytest.mark.parametrize("name", LAUNCHER)
def test_launcher_files_keep_rays_schema(name):
    import jsonschema
    import ray.autoscaler

    config = load(name)
    schema = Path(ray.autoscaler.__file__).with_name("ray-schema.json")
    jsonschema.validate(config, json.loads(schema.read_text()))
    assert set(config["available_node_types"]) == {"head", "worker"}
    assert config["head_node_type"] == "head"
    # A study asks for its workers from the first trial on; an autoscaler would start none for it.
    worker = config["available_node_types"]["worker"]
    assert worker["min_workers"] == worker["max_workers"] == config["max_workers"] == 4


@pytest.mark.parametrize("name", LAUNCHER)
def test_launcher_clusters_are_closed_and_share_a_folder(name):
    config = load(name)
    assert "--env RAY_AUTH_MODE=token" in config["docker"]["run_options"]
    assert config["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}
    assert "chmod 600 ~/.ray/auth_token" in config["setup_commands"]
    start = config["head_start_ray_commands"][-1]
    assert "--dashboard-host=127.0.0.1" in start
    mount = "/mnt/perpeft"
    assert f"--volume {mount}:{mount}" in config["docker"]["run_options"]
    assert any("NFS_SERVER:/" in line for line in config["initialization_commands"])
    worker = config["available_node_types"]["worker"]["node_config"]
    head = config["available_node_types"]["head"]["node_config"]
    if name.startswith("aws"):
        assert worker["InstanceMarketOptions"] == {"MarketType": "spot"}
        assert "InstanceMarketOptions" not in head
    else:
        assert {"preemptible": True} in worker["scheduling"]
        assert "scheduling" not in head
        assert ("guestAccelerators" in worker or "g2-" in worker["machineType"]) == ("gpu" in name)
    for command in config["initialization_commands"]:
        subprocess.run(["bash", "-n", "-c", command], check=True)


def test_a_token_that_is_made_is_its_owners_alone():
    files = [path for path in (ROOT / "cluster").rglob("*") if path.is_file()]
    files.append(ROOT / "perpeft_ray" / "study" / "doctor.py")
    made = [
        line
        for file in files
        for line in file.read_text().splitlines()
        if "get-auth-token --generate" in line
    ]
    assert len(made) >= 5
    assert all("(umask 077; ray get-auth-token --generate)" in line for line in made)


@pytest.mark.parametrize("name", KUBERAY)
def test_kuberay_files_name_fields_that_exist(name):
    resource = load(name)
    assert resource["apiVersion"] == "ray.io/v1"
    assert resource["kind"].lower() == Path(name).stem.partition("-")[0]
    if resource["kind"] == "RayJob":
        assert set(resource["spec"]) == RAY_JOB
    spec = ray_cluster_spec(name)
    assert set(spec) == RAY_CLUSTER
    assert spec["authOptions"] == {"mode": "token"}
    assert set(spec["headGroupSpec"]) == HEAD_GROUP
    (workers,) = spec["workerGroupSpecs"]
    assert set(workers) == WORKER_GROUP
    assert workers["replicas"] == workers["minReplicas"] == workers["maxReplicas"]
    # Kubernetes takes them as strings only.
    for group in (spec["headGroupSpec"], workers):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())


@pytest.mark.parametrize("name", KUBERAY)
def test_kuberay_pods_keep_kubernetes_schema(name):
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    spec = ray_cluster_spec(name)
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, **group["template"]}
        kubernetes_validate.validate(pod, "1.33", strict=True)
    kubernetes_validate.validate(load("kuberay/storage.yaml"), "1.33", strict=True)


@pytest.mark.parametrize("accelerator", ["cpu", "gpu"])
def test_a_job_has_the_cluster_of_the_cluster_file(accelerator):
    job = load(f"kuberay/rayjob-{accelerator}.yaml")
    assert job["spec"]["rayClusterSpec"] == load(f"kuberay/raycluster-{accelerator}.yaml")["spec"]
    command, study, *arguments = shlex.split(job["spec"]["entrypoint"])
    assert (command, study) == ("perpeft", "study")
    config = parse_study(arguments)
    assert config.storage.startswith("/mnt/perpeft/")
    assert config.gpus == (accelerator == "gpu")
    (workers,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    places = workers["replicas"] * (1 if accelerator == "gpu" else 3)
    assert config.workers * config.search.max_concurrent <= places


@pytest.mark.parametrize("pair", PAIRS)
def test_cpu_and_gpu_variants_differ_only_where_they_say_so(pair):
    """Outside lines marked [cpu] or [gpu] (or below such a comment) only the names differ."""
    cpu, gpu = (
        (CLUSTER / f"{pair}-{kind}.yaml").read_text().splitlines() for kind in ("cpu", "gpu")
    )
    marked = {line.partition("  # [")[0].strip() for line in cpu + gpu if "# [" in line}
    plain = [line for line in cpu if "[gpu]" not in line and "perpeft-cpu" not in line]
    other = [line for line in gpu if "[cpu]" not in line and "perpeft-gpu" not in line]
    assert len(marked) >= 2
    # What only one of them has: the lines below a marked one that belong to it.
    extra = [line.strip() for line in other if line not in plain]
    missing = [line.strip() for line in plain if line not in other]
    assert all(line.startswith("perpeft study") for line in missing)
    assert all(
        line.startswith(("perpeft study", "items:", "- key: install-nvidia-driver", "value:"))
        for line in extra
    )


def test_versions_are_those_of_this_package():
    version = perpeft_ray.__version__
    for name in [*LAUNCHER, *KUBERAY]:
        accelerator = Path(name).stem.rpartition("-")[2]
        images = set(re.findall(r"\S*perpeft-ray:\S+", (CLUSTER / name).read_text()))
        assert images == {f"REGISTRY/perpeft-ray:{version}-{accelerator}"}
    for name in KUBERAY:
        assert ray_cluster_spec(name)["rayVersion"] == pinned()["ray"]
    readme = (CLUSTER / "README.md").read_text()
    assert set(re.findall(r"perpeft-ray:([\d.]+)-", readme)) == {version}
    assert set(re.findall(r"ray(?:\[default\])?==([\d.]+)", readme)) == {pinned()["ray"]}
    container = (CLUSTER / "Containerfile").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (python,) = re.findall(r"FROM \S+/python:([\d.]+)-slim", container)
    assert python == "3.11"
    assert project["requires-python"] == ">=3.11,<3.13"
    # Everything that constraints.txt knows comes from there.
    named = re.findall(r"([\w-]+)==", container)
    assert named
    assert not set(named) & set(pinned())


def test_the_container_copies_files_that_exist_and_are_what_setup_needs():
    copied = [
        source
        for line in (CLUSTER / "Containerfile").read_text().splitlines()
        if line.startswith("COPY ")
        for source in line.split()[1:-1]
    ]
    assert all((ROOT / source).exists() for source in copied)
    assert {"pyproject.toml", "constraints.txt", "perpeft_ray"} <= set(copied)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {project["readme"], *project["license-files"]} <= set(copied)


@pytest.mark.parametrize(
    ("tool", "file"), [("shellcheck", "slurm.sh"), ("hadolint", "Containerfile")]
)
def test_shell_and_container_files_pass_their_linters(tool, file):
    """With a tool of the extra `dev`, which lies beside this interpreter."""
    found = shutil.which(tool, path=str(Path(sys.executable).parent)) or shutil.which(tool)
    if found is None:
        pytest.skip(f"no {tool}")
    ended = subprocess.run([found, CLUSTER / file], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout


def test_slurm_directives_are_options_of_sbatch():
    script = (CLUSTER / "slurm.sh").read_text()
    given = re.findall(r"^#SBATCH --([\w-]+)", script, flags=re.M)
    assert set(given) <= {
        *("job-name", "nodes", "ntasks-per-node", "cpus-per-task", "mem", "time"),
        *("requeue", "open-mode", "output"),
    }
    # Slurm stops reading them at the first command.
    assert script.rindex("#SBATCH") < script.index("set -euo")
    # Never the end of somebody else's Ray on a shared node.
    assert "ray stop" not in script


def readme_commands() -> list[str]:
    readme = (CLUSTER / "README.md").read_text()
    blocks = re.findall(r"```bash\n(.*?)```", readme, flags=re.S)
    return [
        command
        for block in blocks
        for command in block.replace("\\\n", " ").splitlines()
        if command.strip() and not command.startswith("#")
    ]


def test_every_file_that_the_readme_names_exists():
    readme = (CLUSTER / "README.md").read_text()
    named = set(re.findall(r"(?<![\w/])(?:cluster|studies)/[\w./-]+\.\w+", readme))
    assert len(named) >= 6
    missing = [name for name in named if not (ROOT / name).exists()]
    assert missing == []


def test_the_readmes_commands_are_shell_and_their_options_exist():
    commands = readme_commands()
    assert len(commands) > 20
    for command in commands:
        subprocess.run(["bash", "-n", "-c", command], check=True)
    studies = [
        shlex.split(command, comments=True)
        for command in commands
        if "perpeft doctor" in command or "ablation_peft.py" in command or "slurm.sh" in command
    ]
    assert len(studies) >= 5
    for words in studies:
        start = next(
            place
            for place, word in enumerate(words)
            if word == "doctor" or word.endswith(("ablation_peft.py", "slurm.sh"))
        )
        parse_study(words[start + 1 :])


def test_the_readmes_replacements_leave_no_placeholder():
    """`sed` as the README has it, on every file that it is for."""
    seen = set()
    for command in readme_commands():
        if not command.startswith("sed "):
            continue
        replace = re.split(r" [>|] ", command)[0]
        replaced = subprocess.run(
            ["bash", "-c", replace],
            cwd=ROOT,
            env={"PATH": "/usr/bin:/bin"}
            | {name: f"my-{name.lower()}.example" for name in PLACEHOLDERS.pattern.split("|")},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert PLACEHOLDERS.search(replaced) is None
        assert "my-registry.example/perpeft-ray" in replaced
        yaml.safe_load(replaced)
        seen.add(Path(shlex.split(replace)[-1]).name)
    assert seen == {"aws-cpu.yaml", "gcp-cpu.yaml", "rayjob-cpu.yaml", "raycluster-cpu.yaml"}
