"""Every make-up of a row of M-SEE's tables, and every config of ToCo, M-SEE and `frozen`, at toy size: a step, masks,
figures."""

from pathlib import Path

import pytest
from support.places import ROOT
from support.squares import Squares
from support.study_walk import rows_that_run, shapes_of, split_rows
from support.toys import TOY, TOY_FROZEN

from launcher.config.file import load_config
from launcher.studies.figures import tabulate_study
from launcher.studies.page import write_study_report
from launcher.studies.run import run_study
from launcher.studies.table import load_study
from launcher.training.run import train
from shards.write import write_split

NAMES = (*sorted(path.stem for path in (ROOT / "configs/studies").glob("msee_*.yaml")), "voc_mini")
CONFIGS = sorted(path for place in ("voc", "coco", "voc_mini") for path in (ROOT / "configs" / place).glob("*.yaml"))


def at_toy_size(path: Path, overrides=()):
    config = load_config(path, overrides)
    toys = {"toco": TOY, "msee": [*TOY, "method.msee_from=0"], "frozen": TOY_FROZEN}
    return load_config(path, [*overrides, *toys[config.method.name]])


@pytest.fixture(scope="module")
def place(tmp_path_factory, mlflow_store):
    here = tmp_path_factory.mktemp("msee")
    for split, images, masks in (("train", 16, False), ("val", 8, True)):
        write_split(Squares(split, images, masks), here / "pets", split, "pixel" if masks else "label", num_shards=2)
    (here / "configs").symlink_to(ROOT / "configs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        patch.setenv("MLFLOW_TRACKING_URI", mlflow_store)
        yield here


def test_there_is_a_study_for_every_table():
    assert (*(f"msee_table_{n}" for n in range(1, 8)), "voc_mini") == NAMES


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", NAMES)
def test_every_row_that_adds_something_trains_segments_and_gives_its_figure(name, place):
    from launcher.__main__ import app

    def execute(command):
        kind, *arguments = command
        if kind == "train":
            train(at_toy_size(Path(arguments[0]), arguments[1:]))
        else:
            app(command, standalone_mode=False)

    study, names = load_study(name), rows_that_run(name, NAMES)
    if not names:  # each of its rows differs from one of another table in numbers alone
        return
    run_study(study, rows=names, seeds=[0], execute=execute)
    for row in tabulate_study(study):
        if row["name"] not in names:
            continue
        assert row["seeds"] == [0], row["name"]
        assert row["fixed"]["mean"] is not None and 0 <= row["fixed"]["mean"] <= 1, row["name"]
        assert row["fixed"]["interval"] is not None and row["protocols"], row["name"]
    assert write_study_report(name, study).is_file()


def test_every_other_row_has_the_commands_of_one_that_ran_but_for_their_values():
    _, others = split_rows(NAMES)
    assert len(others) > 20
    for row, ran in others.items():
        assert shapes_of(*row) == shapes_of(*ran), f"{row} is taken for {ran}"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_config_takes_a_step_with_all_its_losses(path, place):
    config = at_toy_size(path, ["evaluate.gallery=0", "data.val=null"])
    assert config.method.name == path.stem.split("_")[0]
    method = train(config).train()
    if config.method.name == "frozen":
        assert method.phase(0) == (True, True)
    else:
        assert all(term.start == 0 for term in method.schedule.terms.values())


def test_a_class_that_the_batch_group_cannot_hold_is_told(place):
    config = at_toy_size(ROOT / "configs/voc/toco_vitb.yaml", ["name=odd", "data.global_batch_size=3"])
    config = config.model_copy(update={"data": config.data.model_copy(update={"global_batch_size": 3})})
    with pytest.raises(ValueError, match="groups of 2"):
        train(config)
