import re

import pytest
from support.places import ROOT

from launcher.commands.init import Start
from launcher.config.file import load_config
from launcher.config.project import STARTS, adapt, write_project
from launcher.errors import ConfigError


def test_the_command_offers_every_start():
    assert [start.value for start in Start] == list(STARTS)


@pytest.mark.parametrize("start", STARTS)
def test_a_start_is_what_ships_named_for_its_own_folder(in_tmp, start):
    written = write_project(in_tmp / "mine", start)
    assert sorted(path.name for path in written) == sorted(
        path.name for path in (ROOT / "configs" / STARTS[start]).iterdir()
    )
    for path in written:
        text = path.read_text()
        assert not re.search(rf"configs/|runs/{STARTS[start]}|data/{STARTS[start]}\b", text)
        if path.suffix == ".yaml":
            assert text.startswith("# ") and "# Run:" in text  # its comments come along
            config = load_config(path)
            assert config.name == path.stem and str(config.data.train) in (
                "data/train",
                "data/voc12/train",
                "data/coco14/train",
            )
        else:
            assert "wsss shards" in text and "wsss train " in text
            assert {f"{name}.yaml" for name in re.findall(r"wsss train (\w+)\.yaml", text)} <= {
                path.name for path in written
            }


def test_names_and_places_are_changed_and_nothing_else():
    text = "# Result: 2\n# name=voc/x configs/voc/x.yaml\nname: voc/x\ntrain: data/voc12/train\nteacher: runs/voc/t\n"
    assert adapt(text, "voc") == "# name=x x.yaml\nname: x\ntrain: data/voc12/train\nteacher: runs/t\n"
    assert adapt("--out data/demo --split", "demo") == "--out data --split"


def test_nothing_of_a_folder_is_replaced(in_tmp):
    (in_tmp / "teacher.yaml").write_text("mine")
    with pytest.raises(ConfigError, match=r"already holds teacher.yaml; choose another folder"):
        write_project(in_tmp, "demo")
    assert (in_tmp / "teacher.yaml").read_text() == "mine" and not (in_tmp / "data.md").exists()
    with pytest.raises(
        ConfigError, match="--from cats: there is no such start; choose one of demo, frames, classes, voc, coco"
    ):
        write_project(in_tmp / "new", "cats")
