import io
import tarfile

import numpy as np
import pytest
from PIL import Image
from support.photographs import Colours, Photographs, Segmenting, stand_in_for_a_run

from launcher.config.file import load_config
from launcher.errors import RunError
from launcher.jobs import segment as job
from launcher.jobs import voc_archive as voc_server
from launcher.jobs.segment import segment
from launcher.jobs.voc_archive import INSIDE, VOC_CLASSES, check_archive, pack_voc, png_problems
from shards.digests import publish_noted
from shards.folder import ShardFolder
from shards.image_bytes import encode_mask
from shards.masks import MaskFolder
from shards.pixels import voc_colours
from shards.write import write_split, write_tar


@pytest.fixture(scope="session")
def test_split(tmp_path_factory):
    """Five images of VOC's test split: no labels, no masks."""
    out = tmp_path_factory.mktemp("voc")
    source = Photographs("test", 5, with_masks=False, with_labels=False, classes=VOC_CLASSES)
    write_split(source, out, "test", "label", num_shards=2, may_lack_classes=True)
    return out / "test"


@pytest.fixture
def run(in_tmp, tiny_yaml, test_split, monkeypatch):
    def config_of(overrides):
        return load_config(tiny_yaml("classify"), ["segment.workers=0", "segment.crf=false", *overrides])

    class_set = ShardFolder(test_split).index.as_class_set()
    stand_in_for_a_run(job, monkeypatch, config_of, class_set, Segmenting(Colours(20)))
    folder = in_tmp / "runs/pets"
    segment(folder, "test", test_split)
    segment(folder, "test", test_split, ["segment.flip=true"], "flip")
    return folder


def files(path):
    with tarfile.open(path, "r:gz") as archive:
        return {info.name: archive.extractfile(info).read() for info in archive}


def test_the_archive_holds_one_palette_png_of_the_right_size_per_test_image(run, test_split):
    path, count = pack_voc(run)
    assert path == run / "voc2012_segments_test.tar.gz" and count == 5
    shards = ShardFolder(test_split)
    masks = MaskFolder(run / "segments/test", shards)
    found = files(path)
    assert set(found) == {f"results/VOC2012/Segmentation/comp6_test_cls/{key}.png" for key in shards.keys}
    for number, key in enumerate(shards.keys):
        with Image.open(io.BytesIO(found[f"{INSIDE}/{key}.png"])) as image:
            assert (image.format, image.mode) == ("PNG", "P")
            assert image.size == shards.image(number).shape[1::-1]
            assert image.getpalette()[:9] == [0, 0, 0, 128, 0, 0, 0, 128, 0]
            assert (np.asarray(image) == masks(number)).all() and np.asarray(image).max() <= 20
    assert any(masks(number).any() for number in range(5))  # it is not all background
    assert not list(run.glob(".*.tmp"))


def test_a_further_set_has_an_archive_of_its_own(run):
    assert pack_voc(run, name="flip")[0].name == "voc2012_segments@flip_test.tar.gz"
    assert pack_voc(run, out=run / "mine.tar.gz")[0].is_file()


def test_what_is_not_there_or_not_whole_is_said(run):
    with pytest.raises(RunError, match="wsss segment .* --split val"):
        pack_voc(run, split="val")
    next((run / "segments/test").glob("*.tar")).unlink()
    with pytest.raises(RunError, match="1 of 2 shards are missing"):
        pack_voc(run)


def test_only_vocs_classes_and_image_ids_are_packed(run, in_tmp, test_split, monkeypatch):
    monkeypatch.setattr(voc_server, "VOC_CLASSES", (*VOC_CLASSES[::-1],))
    with pytest.raises(RunError, match="wants VOC's 20, in order"):
        pack_voc(run)
    monkeypatch.setattr(voc_server, "VOC_CLASSES", VOC_CLASSES)

    class Renamed(Photographs):
        def key(self, n):
            return f"photo{n}"

    source = Renamed("test", 4, with_masks=False, with_labels=False, classes=VOC_CLASSES)
    write_split(source, in_tmp / "other", "test", "label", num_shards=2, may_lack_classes=True)
    segment(run, "test", in_tmp / "other/test", [], "renamed")
    with pytest.raises(RunError, match="4 keys are not VOC image ids .*'photo"):
        pack_voc(run, name="renamed")


def test_a_mask_with_an_id_above_20_stops_the_archive(run, test_split):
    shards = ShardFolder(test_split)
    name = shards.index.shards[0].name
    numbers = shards.numbers_of(name)
    maps = [np.full(shards.image(n).shape[:2], 255, dtype=np.uint8) for n in numbers]
    path = run / "segments/test" / name
    path.unlink()
    masks = [(shards.keys[n], {"png": encode_mask(m)}) for n, m in zip(numbers, maps, strict=True)]
    write_tar(path, masks, publish_noted)  # by what wrote it
    with pytest.raises(RunError, match="holds class id 255; wanted 0..20"):
        pack_voc(run)
    assert not list(run.glob("*.tar.gz")) and not list(run.glob(".*.tmp"))


def test_the_check_finds_files_that_are_missing_twice_or_unknown(run, test_split):
    shards = ShardFolder(test_split)
    data = files(pack_voc(run)[0])
    first, second = sorted(data)[:2]
    path = run / "wrong.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, content in [*data.items(), (second, data[second]), (f"{INSIDE}/2001_000001.png", data[second])]:
            if name != first:
                voc_server.add_file(archive, name, content)
    with pytest.raises(RunError, match="3 of 5 files") as error:
        check_archive(path, shards)
    assert f"{first}: missing" in str(error.value) and f"{second}: twice" in str(error.value)
    assert "2001_000001.png: not wanted" in str(error.value)


def saved(image, **options):
    buffer = io.BytesIO()
    image.save(buffer, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (lambda: encode_mask(np.full((3, 4), 20, np.uint8)), None),
        (lambda: encode_mask(np.full((3, 4), 21, np.uint8)), "class id 21"),
        (lambda: encode_mask(np.zeros((4, 3), np.uint8)), "is (4, 3), but the image is (3, 4)"),
        (lambda: saved(Image.new("L", (4, 3)), format="PNG"), "PNG of mode L"),  # what ToCo's tool writes
        (lambda: saved(Image.new("P", (4, 3)), format="GIF"), "GIF of mode P"),
        (lambda: b"no image", "does not decode"),
    ],
)
def test_each_file_is_what_the_server_takes(data, problem):
    found = list(png_problems(data(), (3, 4)))
    assert found == [] if problem is None else problem in found[0]


def test_another_palette_is_refused():
    image = Image.new("P", (4, 3))
    image.putpalette((255 - voc_colours()).tobytes())
    assert list(png_problems(saved(image, format="PNG"), (3, 4))) == ["has a palette other than VOC's"]
