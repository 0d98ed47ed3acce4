"""Masks of grey levels that are no class ids."""

import io

import numpy as np
import pytest
from PIL import Image
from support.command import wsss

from shards.folder import ShardFolder
from shards.schema import SMOKE, ClassSet, DataError
from shards.sources.mask_values import parse_mask_values, read_mask

PETS = ClassSet(name="pets", classes=("cat", "dog"))


def png(values, mode="L"):
    file = io.BytesIO()
    Image.fromarray(np.array(values, dtype=np.uint8)).convert(mode).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_levels_are_classes_by_their_names(mode):
    values = parse_mask_values("0=background, 100=dog,200=cat,255=ignore", PETS)
    assert values == {0: 0, 100: 2, 200: 1, 255: 255}
    assert read_mask(png([[0, 100], [200, 255]], mode), "m.png", values).tolist() == [[0, 2], [1, 255]]
    rest = parse_mask_values("12=dog,other=background,255=ignore", PETS)
    assert read_mask(png([[0, 12], [200, 255]], mode), "m.png", rest).tolist() == [[0, 2], [0, 255]]
    assert read_mask(png([[0, 1], [2, 255]]), "m.png", parse_mask_values(None, PETS)).tolist() == [[0, 1], [2, 255]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0=background,255", "'255' is not LEVEL=NAME, such as 0=background,255=cat"),
        ("256=cat", "'256=cat' is not LEVEL=NAME"),
        ("0=background,255=cats", "'cats' is not a class; wanted one of background, ignore, cat, dog"),
        ("0=background,255=cat,255=dog", "level 255 occurs twice"),
        ("other=background,other=dog", "level other occurs twice"),
    ],
)
def test_a_wrong_option_is_told(text, message):
    with pytest.raises(DataError, match=f"--mask-values {text}: {message}"):
        parse_mask_values(text, PETS)


def test_a_level_that_nobody_named_is_told():
    with pytest.raises(DataError, match=r"m.png: holds the grey levels \[7, 128\], which --mask-values lacks"):
        read_mask(png([[0, 7], [128, 255]]), "m.png", parse_mask_values("0=background,255=smoke", SMOKE))


@pytest.mark.parametrize("command", [["smoke", "--masks"], ["images", "--label-column", "label", "--masks"]])
def test_both_sources_of_tables_take_0_and_255_where_it_is_said_and_name_the_option_where_not(tmp_path, command):
    word = "smoke" if command[0] == "images" else "1"
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    Image.new("RGB", (8, 6)).save(tmp_path / "images/a.jpg")
    (tmp_path / "masks/a.png").write_bytes(png([[255] * 8] * 2 + [[0] * 8] * 4))
    (tmp_path / "t.csv").write_text(f"image,label,group\nimages/a.jpg,{word},v\n")
    if command[0] == "images":
        command = [*command, "--image-folder", "images"]
    places = ["--root", tmp_path, "--labels", "t.csv", "--out", tmp_path / "out", "--split", "val", "--workers", 1]
    refusal = "a 0/255 mask? Class ids are wanted, 255 is ignored: see --mask-values 0=background,255=smoke"
    wsss("shards", *command, *places, fails=refusal)
    wsss("shards", *command, *places, "--mask-values", "0=background,255=smoke")
    assert ShardFolder(tmp_path / "out/val").mask(0).tolist() == [[1] * 8] * 2 + [[0] * 8] * 4
