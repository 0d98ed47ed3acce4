"""What other people's tools may leave, at random: the right value or a DataError; no other error, no silent guess.

Each property is tried on a few inputs in the suite, and on 2,500 (10,000 in all) under the mark `slow`.
"""

import io
import itertools
import json
import unicodedata

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from shards.image_bytes import decode_grey, decode_image, decode_mask
from shards.schema import DataError, SampleError
from shards.sources.archives import Blob
from shards.sources.coco14 import painted, read_coco
from shards.sources.coco_files import list_images
from shards.sources.names import IMAGE_ENDINGS, Names, keys_of, plain, without_ending
from shards.sources.smoke_images import SMOKE_WORDS, read_table
from shards.sources.text import EMPTY, names_of

pytestmark = pytest.mark.timeout(3000)
FEW_AND_MANY = pytest.mark.parametrize("examples", [40, pytest.param(2500, marks=pytest.mark.slow)])


def hold(examples, strategy, check):
    """Check a property on that many inputs."""
    quiet = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]

    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=quiet)
    @given(strategy)
    def holds(value):
        check(value)

    holds()


# Tables ---------------------------------------------------------------------------------------------------------------

KNOWN = ["a", "b.5", "ö (1)", "c"]
KEYS = st.sampled_from([*KNOWN, "a.jpg", "b", "gone", "", "C", unicodedata.normalize("NFD", "ö (1)")])
LABELS = st.sampled_from(["1", "0", "smoke", "No", "TRUE", "", " ", "nan", "1.0", "maybe", "no smoke"])
GROUPS = st.sampled_from(["v", "w 1", "", "None", "é"])
ROWS = st.lists(st.tuples(KEYS, LABELS, GROUPS), max_size=4)
FORMS = st.sampled_from(["csv", "csv", "list", "object", "items"])
DAMAGE = st.sampled_from(
    ["", "", "", "", "bom", "crlf", "latin-1", "utf-16", "extra", "short", "cut", "semicolon", "twice"]
)


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    root = tmp_path_factory.mktemp("frames")
    (root / "images").mkdir()
    for name in KNOWN:
        Image.new("RGB", (4, 3)).save(root / f"images/{name}.jpg")
    return root


def table_of(rows, form, damage):
    """(name, bytes, whether a sound reader may take it)."""
    dicts = [dict(zip(("key", "label", "group"), row, strict=True)) for row in rows]
    if form != "csv":
        content = dicts if form == "list" else {row["key"]: row for row in dicts}
        text, name = json.dumps({"items": content} if form == "items" else content, ensure_ascii=False), "t.json"
        if form != "list" and (damage == "twice" or len({row["key"] for row in dicts}) < len(dicts)):
            pairs = ", ".join(
                f"{json.dumps(row['key'])}: {json.dumps(row)}" for row in dicts for _ in range(1 + (damage == "twice"))
            )
            text = f'{{"items": {{{pairs}}}}}' if form == "items" else f"{{{pairs}}}"
        sound = damage not in ("cut", "utf-16") and (damage != "twice" or form == "list" or not dicts)
    else:
        lines, name = [",".join(row) for row in (("key", "label", "group"), *rows)], "t.csv"
        if damage in ("extra", "short") and rows:
            lines[-1] = lines[-1] + ",x" if damage == "extra" else lines[-1].rpartition(",")[0]
        if damage == "twice" and rows:
            lines.append(lines[-1])
        text, sound = "\n".join(lines), damage not in ("extra", "short", "twice", "utf-16") or not rows
        sound = sound and damage != "utf-16"
        if damage == "semicolon":
            text = text.replace(",", ";")
    if damage == "crlf":
        text = text.replace("\n", "\r\n")
    if damage == "cut":
        text = text[: len(text) // 2]
    data = ("\ufeff" * (damage == "bom") + text).encode(
        damage if damage in ("latin-1", "utf-16") else "utf-8", "replace"
    )
    return name, data, None if damage in ("cut", "latin-1") else sound


def is_right(rows):
    """Whether a table of these rows says one thing about each frame."""
    keys = [without_ending(plain(key)) for key, _, _ in rows]
    return (
        bool(rows)
        and len(set(keys)) == len(keys)
        and {*keys} <= {*map(plain, KNOWN)}
        and all(label.strip().lower() in SMOKE_WORDS for _, label, _ in rows)
        and all(group.strip().lower() not in EMPTY for _, _, group in rows)
    )


@FEW_AND_MANY
def test_any_table_is_read_right_or_refused(frames, examples):
    def check(drawn):
        rows, form, damage = drawn
        name, data, sound = table_of(rows, form, damage)
        if form == "csv" and rows and not "".join(rows[-1]).strip():  # what is done to a blank row is not seen
            sound = None
        rows = [row for row in rows if form != "csv" or "".join(row).strip()]
        (frames / name).write_bytes(data)
        try:
            source = read_table(frames, name)
        except DataError as error:
            assert str(frames) in str(error) and not (sound and is_right(rows)), str(error)
            return
        if sound is not None:
            assert sound and is_right(rows)
            words = [label.strip().lower() for _, label, _ in rows]
            assert [bool(row.image_label) for row in source.rows] == [SMOKE_WORDS[word] for word in words]
            assert [row.group for row in source.rows] == [group for _, _, group in rows]
            assert [plain(row.image.stem) for row in source.rows] == [without_ending(plain(key)) for key, _, _ in rows]
        assert len({row.image for row in source.rows}) == len({row.key for row in source.rows}) == len(source.rows)

    hold(examples, st.tuples(ROWS, FORMS, DAMAGE), check)


# Names ----------------------------------------------------------------------------------------------------------------

PARTS = st.sampled_from(["a", "b", "a.5", "a b", "é", "e\u0301", "(1)", "煙", ".", "..", "cam1", "a.jpg"])
PATHS = st.builds(
    lambda folders, last, ending: "/".join((*folders, last + ending)),
    st.lists(PARTS, max_size=2),
    PARTS,
    st.sampled_from(["", ".jpg", ".JPG", ".png", ".txt"]),
)


@FEW_AND_MANY
def test_a_name_means_one_file_or_is_refused_or_missing(examples):
    def check(drawn):
        paths, names, anywhere = drawn
        files = [path for path in paths if path.lower().endswith(IMAGE_ENDINGS)]
        resolver = Names(dict.fromkeys(files, 0), "here", anywhere=anywhere)
        for name in names:
            try:
                found = resolver.find(name, "list")
            except DataError as error:
                assert sum(one in str(error) for one in files) >= 2 or len(files) > 1
                continue
            if found is None:
                assert name not in files
                continue
            forms = {plain(found), without_ending(plain(found))}
            ends = {form[-len(plain(name)) :] for form in forms} if anywhere else forms
            assert plain(name) in ends
        try:
            keys = keys_of(files, "list")
        except DataError:
            return
        assert len(set(keys)) == len(files) and all(key.isascii() for key in keys)

    hold(
        examples, st.tuples(st.lists(PATHS, max_size=6, unique=True), st.lists(PATHS, max_size=4), st.booleans()), check
    )


@FEW_AND_MANY
def test_any_bytes_as_a_list_of_names(examples):
    def check(data):
        try:
            names = names_of(data, "l.txt")
        except DataError as error:
            assert str(error).startswith("l.txt")
            return
        assert names and len({*map(plain, names)}) == len(names)
        assert data.decode("utf-8-sig").split() == " ".join(names).split()

    words = st.lists(
        st.sampled_from([b"a", b"b 1", b"\n", b"\r\n", b"\xef\xbb\xbf", b"\xff", b" ", b"\0", "é".encode()])
    )
    hold(examples, words.map(b"".join) | st.binary(max_size=40), check)


# Masks and images -----------------------------------------------------------------------------------------------------

MODES = ["1", "L", "P", "LA", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I", "F", "I;16"]
VALUES = st.lists(st.sampled_from([0, 1, 2, 15, 127, 128, 255]), min_size=6, max_size=6)
COLOURS = st.lists(
    st.sampled_from([(0, 0, 0), (255, 255, 255), (128, 0, 0), (224, 224, 192), (9, 9, 9)]), min_size=1, max_size=256
)
NO_DITHER = Image.Dither.NONE
EDITS = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=2)


def encoded(mode, values, colours, kind):
    """Bytes of a 2 x 3 image of this mode, or None where the format does not know it; and the indices of a palette."""
    if mode == "P":
        image = Image.fromarray(np.array(values, dtype=np.uint8).reshape(2, 3), mode="P")
        image.putpalette([level for colour in [*colours, *[(7, 7, 7)] * 256][:256] for level in colour])
    else:
        image = Image.fromarray(np.array(values, dtype=np.uint8).reshape(2, 3))
        image = Image.new(mode, (3, 2)) if mode in ("I;16", "LAB", "PA") else image.convert(mode, dither=NO_DITHER)
    buffer = io.BytesIO()
    try:
        image.save(buffer, kind)
    except (OSError, KeyError):
        return None
    return buffer.getvalue()


@FEW_AND_MANY
def test_masks_of_every_mode_keep_their_ids_or_are_refused(examples):
    def check(drawn):
        mode, values, colours, kind, edits = drawn
        data = encoded(mode, values, colours, kind)
        if data is None:
            return
        damaged = bytearray(data)
        for place, byte in edits:
            damaged[int(place * (len(data) - 1))] = byte
        for read, shape in ((decode_mask, (2, 3)), (decode_grey, (2, 3)), (decode_image, (2, 3, 3))):
            try:
                found = read(bytes(damaged), "m.png")
            except SampleError as error:
                assert str(error).startswith("m.png: ")
                continue
            if damaged == data:
                assert found.shape == shape and found.dtype == np.uint8
                if read is decode_mask:
                    assert kind == "PNG" and mode in ("1", "L", "P")
                    wanted = (np.array(values) > 127).astype(int).tolist() if mode == "1" else values
                    assert found.reshape(-1).tolist() == wanted
                if read is decode_image:
                    assert mode not in ("I", "F", "I;16", "LAB")

    kinds = st.sampled_from(["PNG", "PNG", "TIFF", "JPEG"])
    hold(examples, st.tuples(st.sampled_from(MODES), VALUES, COLOURS, kinds, EDITS), check)


# Annotations ----------------------------------------------------------------------------------------------------------

NUMBERS = (
    st.integers(-30, 30) | st.floats(-100, 100) | st.sampled_from([float("nan"), float("inf"), 2.1e8, 1e300, 10**400])
)
ODD = st.none() | st.booleans() | st.text(max_size=3) | st.integers() | st.lists(st.integers(), max_size=2)
POLYGONS = st.lists(st.lists(NUMBERS | st.integers(0, 8), max_size=9) | ODD, max_size=2)
COUNTS = st.lists(st.integers(-2, 60) | ODD, max_size=5) | st.text("0123PQo~`", max_size=6) | ODD
SEGMENTATIONS = POLYGONS | st.fixed_dictionaries({"size": st.just([6, 8]) | ODD, "counts": COUNTS}) | ODD
FIELDS = {
    "id": st.integers(0, 3) | ODD,
    "image_id": st.integers(1, 2) | ODD,
    "category_id": st.integers(1, 2) | ODD,
    "iscrowd": st.sampled_from([0, 0, 1, 2, "0", None]),
    "segmentation": SEGMENTATIONS,
}


@FEW_AND_MANY
def test_any_annotation_is_painted_or_refused_with_its_place(tmp_path, examples):
    for name in "ab":
        Image.new("RGB", (8, 6)).save(tmp_path / f"{name}.jpg")
    images = list_images(tmp_path)
    path, numbers = tmp_path / "a.json", itertools.count()
    sound = {"id": 9, "image_id": 1, "category_id": 2, "segmentation": [[0, 0, 4, 0, 4, 4]]}

    def check(drawn):
        annotations, about, removed = drawn
        rows = [{"id": n, "file_name": f"{name}.jpg", "height": 6, "width": 8} for n, name in ((1, "a"), (2, "b"))]
        content = {
            "images": [{**rows[0], **about}, rows[1]],
            "categories": [{"id": 1, "name": "x"}, {"id": 2, "name": "y"}],
            "annotations": [sound, *({key: one[key] for key in one if key != removed} for one in annotations)],
        }
        path.write_text(json.dumps(content))
        try:
            lines = tmp_path / f"lines{next(numbers)}"  # an open one is kept
            source = read_coco(Blob(str(path)), images, lines, all_images=True, with_masks=True)
            samples = [source[number] for number in range(len(source))]
        except DataError as error:
            assert str(path) in str(error) or str(tmp_path) in str(error)
            return
        assert len(samples) == 2
        for sample, row in zip(samples, content["images"], strict=True):
            own = [one for one in content["annotations"] if one["image_id"] == row["id"]]
            with_ids = [{**one, "class_id": one["category_id"], "iscrowd": one.get("iscrowd", 0)} for one in own]
            again, empty = painted(with_ids, 6, 8, "area", "again")
            assert (sample.mask == again).all()  # the same at every reading
            annotated = {one["category_id"] for one in own if not one.get("iscrowd", 0)}
            assert {*sample.image_label} == annotated or sample.remarks
            assert bool(empty) == any("cover no pixel" in remark for remark in sample.remarks)

    about = st.dictionaries(st.sampled_from(["id", "file_name", "height", "width"]), ODD, max_size=1)
    removed = st.sampled_from(["", "", "", *FIELDS])
    hold(examples, st.tuples(st.lists(st.fixed_dictionaries(FIELDS), max_size=2), about | st.just({}), removed), check)
