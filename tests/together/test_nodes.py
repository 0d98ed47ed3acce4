"""Two nodes, simulated by network namespaces on this machine: they share its files, and no address. For a job at a
distance not even files: the second node sees an empty folder where the first one has its run.
"""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from support.bucket import KEYS
from support.places import children, environment

from launcher.config.file import load_config
from launcher.files import OUTPUTS
from launcher.jobs.dask_workers import VARIABLE
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


UPLOAD = """
import boto3, pathlib, sys
client = boto3.client("s3")
for bucket in ("images", "outputs"):
    client.create_bucket(Bucket=bucket)
for path in pathlib.Path(sys.argv[1]).iterdir():
    client.upload_file(str(path), "images", f"val/{path.name}")
"""
DOWNLOAD = """
import boto3, pathlib, sys
client = boto3.client("s3")
for item in client.list_objects_v2(Bucket="outputs", Prefix=sys.argv[1])["Contents"]:
    client.download_file("outputs", item["Key"], str(pathlib.Path(sys.argv[2], item["Key"].rpartition("/")[2])))
"""
# An empty folder in the place of the first node's; then the worker, in a folder of its own.
ELSEWHERE = 'mount -t tmpfs none "$1" && cd /tmp && shift && exec "$@"'


class Node:
    """Runs commands in a namespace."""

    def __init__(self, name, folder, variables):
        self.inside, self.folder = ["ip", "netns", "exec", name], folder
        self.environment = environment({**variables, "OMP_NUM_THREADS": "1"})

    def begin(self, log, *argv):
        out = (self.folder / f"{log}.log").open("w")
        argv = [*self.inside, *map(str, argv)]
        return subprocess.Popen(argv, cwd=self.folder, env=self.environment, stdout=out, stderr=subprocess.STDOUT)

    def do(self, *argv, **more):
        argv, env = [*self.inside, *map(str, argv)], {**self.environment, **more}
        done = subprocess.run(argv, cwd=self.folder, env=env, capture_output=True, text=True, timeout=LIMIT_S)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def await_line(self, log, text, process):
        deadline = time.monotonic() + LIMIT_S
        while text not in (said := (self.folder / f"{log}.log").read_text()):
            assert process.poll() is None and time.monotonic() < deadline, said
            time.sleep(0.1)


@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("distributed", "moto", "s3fs"))), reason="needs dask, moto and s3fs"
)
def test_a_job_over_two_nodes_that_share_no_folder(nodes, in_tmp, run, scenes, tmp_path_factory):
    (first, _, address), (second, *_) = nodes
    python, hidden = sys.executable, tmp_path_factory.getbasetemp()
    store, scheduler = f"http://{address}:9400", f"tcp://{address}:8786"
    variables = {**KEYS, "AWS_ENDPOINT_URL": store, "MLFLOW_TRACKING_URI": ""}
    here = Node(first, in_tmp, {**variables, "WSSS_CACHE": str(in_tmp / "cache"), OUTPUTS: "s3://outputs"})
    there = Node(second, in_tmp, {**variables, "WSSS_CACHE": str(hidden / "cache")})
    running = []
    try:
        running.append(here.begin("store", python, "-m", "moto.server", "-H", address, "-p", "9400"))
        here.await_line("store", "Running on", running[-1])
        running.append(here.begin("scheduler", python, "-m", "distributed.cli.dask_scheduler", "--host", address))
        here.await_line("scheduler", "Scheduler at", running[-1])
        worker = [python, "-m", "distributed.cli.dask_worker", scheduler, "--nthreads", "1", "--no-nanny"]
        running.append(there.begin("worker", "sh", "-c", ELSEWHERE, "sh", hidden, *worker))
        here.do(python, "-c", UPLOAD, scenes / "val")
        wsss = [python, "-m", "launcher"]
        here.do(*wsss, "infer", "runs/student", "data.val=s3://images/val", "--split", "val")
        refine = ["refine", "runs/student", "--split", "val", "refine.cams=[grad]", "refine.workers=1"]
        said = here.do(*wsss, *refine, **{VARIABLE: scheduler})
        assert "masks: s3://outputs/student/masks/grad+crf/val" in said
        made = in_tmp / "made"
        made.mkdir()
        here.do(python, "-c", DOWNLOAD, "student/masks/grad+crf/val/", made)
        assert running[-1].poll() is None
    finally:
        for process in reversed(running):
            process.kill()
            process.wait()
    assert not (in_tmp / "runs/student/masks").exists()
    asked = (in_tmp / "store.log").read_text().splitlines()
    sent = [line.split()[0] for line in asked if "PUT /outputs/student/masks" in line and ".tar" in line]
    assert sent == [nodes[1][2]] * 12  # by the second node, all of them
    subprocess.run([*wsss, *refine], cwd=in_tmp, env=environment({"MLFLOW_TRACKING_URI": ""}), check=True)
    alone = in_tmp / "runs/student/masks/grad+crf/val"
    names = sorted(path.name for path in alone.glob("*.tar"))
    assert len(names) == 12 and names == sorted(path.name for path in made.glob("*.tar"))
    assert all((made / name).read_bytes() == (alone / name).read_bytes() for name in names)
