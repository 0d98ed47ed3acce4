"""Small inputs as other people's tools leave them, each through its command: the right value, or a refusal by name."""

import resource
from pathlib import Path

import numpy as np
import pytest
import typer
from support.command import wsss

from launcher.commands.shards import register
from shards.folder import ShardFolder
from shards.schema import DataError

CASES = Path(__file__).parents[2] / "cases"
SMOKE = ("smoke", "--root", ".", "--labels", "t.csv")
COCO = ("coco14", "--annotations", "a.json", "--images", "img", "--all-images")
VOC = ("voc12", "--root", ".")
MASKS = "--masks"


def shards(case, out, monkeypatch, *arguments):
    """(label, {value: pixels of the mask}) of each sample that the command writes, and what it printed."""
    monkeypatch.chdir(CASES / case)
    said = wsss("shards", *arguments, "--out", out, "--split", "val", "--workers", 1)
    folder = ShardFolder(out / "val")
    found = {}
    for number, key in enumerate(folder.keys):
        values, counts = np.unique(folder.mask(number), return_counts=True) if MASKED in said else ([], [])
        mask = {int(value): int(count) for value, count in zip(values, counts, strict=True)}
        found[key] = (folder.about(number)["image_label"], mask)
    return found, said


MASKED = "supervision 'pixel'"


@pytest.mark.parametrize(
    ("case", "arguments", "wanted"),
    [
        (  # the mask is a.PNG
            "smoke_frame_without_mask",
            (*SMOKE, MASKS),
            {"images_a": ([1], {0: 768, 1: 256}), "images_b": ([], {0: 1024})},
        ),
        (
            "smoke5k_palette_inverted",
            ("smoke5k", "--root", ".", MASKS),
            {"a": ([1], {0: 768, 1: 256}), "b": ([], {0: 1024})},
        ),
        (
            "smoke5k_mask_0_1_255",
            ("smoke5k", "--root", ".", MASKS),
            {"a": ([1], {0: 736, 1: 256, 255: 32}), "b": ([], {0: 1024})},
        ),
        (
            "voc_mask_4_bit_person",
            VOC,
            {"2008_000001": ([15], {0: 768, 15: 256}), "2008_000002": ([15], {0: 768, 15: 256})},
        ),
        (
            "voc_palette_reordered",
            VOC,
            {"2008_000001": ([15], {0: 768, 15: 256}), "2008_000002": ([15], {0: 768, 15: 256})},
        ),
        (
            "voc_list_id_with_dot",
            VOC,
            {"frame_1_5": ([15], {0: 768, 15: 256}), "zz": ([15], {0: 768, 15: 256})},
        ),
        (
            "voc_list_with_bom",
            VOC,
            {"2008_000001": ([15], {0: 768, 15: 256}), "2008_000002": ([15], {0: 768, 15: 256})},
        ),
        (
            "category_smokestack_is_smoke",
            ("ijmond-frames", "--annotations", "a.json", "--images", "png", "--crops", "none"),
            {"v1_frame_1": ([1], {0: 3840, 1: 256}), "v2_frame_1": ([], {0: 4096})},
        ),
        (
            "tables_that_end_in_a_traceback",
            ("smoke", "--root", ".", "--labels", "bom.csv"),
            {"images_a": ([1], {}), "images_b": ([], {})},
        ),
    ],
)
def test_what_can_be_known_is_read(case, arguments, wanted, tmp_path, monkeypatch):
    assert shards(case, tmp_path, monkeypatch, *arguments)[0] == wanted


@pytest.mark.parametrize(
    ("case", "arguments", "message"),
    [
        ("mask_of_0_and_255", (*SMOKE, MASKS), r"'images_a': label says 1 .smoke., but the mask .*a.png.*0/255 mask\?"),
        ("rle_shorter_than_the_image", COCO, "image 1 .*a.jpg., annotation 1: its 2 counts sum to 150, .* 1024 pixels"),
        ("two_frames_one_mask", (*SMOKE, MASKS), "masks/0001.png may be the mask of 'cam1/0001' or of 'cam2/0001'"),
        ("coco_folder_of_file_name_dropped", COCO, "images are missing, first 'cam1/0001.jpg'"),
        ("blank_label_is_smoke_free", SMOKE, "row 'images/b.jpg': label is empty"),
        ("16_bit_frames_turn_white", SMOKE, "a.png: image has mode I;16; wanted 8 bits .*convert|magick"),
        ("alpha_dropped", SMOKE, "a.png: image has mode LA and 100% of its pixels are transparent"),
        ("key_with_two_files", SMOKE, "row 'a': .*may be images/a.jpg or images/a.png"),
        ("damaged_mask_not_named", (*SMOKE, MASKS), "masks/a.png: mask does not decode .*Truncated IHDR"),
        ("polygon_nan", COCO, "image 1 .*a.jpg., annotation 1: polygon has the coordinate x = nan"),
        ("polygon_huge", COCO, "image 1 .*a.jpg., annotation 1: polygon has the coordinate x = 210000000.0"),
    ],
)
def test_what_nobody_can_know_is_refused_with_its_place(case, arguments, message, tmp_path, monkeypatch):
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (9 << 30, limits[1]))  # two of them took all memory
    try:
        with pytest.raises(DataError, match=message):
            shards(case, tmp_path, monkeypatch, *arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    assert not (tmp_path / "val").exists()


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("extra_cell.csv", "extra_cell.csv: line 2: 3 cells .*the header has 2: .'image', 'label'."),
        ("latin1.csv", "latin1.csv: line 2: byte 0xf6 is not UTF-8; save the file again as UTF-8"),
        ("utf16.csv", "utf16.csv: is UTF-16 or not text; wanted UTF-8"),
        ("key_to_label.json", "key_to_label.json: row 'a': is 1; wanted an object with 'label' and 'group'"),
        ("items_list.json", r"items_list.json: its 'items' are .*; wanted an object \{key: row\}"),
        ("int_keys.json", "int_keys.json: row 0: its key is 1; wanted text"),
    ],
)
def test_a_table_that_is_none_is_refused_with_file_row_got_and_wanted(table, message, tmp_path, monkeypatch):
    with pytest.raises(DataError, match=message):
        shards("tables_that_end_in_a_traceback", tmp_path, monkeypatch, "smoke", "--root", ".", "--labels", table)


def test_an_image_that_is_not_upright_is_counted_and_turned_if_asked_for(tmp_path, monkeypatch):
    _, said = shards("exif_square_mask", tmp_path / "kept", monkeypatch, *SMOKE, MASKS)
    assert "1 of 2 images: EXIF orientation is not 1" in said and "first 'images_a' (6)" in said
    _, said = shards("exif_square_mask", tmp_path / "turned", monkeypatch, *SMOKE, MASKS, "--exif", "apply")
    assert "EXIF" not in said
    for place, wanted in (("kept", 0.09), ("turned", 1.0)):
        folder = ShardFolder(tmp_path / place / "val")
        number = folder.number_of_key["images_a"]
        bright_HW, mask_HW = folder.image(number).mean(2) > 180, folder.mask(number) == 1
        iou = (bright_HW & mask_HW).sum() / (bright_HW | mask_HW).sum()
        assert iou == pytest.approx(wanted, abs=0.05)


def test_what_an_error_advises_exists_for_every_source():
    app = typer.Typer()
    register(app)
    commands = typer.main.get_command(app).commands["shards"].commands
    writing = {name: command for name, command in commands.items() if name not in ("verify", "info", "video-urls")}
    assert len(writing) > 8
    for name, command in writing.items():
        assert "--may-lack-classes" in {option for one in command.params for option in one.opts}, name
