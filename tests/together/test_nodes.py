"""Two nodes, simulated by network namespaces on this machine: they share its files, and no address."""

import json
import os
import signal
import subprocess
import time

import pytest
from support.places import children, environment

from launcher.config.file import load_config
from launcher.processes.launch import launch_command
from launcher.tracking.tracker import read_metrics

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
LIMIT_S = 400


def ip(*arguments):
    return subprocess.run(["ip", *arguments], capture_output=True, text=True, check=True)


@pytest.fixture
def nodes():
    """Two namespaces, joined by one cable: [(name, interface, address)]."""
    tag = os.getpid() % 10000
    names, cables = [f"wsss{tag}{end}" for end in "ab"], [f"cab{tag}{end}" for end in "ab"]
    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", cables[0], "type", "veth", "peer", "name", cables[1])
        for number, (name, cable) in enumerate(zip(names, cables, strict=True), start=1):
            ip("link", "set", cable, "netns", name)
            ip("-n", name, "addr", "add", f"10.77.0.{number}/24", "dev", cable)
            ip("-n", name, "link", "set", cable, "up")
            ip("-n", name, "link", "set", "lo", "up")
    except (OSError, subprocess.CalledProcessError) as error:
        remove(names)
        pytest.skip(f"network namespaces are not permitted here: {getattr(error, 'stderr', None) or error}")
    yield list(zip(names, cables, ("10.77.0.1", "10.77.0.2"), strict=True))
    remove(names)


def remove(names):
    for name in names:
        subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def start(nodes, yaml, overrides, folder):
    """`wsss train`'s command on both nodes; returns their launchers."""
    processes = []
    for rank, (name, cable, _) in enumerate(nodes):
        there = ["launch.machines=2", f"launch.machine_rank={rank}", f"launch.main_address={nodes[0][2]}"]
        there = [*overrides, *there, "launch.port=29700"]
        argv, extra = launch_command(load_config(yaml, there), "support.ranks", [str(yaml), *there])
        processes.append(
            subprocess.Popen(
                ["ip", "netns", "exec", name, *argv],
                cwd=folder,
                env=environment({**extra, "GLOO_SOCKET_IFNAME": cable, "OMP_NUM_THREADS": "1"}),
                stdout=(folder / f"node{rank}.log").open("a"),
                stderr=subprocess.STDOUT,
            )
        )
    return processes


def finish(processes, folder):
    codes = [process.wait(LIMIT_S) for process in processes]
    return codes, [(folder / f"node{rank}.log").read_text() for rank in range(2)]


def losses(name):
    return [line["train/loss"] for line in read_metrics(name) if "train/loss" in line]


@pytest.mark.parametrize("zero", [0, 2])
def test_two_nodes_train_as_one_machine(nodes, in_tmp, tiny_yaml, zero):
    yaml = tiny_yaml("distill")
    text = yaml.read_text().replace("{name: distill}", "{name: classify}").replace("teacher: runs/teacher\n", "")
    yaml.write_text(text)  # a ViT: BatchNorm would see other images on two nodes than on one
    few = ["data.val=null", "cam.kinds=[class_map]", "train.log_every=1", f"launch.zero={zero}"]
    codes, said = finish(start(nodes, yaml, [*few, "name=two"], in_tmp), in_tmp)
    assert codes == [0, 0], said
    ranks = [json.loads((in_tmp / f"rank{rank}.json").read_text()) for rank in range(2)]
    assert [rank["world_size"] for rank in ranks] == [2, 2] and ranks[0]["sha256"] == ranks[1]["sha256"]

    argv, extra = launch_command(load_config(yaml, [*few, "name=one"]), "support.ranks", [str(yaml), *few, "name=one"])
    subprocess.run(argv, cwd=in_tmp, env=environment(extra), check=True, timeout=LIMIT_S)
    assert losses(in_tmp / "runs/two") == pytest.approx(losses(in_tmp / "runs/one"), rel=1e-4)


def test_a_worker_killed_on_one_node_ends_both_in_bounded_time_and_the_next_start_goes_on(nodes, in_tmp, tiny_yaml):
    yaml = tiny_yaml("classify")
    many = ["data.val=null", "train.steps=400", "train.save_every=2", "train.log_every=100", "name=killed"]
    launchers = start(nodes, yaml, many, in_tmp)
    deadline = time.monotonic() + LIMIT_S
    while not list(in_tmp.glob("runs/killed/step_*/state.json")):
        assert all(process.poll() is None for process in launchers) and time.monotonic() < deadline
        time.sleep(0.1)
    (worker,) = children(launchers[1].pid)
    os.kill(worker, signal.SIGKILL)
    codes, said = finish(launchers, in_tmp)
    assert all(codes), said
    saved = max(int(path.name[5:]) for path in in_tmp.glob("runs/killed/step_*"))
    assert 0 < saved < 400

    codes, said = finish(start(nodes, yaml, many, in_tmp), in_tmp)
    assert codes == [0, 0], said
    assert "resuming from runs/killed/step_" in said[0] and (in_tmp / "runs/killed/step_0000400").exists()
