import json

import pytest
from support.command import wsss
from support.videos import number_of, write_mp4

from shards.image_bytes import decode_image
from shards.schema import DataError
from shards.sources.rise import read_rise, video_urls
from shards.write import write_split


def row(camera, view, day, start, volunteers, researchers=-1):
    name = f"{camera}-{view}-{day}-3544-899-4026-1381-180-180-7424-{start}-{start + 175}"
    return {
        "camera_id": camera,
        "view_id": view,
        "file_name": name,
        "url_part": f"{day}/{camera}-{view}",
        "url_root": "https://example.org/videos/180/",
        "label_state": volunteers,
        "label_state_admin": researchers,
    }


ROWS = [
    row(0, 7, "2019-02-03", 1000, 23),
    row(0, 7, "2019-02-03", 2000, 16),  # the same view an hour later
    row(0, 1, "2019-02-03", 3000, 32),  # another view of the same panorama
    row(1, 0, "2019-02-03", 4000, 16, 23),
    row(0, 7, "2019-02-04", 5000, 47),
]


@pytest.fixture
def metadata(tmp_path):
    path = tmp_path / "metadata.json"
    path.write_text(json.dumps(ROWS))
    for fields in ROWS:
        write_mp4(tmp_path / "videos" / f"{fields['file_name']}.mp4", 7)
    return path


def test_the_paper_takes_the_first_and_the_middle_frame_of_the_volunteers_strong_negatives(metadata, tmp_path):
    source = read_rise(metadata, tmp_path / "videos", labelled_by="volunteers", smoke=False)
    assert [clip.name for clip in source.clips] == [ROWS[n]["file_name"] for n in (1, 2, 3)]
    samples = [source[index] for index in range(6)]
    assert [number_of(decode_image(sample.image, "")) for sample in samples] == [0, 3] * 3
    assert {(sample.image_label, sample.mask, sample.source) for sample in samples} == {((), None, "rise")}


def test_negatives_alone_make_no_label_only_split(metadata, tmp_path):
    source = read_rise(metadata, tmp_path / "videos", smoke=False)
    with pytest.raises(DataError, match="no image is labelled smoke among 4"):
        write_split(source, tmp_path / "out", "train", "label")


def test_all_strong_clips_make_a_split_and_researchers_come_first(metadata, tmp_path):
    source = read_rise(metadata, tmp_path / "videos")
    assert [clip.smoke for clip in source.clips] == [True, False, False, True, True]
    assert write_split(source, tmp_path / "out", "train", "label").class_counts() == {"smoke": 6}


def test_a_camera_on_a_day_is_one_scene(metadata, tmp_path):
    def groups(how):
        return read_rise(metadata, tmp_path / "videos", group_by=how, frames=1).groups()

    assert groups("scene") == ["camera0_2019-02-03"] * 3 + ["camera1_2019-02-03", "camera0_2019-02-04"]
    assert groups("camera") == ["camera0"] * 3 + ["camera1", "camera0"]
    assert groups("clip") == [fields["file_name"] for fields in ROWS]


def test_the_groups_known_beforehand_are_those_of_the_samples(metadata, tmp_path):
    source = read_rise(metadata, tmp_path / "videos", group_by="clip", frames=3)
    assert [source[index].group for index in range(len(source))] == source.groups()


def test_a_day_on_both_sides_is_refused(metadata, tmp_path):
    for name, numbers in (("train", (0, 4)), ("val", (1, 3))):
        (tmp_path / f"{name}.txt").write_text("\n".join(ROWS[n]["file_name"] for n in numbers))
    train, val = (read_rise(metadata, tmp_path / "videos", only=tmp_path / f"{n}.txt") for n in ("train", "val"))
    write_split(train, tmp_path / "out", "train", "label")
    with pytest.raises(DataError, match="shares 1 groups with split 'train' .*'camera0_2019-02-03'"):
        write_split(val, tmp_path / "out", "val", "label")


def test_a_name_without_a_day_and_a_name_not_listed_are_told(metadata, tmp_path):
    write_mp4(tmp_path / "videos/plain.mp4", 3)
    metadata.write_text(json.dumps([{**ROWS[0], "file_name": "plain"}]))
    with pytest.raises(
        DataError, match="video 'plain': the name does not say the day; wanted CAMERA-VIEW-YYYY-MM-DD.*--group-by clip"
    ):
        read_rise(metadata, tmp_path / "videos")
    (tmp_path / "some.txt").write_text("other\n")
    with pytest.raises(DataError, match="1 names are not in the metadata, first 'other'; its first is 'plain'"):
        read_rise(metadata, tmp_path / "videos", only=tmp_path / "some.txt")


def test_a_list_may_name_the_files_of_the_clips(metadata, tmp_path):
    name = ROWS[0]["file_name"]
    (tmp_path / "some.txt").write_text(f"{name}.mp4\n")
    named, all_rows = (read_rise(metadata, tmp_path / "videos", only=only) for only in (tmp_path / "some.txt", None))
    assert 0 < len(named) < len(all_rows)
    (tmp_path / "some.txt").write_text(f"{name}.MP4\n{name}\n")
    with pytest.raises(DataError, match=f"'{name}' is listed twice"):
        read_rise(metadata, tmp_path / "videos", only=tmp_path / "some.txt")


def test_two_videos_of_one_name_are_told(metadata, tmp_path):
    write_mp4(tmp_path / "videos/copy" / f"{ROWS[0]['file_name']}.mp4", 3)
    with pytest.raises(DataError, match="two videos have the name '0-7-2019-02-03"):
        read_rise(metadata, tmp_path / "videos")


def test_urls_are_root_part_and_name_also_where_the_part_is_whole(metadata):
    name = ROWS[0]["file_name"]
    url = f"https://example.org/videos/180/2019-02-03/0-7/{name}.mp4"
    assert video_urls(metadata)[0] == url
    metadata.write_text(json.dumps([{**ROWS[0], "url_part": f"2019-02-03/0-7/{name}.mp4"}]))
    assert video_urls(metadata) == [url]
    assert video_urls(metadata, "https://m.org/320/") == [f"https://m.org/320/2019-02-03/0-7/{name}.mp4"]
    metadata.write_text(json.dumps([{**ROWS[0], "url_part": None}]))
    with pytest.raises(DataError, match="no 'url_part'"):
        video_urls(metadata)


def test_the_command_writes_two_frames_of_each_clip(metadata, tmp_path):
    place = ["--metadata", metadata, "--videos", tmp_path / "videos", "--out", tmp_path / "out", "--split", "train"]
    said = wsss("shards", "rise", *place, "--workers", 1)
    assert "10 images (smoke in 6) of 3 groups" in said and "5 clips taken, left out: none" in said
