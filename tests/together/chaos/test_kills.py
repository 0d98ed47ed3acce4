"""Runs that are killed at random and go on: bit for bit the run that nobody touched.

The short form is part of `make test`; `make chaos` runs the long one and prints what it counted.
"""

import os

import pytest
from support.arena import slaughter, write_msee_yaml

SETTINGS = ["train.steps=8", "train.log_every=1", "train.save_every=2", "train.eval_every=4", "evaluate.gallery=0"]
KILLS = int(os.environ.get("CHAOS_KILLS", "16"))  # midway, in each of the four long trials


@pytest.fixture
def yaml_of(tmp_path, finished_runs, tiny_yaml):
    """method -> its YAML, in a folder with the teacher that distill wants."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/teacher").symlink_to(finished_runs / "runs/teacher")

    def yaml(method):
        return (
            tiny_yaml("distill") if method == "distill" else write_msee_yaml(tmp_path / "m.yaml", tiny_yaml("classify"))
        )

    return yaml


def trial(yaml, folder, **options):
    count = slaughter(yaml, folder, overrides=SETTINGS, **options)
    print(f"chaos: {yaml.stem}, {options}: {count}")
    assert not count.failures, count
    assert count.midway == options["kills"] and count.compared > 0


@pytest.mark.slow  # test_two_processes.py and test_trainer.py kill runs in every suite
@pytest.mark.parametrize("method", ["distill", "msee"])
def test_a_run_killed_at_random_calls_ends_bit_equal(yaml_of, tmp_path, method):
    trial(yaml_of(method), tmp_path, processes=1, kills=2, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("method", ["distill", "msee"])
def test_chaos(yaml_of, tmp_path, method, processes):
    trial(yaml_of(method), tmp_path, processes=processes, kills=KILLS, seed=int(os.environ.get("CHAOS_SEED", "0")))
