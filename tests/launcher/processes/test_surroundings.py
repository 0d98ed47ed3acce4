"""What lies around a command changes nothing that its config does not say."""

import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support.places import ROOT, environment

from launcher.errors import ConfigError
from launcher.processes import launch, surroundings
from launcher.processes.accelerator import make_accelerator
from launcher.processes.launch import ACCELERATE, launch_command
from launcher.processes.surroundings import (
    count_cores,
    cpu_quota,
    find_ours,
    free_memory,
    memory_left,
    require_ours,
    shadows,
    user_name,
    without_accelerate,
)
from launcher.studies import run as studies
from launcher.training.run import train
from shards.cache import Cache
from shards.schema import DataError


def test_cores_are_those_that_the_scheduler_gave(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(surroundings, "cpu_quota", lambda *_: math.inf)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 4, 5}, raising=False)
    assert count_cores() == 3
    monkeypatch.setattr(surroundings, "cpu_quota", lambda *_: 1.5)
    assert count_cores() == 2
    monkeypatch.setattr(surroundings, "cpu_quota", lambda *_: 0.01)
    assert count_cores() == 1
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(surroundings, "cpu_quota", lambda *_: math.inf)
    assert count_cores() == 64


def write_groups(folder, membership, files):
    """What the kernel says of the control groups of a process: `self`, and `fs` for /sys/fs/cgroup."""
    (folder / "self").write_text(membership)
    for name, content in files.items():
        path = folder / "fs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


@pytest.mark.parametrize(
    ("membership", "files", "quota"),
    [
        ("0::/job/step\n", {"job/step/cpu.max": "max 100000\n", "job/cpu.max": "250000 100000\n"}, 2.5),
        ("0::/job\n", {"job/cpu.max": "300000 100000\n", "cpu.max": "150000 100000\n"}, 1.5),
        ("0::/\n", {"cpu.max": "max 100000\n"}, math.inf),
        ("0::/gone\n", {}, math.inf),
        ("", {}, math.inf),
        (
            "5:cpu,cpuacct:/slurm\n4:memory:/slurm\n",
            {"cpu,cpuacct/slurm/cpu.cfs_quota_us": "400000\n", "cpu,cpuacct/slurm/cpu.cfs_period_us": "100000\n"},
            4.0,
        ),
        ("5:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, math.inf),
    ],
)
def test_the_quota_of_a_control_group_is_the_lowest_above_it(tmp_path, membership, files, quota):
    write_groups(tmp_path, membership, files)
    assert cpu_quota(tmp_path / "self", tmp_path / "fs") == quota


def test_a_command_of_two_processes_shares_out_the_cores_it_has(tiny_config, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(launch, "count_cores", lambda: 6)
    _, given = launch_command(tiny_config("classify", "launch.processes=2"), "launcher.train", [])
    assert given["OMP_NUM_THREADS"] == "3"


def test_gradients_are_not_divided_by_accelerates_variable(tiny_config, monkeypatch):
    for value in ("16", "auto"):
        monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", value)
        accelerator = make_accelerator(tiny_config("classify"), processes=None)
        assert accelerator.gradient_accumulation_steps == 1
        weight = torch.ones(1, requires_grad=True)
        accelerator.backward(3 * weight.sum())
        assert weight.grad.item() == 3


def test_accelerates_variables_are_left_out_but_for_ours(tiny_config, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    started = {}
    monkeypatch.setattr(launch, "run_and_forward", lambda argv, env: started.update(env) or 0)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "false")
    monkeypatch.setenv("MINE", "1")
    launch.launch(tiny_config("classify", "launch.processes=2"), "launcher.train", [])
    found = {name: value for name, value in started.items() if name.startswith("ACCELERATE_")}
    assert found == {"ACCELERATE_USE_CPU": "true"} and started["MINE"] == "1"
    assert without_accelerate({"ACCELERATE_X": "1", "HF_HOME": "2"}) == {"HF_HOME": "2"}


FOREIGN = """
{compute_environment: LOCAL_MACHINE, distributed_type: %s, num_machines: 1, num_processes: 2, gpu_ids: "2,3", other: 3}
"""


@pytest.mark.parametrize("kind", ["FSDP", "MULTI_GPU"])
def test_the_users_default_config_of_accelerate_is_not_read(tmp_path, tiny_config, monkeypatch, kind):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    (tmp_path / "hf/accelerate").mkdir(parents=True)
    (tmp_path / "hf/accelerate/default_config.yaml").write_text(FOREIGN % kind)
    (tmp_path / "shown.py").write_text("import os\nprint('GPUs', os.environ.get('CUDA_VISIBLE_DEVICES'))\n")
    argv, given = launch_command(tiny_config("classify"), "shown", [])
    theirs = {"HF_HOME": str(tmp_path / "hf"), "CUDA_VISIBLE_DEVICES": "0"}
    path = os.pathsep.join([given["PYTHONPATH"], str(tmp_path)])
    done = subprocess.run(
        argv, env={**environment(given), **theirs, "PYTHONPATH": path}, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0 and "GPUs 0" in done.stdout, done.stderr


def test_every_key_of_our_config_is_known_to_this_accelerate():
    from accelerate.commands.config import load_config_from_file

    config = load_config_from_file(str(ACCELERATE))
    assert (str(config.distributed_type.value), config.use_cpu, config.num_processes) == ("NO", False, 1)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 has no safe path; see the next test")
def test_files_of_the_working_folder_or_the_users_path_are_not_run_instead_of_ours(tmp_path, tiny_config, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    ours = ["launcher.py", "launcher/__init__.py", "shards.py"]
    # of other packages that of the user's path: it is their own wish that it comes first
    for path in [
        *(tmp_path / name for name in [*ours, "accelerate.py"]),
        *(tmp_path / "theirs" / name for name in ours),
    ]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("raise SystemExit('this is mine')")
    argv, _ = launch_command(tiny_config("classify"), "launcher.train", ["gone.yaml"])
    monkeypatch.setenv("PYTHONPATH", "theirs")
    given = {**os.environ, **launch_command(tiny_config("classify"), "launcher.train", [])[1]}
    done = subprocess.run(argv, env=given, cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert "gone.yaml: config file is missing" in done.stderr and "mine" not in done.stderr + done.stdout
    monkeypatch.chdir(tmp_path)
    with pytest.raises(studies.RunError, match="ended with code 2"):
        studies.execute_here(["train", "gone.yaml"])


def test_python_3_10_refuses_what_it_would_run_instead_of_ours(tmp_path, monkeypatch):
    class Old(tuple):
        major, minor = 3, 10

    monkeypatch.setattr(sys, "version_info", Old((3, 10, 1)))
    monkeypatch.chdir(ROOT)
    find_ours()
    monkeypatch.chdir(tmp_path)
    find_ours()
    (tmp_path / "shards.py").touch()
    assert shadows(tmp_path) == [tmp_path / "shards.py"]
    with pytest.raises(ConfigError, match=r"shards\.py: Python 3\.10 would run it instead"):
        find_ours()


def test_our_packages_come_before_the_users_own_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where Python 3.10 finds nothing that has a name of ours
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["/theirs", str(ROOT), ""]))
    assert find_ours() == {"PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), "/theirs"])}
    monkeypatch.setattr(surroundings, "ROOT", Path("/x/lib/site-packages"))
    assert find_ours() == {"PYTHONSAFEPATH": "1"}


def test_a_user_without_a_name_is_a_number(monkeypatch):
    def nobody():
        raise KeyError("getpwuid(): uid not found: 12345")

    monkeypatch.setattr("getpass.getuser", nobody)
    assert user_name() == str(os.getuid())


def test_without_a_home_the_caches_folder_is_asked_for(monkeypatch):
    def homeless(_):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("WSSS_CACHE", raising=False)
    monkeypatch.setattr(Path, "expanduser", homeless)
    with pytest.raises(DataError, match=r"no place for .* \(Could not determine .*; name a folder with WSSS_CACHE"):
        Cache.from_environment()


def test_mlflow_is_imported_where_a_user_has_no_home(tmp_path):
    code = (
        "import os, pathlib\n"
        "def nobody(name): raise KeyError(name)\n"
        "import pwd; pwd.getpwuid = nobody\n"
        "from launcher.tracking.mlflow_store import load_mlflow\n"
        "load_mlflow()\n"
        "assert 'HOME' not in os.environ\n"
    )
    homeless = {name: value for name, value in environment({}).items() if name not in ("HOME", "MLFLOW_TRACKING_URI")}
    done = subprocess.run([sys.executable, "-c", code], env=homeless, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_sink_that_cannot_be_imported_ends_no_run(in_tmp, tiny_config, monkeypatch, capsys):
    def broken():
        raise RuntimeError("Could not determine home directory.")

    for place in ("mlflow_sink", "mlflow_store"):  # in the main thread, and where it is sent
        monkeypatch.setattr(f"launcher.tracking.{place}.load_mlflow", broken)
    monkeypatch.setattr("launcher.tracking.tracker.CLOSE_S", 1.0)
    train(tiny_config("classify", "train.steps=2"))
    assert "MLflow does not accept the metrics of runs/teacher (RuntimeError: Could not" in capsys.readouterr().err


def test_a_foreign_package_of_one_of_our_names_is_told_with_its_place(tmp_path, monkeypatch):
    require_ours()
    foreign = tmp_path / "shards/__init__.py"
    foreign.parent.mkdir()
    foreign.touch()
    found, stray = surroundings.find_spec, SimpleNamespace(origin=str(foreign))
    monkeypatch.setattr(surroundings, "find_spec", lambda name: stray if name == "shards" else found(name))
    with pytest.raises(ConfigError, match=f"{foreign}: another package called 'shards' .* environment of its own"):
        require_ours()


@pytest.mark.parametrize(
    ("membership", "files", "left"),
    [
        (
            "0::/job/step\n",
            {"job/step/memory.max": "max\n", "job/memory.max": "900\n", "job/memory.current": "700\n"},
            200,
        ),
        (
            "0::/job\n",
            {"job/memory.max": "900", "job/memory.current": "700", "job/memory.stat": "anon 5\ninactive_file 100\n"},
            300,
        ),
        (
            "4:memory:/slurm\n3:cpu:/\n",
            {"memory/slurm/memory.limit_in_bytes": "900\n", "memory/slurm/memory.usage_in_bytes": "100\n"},
            800,
        ),
        ("0::/\n", {"memory.current": "5\n"}, math.inf),
    ],
)
def test_the_memory_that_control_groups_leave_is_the_lowest_above(tmp_path, membership, files, left):
    write_groups(tmp_path, membership, files)
    assert memory_left(tmp_path / "self", tmp_path / "fs") == left
    assert 0 < free_memory() < math.inf
