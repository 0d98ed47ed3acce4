import av
import numpy as np
import pytest
from support.videos import number_of, write_mp4

from shards.image_bytes import header_of
from shards.schema import DataError
from shards.sources.clips import Clip, Clips
from shards.sources.video import EBML, SEGMENT, frame_count, orientation_of_clip, read_frames, stated_size


@pytest.fixture
def video(tmp_path):
    return write_mp4(tmp_path / "clip.mp4", 15)


def test_frames_come_exactly_and_in_the_order_asked_for(video):
    frames = read_frames(video, [14, 0, 7, 7])
    assert [number_of(frame) for frame in frames] == [14, 0, 7, 7]
    assert all(frame.shape == (32, 48, 3) and frame.dtype == np.uint8 for frame in frames)
    assert read_frames(video, []) == []


def test_all_frames_are_counted_also_those_the_encoder_delays(video):
    assert frame_count(video) == 15
    assert [number_of(frame) for frame in read_frames(video, range(15))] == list(range(15))


def test_a_file_that_was_replaced_is_counted_anew(video):
    assert frame_count(video) == 15
    write_mp4(video, 9)
    assert frame_count(video) == 9


def test_a_frame_beyond_the_end_or_before_the_start_is_told(video):
    with pytest.raises(DataError, match=r"clip.mp4: frame 15 was asked for; it has 15, the last is 14"):
        read_frames(video, [3, 15])
    with pytest.raises(DataError, match=r"clip.mp4: frame -1 was asked for; frames are numbered from 0"):
        read_frames(video, [-1])


def test_a_file_that_is_missing_cut_or_no_video_is_told(video, tmp_path):
    with pytest.raises(DataError, match="gone.mp4: video is missing"):
        frame_count(tmp_path / "gone.mp4")
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(video.read_bytes()[:-200])
    with pytest.raises(DataError, match="cut.mp4: does not decode"):
        frame_count(cut)
    text = tmp_path / "text.mp4"
    text.write_text("no video")
    with pytest.raises(DataError, match="text.mp4: does not decode"):
        read_frames(text, [0])


def test_a_file_with_sound_only_is_told(tmp_path):
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    with pytest.raises(DataError, match="sound.mp4: has no video stream"):
        frame_count(path)


@pytest.mark.real_data
def test_the_real_clip_has_36_frames_of_600_px(real_data):
    path = real_data / "ijmond_extra/bu7USw70eXs-3.mp4"
    assert frame_count(path) == 36
    first, last = read_frames(path, [0, 35])
    assert first.shape == last.shape == (600, 600, 3)
    assert 0 < np.abs(first.astype(int) - last).mean() < 20  # one scene, moving


def faststart(path):
    """The index of an mp4 in front of its frames, as videos on the web have it."""
    moved = path.with_name("fast.mp4")
    with av.open(str(path)) as before, av.open(str(moved), "w", options={"movflags": "faststart"}) as after:
        stream = after.add_stream_from_template(before.streams.video[0])
        for packet in before.demux(before.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                after.mux(packet)
    return moved


def test_a_clip_that_is_cut_anywhere_never_has_fewer_frames_in_silence(video):
    fast = faststart(video)
    whole = fast.read_bytes()
    assert frame_count(fast) == 15 and whole.index(b"moov") < whole.index(b"mdat")
    for at in range(whole.index(b"mdat"), len(whole), 7):
        fast.write_bytes(whole[:at])
        with pytest.raises(DataError, match="fast.mp4: (does not decode|holds no frame)"):
            frame_count(fast)


@pytest.mark.parametrize("ending", ["mkv", "avi"])
def test_a_clip_of_another_container_that_is_cut_is_told(tmp_path, ending):
    clip = write_mp4(tmp_path / f"clip.{ending}", 15)
    whole = clip.read_bytes()
    assert frame_count(clip) == 15
    for share in (0.3, 0.6, 0.9, 0.999):
        clip.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(DataError, match=f"clip.{ending}: does not decode"):
            frame_count(clip)


def test_a_clip_whose_size_is_not_known_while_it_is_recorded_is_read(tmp_path):
    clip = write_mp4(tmp_path / "clip.mkv", 15)
    whole = clip.read_bytes()
    at = whole.index(SEGMENT) + 4
    assert whole[at] == 1  # its size has eight bytes
    clip.write_bytes(whole[:at] + b"\x01" + 7 * b"\xff" + whole[at + 8 :])
    assert frame_count(clip) == 15
    assert stated_size(b"RIFF" + 4 * b"\0") == stated_size(b"RIFF" + 4 * b"\xff") == stated_size(b"") == 0
    assert stated_size(EBML) == stated_size(EBML + b"\x80") == stated_size(EBML + b"\x80" + SEGMENT) == 0
    assert stated_size(EBML + b"\x81?" + SEGMENT + b"\x40\x07") == 4 + 2 + 4 + 2 + 7


@pytest.mark.parametrize(("degrees", "orientation"), [(0, 1), (90, 8), (180, 3), (270, 6)])
def test_the_rotation_tag_of_a_clip_becomes_the_exif_orientation_of_its_frames(video, degrees, orientation):
    data = bytearray(video.read_bytes())
    cosine, sine = {0: (1, 0), 90: (0, -1), 180: (-1, 0), 270: (0, 1)}[degrees]
    at = data.index(b"tkhd") + 4 + 40
    matrix = [cosine << 16, sine << 16, 0, -sine << 16, cosine << 16, 0, 0, 0, 1 << 30]
    data[at : at + 36] = b"".join((value & 0xFFFFFFFF).to_bytes(4, "big") for value in matrix)
    video.write_bytes(data)
    assert orientation_of_clip(video) == orientation
    clip = Clip(name="a", path=video, smoke=True, group="g")
    for exif, left in (("keep", orientation), ("apply", 1)):
        sample = Clips(clips=(clip,), source="s", exif=exif)[0]
        turned = exif == "apply" and orientation in (6, 8)
        assert header_of(sample.image, "") == ((48, 32) if turned else (32, 48), left)
