import json
import pickle

import numpy as np
import pytest
from PIL import Image
from support.command import wsss
from support.videos import number_of, write_mp4

from shards.image_bytes import decode_image
from shards.index import Index
from shards.schema import DataError
from shards.sources.ijmond import rasterise, read_frames_with_polygons, read_ijmond, video_urls
from shards.write import write_split


def row(part, view, volunteers, researchers, camera=1):
    return {
        "camera_id": camera,
        "view_id": view,
        "url_part": part,
        "url_root": "https://example.org/videos/",
        "file_name": f"{part}-{view}",
        "label_state": volunteers,
        "label_state_admin": researchers,
    }


ROWS = [
    row("AAA_a-aaaaa", 0, 23, 47),  # gold positive
    row("AAA_a-aaaaa", 1, 16, -1),  # strong negative of the same panorama
    row("BBBbbbbbbbb", 0, 16, 23),  # volunteers and researchers disagree
    row("CCCcccccccc", 2, 20, 32, camera=0),  # weak of the volunteers, gold of the researchers
    row("DDDdddddddd", 0, 19, -1),  # weak positive
    row("EEEeeeeeeee", 0, 5, -1),  # maybe positive
    row("FFFffffffff", 0, 3, -1),  # discord
    row("GGGgggggggg", 0, -1, -1),  # no label
    row("HHHhhhhhhhh", 0, 23, -2),  # bad video
]


@pytest.fixture
def metadata(tmp_path):
    """ROWS; each video has five frames, the first in folders by camera and panorama, the others flat."""
    path = tmp_path / "metadata.json"
    path.write_text(json.dumps(ROWS))
    for number, fields in enumerate(ROWS):
        folder = tmp_path / "videos" / (f"kooksfabriek_1/{fields['url_part']}" if number == 0 else "")
        write_mp4(folder / f"{fields['file_name']}.mp4", 5)
    return path


def names(source):
    return {clip.name[:3] + clip.name[-2:]: clip.smoke for clip in source.clips}


def test_gold_and_strong_labels_are_taken_and_the_researchers_come_first(metadata, tmp_path):
    source = read_ijmond(metadata, tmp_path / "videos")
    assert names(source) == {"AAA-0": True, "AAA-1": False, "BBB-0": True, "CCC-2": False}
    assert source.left_out == {"weak": 1, "maybe": 1, "discord": 1, "no label": 1, "bad video": 1}


def test_strengths_labellers_and_signs_can_be_chosen(metadata, tmp_path):
    def chosen(**options):
        return names(read_ijmond(metadata, tmp_path / "videos", **options))

    assert chosen(states=["weak", "maybe"]) == {"DDD-0": True, "EEE-0": True}
    assert chosen(labelled_by="volunteers") == {"AAA-0": True, "AAA-1": False, "BBB-0": False}
    assert chosen(labelled_by="researchers") == {"AAA-0": True, "BBB-0": True, "CCC-2": False}
    assert chosen(smoke=False) == {"AAA-1": False, "CCC-2": False}
    (tmp_path / "some.txt").write_text("CCCcccccccc-2\nBBBbbbbbbbb-0\n")
    assert list(chosen(only=tmp_path / "some.txt")) == ["CCC-2", "BBB-0"]


@pytest.mark.parametrize(("frames", "numbers"), [(1, [0]), (2, [0, 2]), (3, [0, 1, 3]), (5, [0, 1, 2, 3, 4])])
def test_frames_are_evenly_spaced_and_carry_their_clips_label(metadata, tmp_path, frames, numbers):
    source = read_ijmond(metadata, tmp_path / "videos", frames=frames, states=["gold"], smoke=True)
    samples = [source[index] for index in range(len(source))]
    assert [number_of(decode_image(sample.image, "")) for sample in samples] == numbers
    assert [sample.key for sample in samples] == [f"AAA_a-aaaaa-0_f{number:05d}" for number in numbers]
    assert {(sample.image_label, sample.group, sample.mask) for sample in samples} == {((1,), "AAA_a-aaaaa", None)}


def test_more_frames_than_a_clip_has_are_refused(metadata, tmp_path):
    source = read_ijmond(metadata, tmp_path / "videos", frames=6)
    with pytest.raises(DataError, match="AAA_a-aaaaa-0.mp4: has 5 frames, 6 were asked for"):
        source[0]
    with pytest.raises(DataError, match="0 frames per clip"):
        read_ijmond(metadata, tmp_path / "videos", frames=0)


def test_views_of_one_panorama_never_reach_two_splits(metadata, tmp_path):
    (tmp_path / "train.txt").write_text("AAA_a-aaaaa-0\nCCCcccccccc-2\n")
    (tmp_path / "other.txt").write_text("AAA_a-aaaaa-1\nBBBbbbbbbbb-0\n")
    train, other = (read_ijmond(metadata, tmp_path / "videos", only=tmp_path / f"{n}.txt") for n in ("train", "other"))
    write_split(train, tmp_path / "out", "train", "label")
    with pytest.raises(DataError, match="shares 1 groups with split 'train' .*'AAA_a-aaaaa'"):
        write_split(other, tmp_path / "out", "val", "label")
    by_clip = read_ijmond(metadata, tmp_path / "videos", group_by="clip")
    by_camera = read_ijmond(metadata, tmp_path / "videos", group_by="camera")
    assert len(set(by_clip.groups())) == 4
    assert set(by_camera.groups()) == {"kooksfabriek_1", "hoogovens"}


def test_a_source_of_clips_goes_to_worker_processes(metadata, tmp_path):
    source = read_ijmond(metadata, tmp_path / "videos", frames=2)
    assert pickle.loads(pickle.dumps(source)).groups() == source.groups()


def test_missing_videos_are_refused_or_counted(metadata, tmp_path):
    (tmp_path / "videos/BBBbbbbbbbb-0.mp4").unlink()
    with pytest.raises(DataError, match="1 of 4 videos are missing, first 'BBBbbbbbbbb-0.mp4'"):
        read_ijmond(metadata, tmp_path / "videos")
    source = read_ijmond(metadata, tmp_path / "videos", skip_missing=True)
    assert len(source.clips) == 3 and source.left_out["file missing"] == 1


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{**ROWS[0], "label_state": 7}], "video 'AAA_a-aaaaa-0': label state 7 of the volunteers"),
        ([{**ROWS[0], "label_state_admin": None}], "video 'AAA_a-aaaaa-0': no 'label_state_admin'"),
        ([{**ROWS[0], "url_part": None}], "video 'AAA_a-aaaaa-0': no 'url_part'"),
        ([ROWS[0], ROWS[0]], "video 'AAA_a-aaaaa-0' is listed twice"),
        ([{"id": 3}], "row 0 is .*wanted an object with 'file_name'"),
        ({"3": ROWS[7]}, r"none of 1 videos is left \({'no label': 1}\)"),
    ],
)
def test_wrong_metadata_are_told_with_the_video(metadata, tmp_path, rows, message):
    metadata.write_text(json.dumps(rows))
    with pytest.raises(DataError, match=message):
        read_ijmond(metadata, tmp_path / "videos")


def test_urls_are_root_camera_part_and_name(metadata):
    assert video_urls(metadata)[3] == "https://example.org/videos/hoogovens/CCCcccccccc/CCCcccccccc-2.mp4"
    moved = video_urls(metadata, "https://mirror.org")
    assert moved[0] == "https://mirror.org/kooksfabriek_1/AAA_a-aaaaa/AAA_a-aaaaa-0.mp4"
    metadata.write_text(json.dumps([{**ROWS[0], "url_root": None}]))
    with pytest.raises(DataError, match="no 'url_root'; .*--url-root"):
        video_urls(metadata)
    metadata.write_text(json.dumps([{**ROWS[0], "camera_id": 3}]))
    with pytest.raises(DataError, match="camera_id is 3; wanted 0 to 2"):
        video_urls(metadata)


def test_a_polygon_covers_the_pixels_whose_centre_it_holds():
    square = rasterise([(1, 1, 4, 1, 4, 3, 1, 3)], 5, 6)
    assert square.dtype == np.uint8 and square.sum() == 6 and square[1:3, 1:4].all()
    assert rasterise([(1.6, 1.4, 4.6, 1.4, 4.6, 3.4, 1.6, 3.4)], 5, 6)[1:3, 2:5].sum() == 6  # centres 2.5 to 4.5
    triangle = rasterise([(0, 0, 4, 0, 0, 4)], 4, 4)
    assert triangle.tolist() == [[1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    assert rasterise([], 3, 3).sum() == 0


def test_polygons_unite_and_end_at_the_frame():
    two = rasterise([(0, 0, 3, 0, 3, 3, 0, 3), (2, 2, 4, 2, 4, 4, 2, 4)], 5, 5)
    assert two.sum() == 9 + 4 - 1
    assert rasterise([(-5, -5, 99, -5, 99, 99, -5, 99)], 5, 6).all()
    assert rasterise([(10, 0, 20, 0, 20, 3, 10, 3), (0, 9, 3, 9, 3, 12)], 5, 6).sum() == 0


def test_a_polygons_area_is_its_number_of_pixels_and_its_direction_does_not_matter():
    random = np.random.default_rng(1)
    for _ in range(20):
        angle_N = np.sort(random.uniform(0, 2 * np.pi, 9))
        points_N2 = 100 + random.uniform(30, 90, 9)[:, None] * np.stack([np.cos(angle_N), np.sin(angle_N)], 1)
        x_N, y_N = points_N2.T
        area = abs(np.dot(x_N, np.roll(y_N, -1)) - np.dot(y_N, np.roll(x_N, -1))) / 2
        mask_HW = rasterise([tuple(points_N2.ravel())], 200, 200)
        assert abs(mask_HW.sum() - area) < 60
        assert np.array_equal(mask_HW, rasterise([tuple(points_N2[::-1].ravel())], 200, 200))


@pytest.fixture
def coco(tmp_path):
    """Three 40 x 60 frames of two videos: two polygons, one, none."""
    names = ["AAA_a-aaaaa_0_frame1.png", "AAA_a-aaaaa_0_frame2.jpg", "kooks_1__2024_04_16T06_24_29Z_frame_3266.jpg"]
    (tmp_path / "frames").mkdir()
    for number, name in enumerate(names):
        image_HW3 = np.full((40, 60, 3), 50 * number, dtype=np.uint8)
        Image.fromarray(image_HW3).save(tmp_path / "frames" / name)

    def annotation(image, category, *box):
        x, y, right, bottom = box
        polygon = [x, y, right, y, right, bottom, x, bottom]
        return {"id": image * 10 + category, "image_id": image, "category_id": category, "segmentation": [polygon]}

    content = {
        "images": [{"id": n, "file_name": name, "height": 40, "width": 60} for n, name in enumerate(names)],
        "categories": [
            {"id": 1, "name": "high-opacity-smoke"},
            {"id": 2, "name": "Low-Opacity-Smoke"},
            {"id": 3, "name": "chimney"},
        ],
        "annotations": [
            annotation(0, 1, 0, 0, 10, 10),
            annotation(0, 2, 5, 0, 15, 10),
            annotation(1, 2, 30, 20, 60, 40),
        ],
    }
    path = tmp_path / "coco.json"
    path.write_text(json.dumps(content))
    return path, content


def test_both_opacities_become_smoke_and_the_rest_is_free_of_it(coco, tmp_path):
    source = read_frames_with_polygons(coco[0], tmp_path / "frames")
    assert source.groups() == ["AAA_a-aaaaa", "AAA_a-aaaaa", "kooks_1__2024_04_16T06_24_29Z"]
    samples = [source[n] for n in range(3)]
    assert [sample.mask.sum() for sample in samples] == [150, 600, 0]
    assert [sample.image_label for sample in samples] == [(1,), (1,), ()]
    assert samples[1].mask[20:, 30:].all()
    index = write_split(source, tmp_path / "out", "val", "pixel")
    assert index.class_counts() == {"smoke": 2}


def test_other_categories_are_left_out_and_counted_and_only_exact_names_mean_smoke(coco, tmp_path):
    path, content = coco
    content["categories"] += [{"id": 4, "name": "smokestack"}, {"id": 5, "name": "no smoke"}]
    for category, annotation in zip((3, 4, 5), content["annotations"], strict=True):
        annotation["category_id"] = category
    path.write_text(json.dumps(content))
    source = read_frames_with_polygons(path, tmp_path / "frames")
    assert source.left_out == {"chimney": 1, "smokestack": 1, "no smoke": 1}
    assert [source[n].image_label for n in range(3)] == [(), (), ()]
    chosen = read_frames_with_polygons(path, tmp_path / "frames", categories=["smokestack"])
    assert [chosen[n].image_label for n in range(3)] == [(1,), (), ()]
    content["categories"] = content["categories"][2:]
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match="no category is called smoke or .*'smokestack'.: say which means smoke"):
        read_frames_with_polygons(path, tmp_path / "frames")


@pytest.mark.parametrize("polygon", [[99, 99, 109, 99, 109, 109], [0.1, 0.2, 0.3, 0.2, 0.3, 0.4]])
def test_a_polygon_that_covers_no_pixel_is_refused_and_no_frame_becomes_free_of_smoke(coco, tmp_path, polygon):
    path, content = coco
    content["annotations"][2]["segmentation"] = [polygon]
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match="frame2.jpg: a polygon of annotation 12 covers no pixel of .40, 60."):
        read_frames_with_polygons(path, tmp_path / "frames")[1]


def test_the_group_of_a_frame_is_the_group_of_its_clips(coco, metadata, tmp_path):
    clips = read_ijmond(metadata, tmp_path / "videos")
    write_split(clips, tmp_path / "out", "train", "label")
    with pytest.raises(DataError, match="shares 1 groups with split 'train'"):
        write_split(read_frames_with_polygons(coco[0], tmp_path / "frames"), tmp_path / "out", "val", "pixel")


def change(name, number, **fields):
    def changed(content):
        content[name][number].update(fields)

    return changed


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (change("annotations", 0, image_id=9), "annotation 1: is of image 9, which 'images' does not list"),
        (change("annotations", 0, category_id=9), "annotation 1: its category is 9; listed: .*chimney"),
        (change("annotations", 0, segmentation={"counts": [1]}), "annotation 1: segmentation is .*not RLE"),
        (change("annotations", 0, segmentation=[[1, 2, 3, 4]]), r"annotation 1 of image 0: polygon \[1, 2, 3, 4\]"),
        (change("images", 0, id=1), "two of its images have one id: 1"),
        (change("images", 0, file_name="gone_frame1.png"), "1 of 3 images are missing, first 'gone_frame1.png'"),
        (lambda content: content["images"][0].pop("width"), r"images\[0\] lacks width"),
        (lambda content: content.pop("categories"), "no list 'categories'"),
    ],
)
def test_wrong_annotations_are_told_with_their_place(coco, tmp_path, changed, message):
    path, content = coco
    changed(content)
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=message):
        read_frames_with_polygons(path, tmp_path / "frames")


def test_a_name_without_a_video_needs_a_pattern(coco, tmp_path):
    with pytest.raises(DataError, match="does not match '%.*see --group-pattern"):
        read_frames_with_polygons(coco[0], tmp_path / "frames", group_pattern="%(.*)")
    with pytest.raises(DataError, match=r"has no category \['steam'\]"):
        read_frames_with_polygons(coco[0], tmp_path / "frames", categories=["steam"])


def test_a_frame_of_another_size_than_annotated_is_told(coco, tmp_path):
    Image.fromarray(np.zeros((40, 64, 3), dtype=np.uint8)).save(tmp_path / "frames/AAA_a-aaaaa_0_frame2.jpg")
    with pytest.raises(DataError, match=r"frame2.jpg: mask is \(40, 60\), image is \(40, 64\)"):
        read_frames_with_polygons(coco[0], tmp_path / "frames")[1]


def test_the_command_writes_clips_and_says_what_it_left_out(metadata, tmp_path):
    place = ["--metadata", metadata, "--videos", tmp_path / "videos", "--out", tmp_path / "out", "--split", "train"]
    said = wsss("shards", "ijmond", *place, "--frames", 2, "--state=gold", "--state=weak", "--workers", 1)
    assert "supervision 'label', 6 images (smoke in 4) of 3 groups" in said  # AAA-0, CCC-2, DDD-0
    assert "3 clips taken, left out: 2 strong, 1 maybe, 1 discord, 1 no label, 1 bad video" in said
    assert "https://example.org/videos/kooksfabriek_1/" in wsss(
        "shards", "video-urls", "--dataset", "ijmond", *place[:2]
    )


def test_the_command_writes_frames_whole_or_as_a_grid(coco, tmp_path):
    place = ["--annotations", coco[0], "--images", tmp_path / "frames", "--out", tmp_path / "out", "--workers", 1]
    assert "supervision 'pixel', 3 images (smoke in 2)" in wsss(
        "shards", "ijmond-frames", *place, "--split", "whole", "--crops", "none"
    )
    other = [*place[:-4], "--out", tmp_path / "grid", "--workers", 1]
    said = wsss("shards", "ijmond-frames", *other, "--split", "grid", "--crops", "grid", "--window", 20)
    # 2 x 3 windows of 20 in each frame; smoke fills (0:10, 0:15) of the first and (20:40, 30:60) of the second
    assert "supervision 'pixel', 18 images (smoke in 3) of 2 groups" in said


@pytest.mark.real_data
def test_frames_of_the_real_clip_become_a_label_only_split(real_data, tmp_path):
    path = tmp_path / "metadata.json"
    path.write_text(json.dumps([row("bu7USw70eXs", 3, 23, 23, camera=0)]))
    source = read_ijmond(path, real_data / "ijmond_extra", frames=3)
    write_split(source, tmp_path, "train", "label", num_shards=2)
    index = Index.load(tmp_path / "train")
    assert (index.supervision, index.num_samples, index.groups) == ("label", 3, {"bu7USw70eXs"})
    assert decode_image(source[2].image, "").shape == (600, 600, 3) and source[2].key == "bu7USw70eXs-3_f00024"
