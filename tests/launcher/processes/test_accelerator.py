import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.errors import ConfigError
from launcher.processes import accelerator as topology
from launcher.processes import launch
from launcher.processes.accelerator import make_accelerator
from launcher.processes.launch import launch_command
from launcher.processes.surroundings import find_ours


def config_of(tiny_config, *overrides):
    return tiny_config("classify", *overrides)


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)


def test_the_exact_launch_command_on_a_cpu(tiny_config, monkeypatch):
    monkeypatch.setattr(launch, "count_cores", lambda: 8)
    argv, environment = launch_command(
        config_of(tiny_config, "launch.processes=2"), "launcher.train", ["c.yaml", "a=1"]
    )
    assert argv[0] == sys.executable
    assert " ".join(argv[1:]) == (
        f"-m accelerate.commands.launch --quiet --config_file {launch.ACCELERATE} --num_machines 1 --num_processes 2 "
        "--main_process_port 0 --mixed_precision no --dynamo_backend no --multi_gpu -m launcher.train c.yaml a=1"
    )
    assert environment["ACCELERATE_USE_CPU"] == "true"  # without it: two trainings that never talk to each other
    assert environment["OMP_NUM_THREADS"] == "4"


def test_the_command_that_is_shown_can_be_pasted_into_a_shell(tiny_config, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3 # mine")
    config = config_of(tiny_config, "launch.processes=2")
    argv, environment = launch_command(config, "launcher.train", ["my config.yaml", "method={name: classify}"])
    line = launch.show_launch(config, "launcher.train", ["my config.yaml", "method={name: classify}"])
    words = shlex.split(line)
    assert words[0] == "env" and words[-len(argv) :] == argv
    assert dict(word.split("=", 1) for word in words[1 : -len(argv)]) == {**environment, "OMP_NUM_THREADS": "3 # mine"}
    seen = subprocess.run(
        line.replace(" ".join(argv[:3]), shlex.join([sys.executable, "-c", PRINT])), shell=True, capture_output=True
    )
    assert json.loads(seen.stdout) == ["3 # mine", "true", "my config.yaml", "method={name: classify}"]


PRINT = """
import json, os, sys
print(json.dumps([os.environ["OMP_NUM_THREADS"], os.environ["ACCELERATE_USE_CPU"], *sys.argv[-2:]]))
"""


def test_the_gpu_of_a_mac_is_not_used(tiny_config, monkeypatch):
    """Accelerate would take it for itself."""
    monkeypatch.setattr("accelerate.state.is_mps_available", lambda: True)
    assert make_accelerator(config_of(tiny_config), processes=1).device.type == "cpu"
    with pytest.raises(ConfigError, match="launch.device.*mps"):
        config_of(tiny_config, "launch.device=mps")


def test_one_process_is_the_default_without_a_gpu(tiny_config):
    argv, _ = launch_command(config_of(tiny_config), "launcher.train", [])
    assert argv[argv.index("--num_processes") + 1] == "1" and "--multi_gpu" not in argv


def test_all_gpus_are_the_default_where_there_are_some(tiny_config, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    argv, environment = launch_command(config_of(tiny_config, "train.precision=bf16"), "launcher.train", [])
    assert argv[argv.index("--num_processes") + 1] == "4" and "--multi_gpu" in argv
    assert argv[argv.index("--mixed_precision") + 1] == "no"
    assert environment == find_ours()


@pytest.fixture
def started(monkeypatch):
    """The environment of the launcher that was started last; it ends with code 5."""
    last = {}
    monkeypatch.setattr(launch, "run_and_forward", lambda argv, env: last.update(env) or 5)
    return last


def test_the_users_environment_cannot_turn_off_what_makes_processes_find_each_other(tiny_config, monkeypatch, started):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "false")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert launch.launch(config_of(tiny_config, "launch.processes=2"), "launcher.train", []) == 5
    assert started["ACCELERATE_USE_CPU"] == "true" and started["OMP_NUM_THREADS"] == "7"


def test_work_is_done_here_or_launched_with_its_arguments_as_one_json(tiny_config, monkeypatch, capsys):
    done, argvs = [], []
    monkeypatch.setattr(launch, "run_and_forward", lambda argv, env: argvs.append(argv) or len(argvs) - 1)
    arguments = {"run": Path("runs/a b"), "name": None, "overrides": ["cam.scales=[0.5, 1]"]}

    def start(*overrides):
        config = config_of(tiny_config, *overrides)
        launch.run_or_launch(config, "launcher.training.replay", lambda **given: done.append(given), arguments)

    start()
    assert done == [arguments] and not argvs
    start("launch.processes=2")
    assert len(done) == 1 and argvs[0][-3:-1] == ["-m", "launcher.training.replay"]
    assert launch.read_arguments(["infer.py", argvs[0][-1]]) == arguments
    with pytest.raises(SystemExit) as ended:
        start("launch.processes=2")
    assert ended.value.code == 1


@pytest.mark.parametrize("argv", [[], ["runs/x", "val"], ["{}"], ['["run"]'], ['{"run": 3}'], ["no json"]])
def test_other_arguments_than_one_json_object_are_refused(argv):
    with pytest.raises(ConfigError, match="wanted one JSON object of arguments with a 'run'"):
        launch.read_arguments(["infer.py", *argv])


def test_zero_is_started_so_that_accelerate_does_not_run_ddp_instead(tiny_config, monkeypatch, started):
    pytest.importorskip("deepspeed")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    config = config_of(tiny_config, "launch.processes=2", "launch.zero=2")
    launch.launch(config, "launcher.train", [])
    assert started["ACCELERATE_USE_CPU"] == "false" and started["DS_ACCELERATOR"] == "cpu"
    argv = " ".join(launch_command(config, "launcher.train", [])[0])
    assert "--use_deepspeed --zero_stage 2 --deepspeed_multinode_launcher standard" in argv
    assert "--multi_gpu" not in argv


def test_each_machine_gets_its_number_and_the_address_of_the_first(tiny_config):
    places = ["launch.machines=2", "launch.machine_rank=1", "launch.main_address=10.0.0.1", "launch.port=29500"]
    argv = " ".join(launch_command(config_of(tiny_config, *places), "launcher.train", [])[0])
    assert "--num_machines 2 --num_processes 2 --main_process_port 29500" in argv  # one CPU process on each
    assert "--machine_rank 1 --main_process_ip 10.0.0.1" in argv and "--multi_gpu" in argv


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["launch.machines=2"], "several machines need main_address and a port"),
        (["launch.machine_rank=1"], "machine_rank is 1 of 1 machines"),
        (
            ["launch.machines=2", "launch.main_address=a", "launch.port=1", "launch.processes=3"],
            "processes is 3, which counts those of all machines; wanted a multiple of 2",
        ),
        (["launch.zero=4"], "launch.zero"),
    ],
)
def test_machines_that_cannot_be_are_told(tiny_config, overrides, message):
    with pytest.raises(ConfigError, match=message):
        config_of(tiny_config, *overrides)


def test_deepspeed_that_became_something_else_is_refused(tiny_config, monkeypatch):
    pytest.importorskip("deepspeed")
    with pytest.raises(ConfigError, match="launch.zero needs processes that a launcher started"):
        make_accelerator(config_of(tiny_config, "launch.zero=2"), processes=1)
    monkeypatch.setattr(topology, "zero_accelerator", lambda settings, backend: Alone())
    with pytest.raises(ConfigError, match="launch.zero is 2, but Accelerate runs NO"):
        make_accelerator(config_of(tiny_config, "launch.zero=2"), processes=1)


class Alone:
    num_processes = 1
    distributed_type = "NO"


def test_another_number_of_processes_than_configured_is_refused(tiny_config):
    with pytest.raises(ConfigError, match="launch.processes is 2, but the launcher started 1 and Accelerate joined 1"):
        make_accelerator(config_of(tiny_config, "launch.processes=2"), processes=2)


def test_a_gpu_that_is_not_there_is_told(tiny_config):
    with pytest.raises(ConfigError, match="launch.device is cuda, but torch sees no GPU"):
        launch_command(config_of(tiny_config, "launch.device=cuda"), "launcher.train", [])
