"""How many processes share a batch, and that every example that the project ships can start."""

import re
from pathlib import Path

import pytest
from support.methods import build
from support.toys import SMALL

from launcher.config.file import load_config
from launcher.errors import ConfigError
from launcher.training import preflight
from launcher.training.preflight import choose_processes

ROOT = Path(__file__).parents[3]
LINE = re.compile(r"(?:wsss train|-m launcher\.train|\.sbatch) (configs/\S+\.yaml)((?: +\S*[\w.]+=\S+)*)")
MSEE = "configs/voc/msee_vitb.yaml"


def gpus_of(text: str) -> int:
    """The GPUs that an example asks for, over all machines; one machine and one GPU where it does not say."""
    per_machine = re.search(r"gpus-per-node=(\d+)|nvidia.com/gpu: (\d+)|num_processes:? (\d+)", text)
    machines = re.search(r"--nodes=(\d+)|launch\.machines=(\d+)", text)
    found = [int(next(filter(None, match.groups()))) if match else 1 for match in (per_machine, machines)]
    return found[0] * found[1]


EXAMPLES = [
    *(path for path in (ROOT / "configs/slurm").glob("*") if path.name != "jobs.sbatch"),  # that trains nothing
    *(ROOT / "configs/kubernetes").glob("*"),
    *(ROOT / "configs/accelerate").glob("*"),
]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_every_example_uses_all_the_gpus_that_it_asks_for(path, monkeypatch):
    text = path.read_text().replace("\\\n", " ").replace("#    ", "")
    gpus = gpus_of(text)
    monkeypatch.setattr(preflight, "process_count", lambda config: gpus)
    lines = LINE.findall(re.sub(r" +", " ", text))
    assert lines, f"{path} shows no run"
    for name, _ in lines:
        config = load_config(ROOT / name)
        method = build(config.method.name, group_size=2, **{k: v for k, v in SMALL.items() if k != "group_size"})
        assert choose_processes(config, method) == gpus, f"{path.name}: {name}"


@pytest.mark.parametrize(
    ("gpus", "machines", "processes"), [(1, 1, 1), (2, 1, 2), (3, 1, 2), (8, 1, 4), (16, 2, 4), (6, 3, None)]
)
def test_as_many_gpus_train_as_the_batch_divides_into(gpus, machines, processes, monkeypatch):
    config = load_config(ROOT / MSEE, ["data.global_batch_size=8"])
    config = config.model_copy(update={"launch": config.launch.model_copy(update={"machines": machines})})
    monkeypatch.setattr(preflight, "process_count", lambda config: gpus)
    method = build("msee", **SMALL)  # groups of 2 images
    if processes is None:
        with pytest.raises(ConfigError, match="data.global_batch_size 8 does not divide into 6 processes"):
            choose_processes(config, method)
    else:
        assert choose_processes(config, method) == processes


def test_the_images_with_masks_are_divided_too(monkeypatch):
    monkeypatch.setattr(preflight, "process_count", lambda config: config.launch.processes or 4)
    method, path = build("mixed"), ROOT / "configs/smoke/mixed_vitb.yaml"
    assert choose_processes(load_config(path), method) == 2  # a batch of 8, and 2 images with masks
    with pytest.raises(ConfigError, match="data.pixel_batch_size 2 does not divide into 4 processes x 1 micro-batches"):
        choose_processes(load_config(path, ["launch.processes=4"]), method)


def test_a_number_that_was_asked_for_is_not_changed(monkeypatch):
    config = load_config(ROOT / MSEE, ["launch.processes=4"])
    with pytest.raises(ConfigError, match="4 images over 4 processes x 1 micro-batches: 1 images in this batch do not"):
        choose_processes(config, build("msee", **SMALL))
