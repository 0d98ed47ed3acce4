import unicodedata

import pytest

from shards.schema import DataError
from shards.sources.names import Names, check_one_row_each, key_of, keys_of, plain, without_ending

NFC = unicodedata.normalize("NFC", "café.jpg")
NFD = unicodedata.normalize("NFD", NFC)


def names(*paths, **options):
    return Names({path: path for path in paths}, "here", **options)


def test_an_ending_is_stripped_only_if_it_is_an_image_ending():
    assert without_ending("clip_12.5s") == "clip_12.5s" and without_ending("clip_12.5s.PNG") == "clip_12.5s"
    assert without_ending("a/.jpg") == "a/.jpg" and without_ending("a.b/c") == "a.b/c"


def test_paths_of_other_systems_have_one_form():
    assert plain(NFD) == NFC and plain("./a\\b/ö (1).JPG") == "a/b/ö (1).jpg"


@pytest.mark.parametrize(
    ("files", "name", "found"),
    [
        (["frame_1.jpg", "frame_1.5.jpg"], "frame_1.5", "frame_1.5.jpg"),
        (["img.jpg", "img 1.jpg"], "img 1", "img 1.jpg"),
        (["a.jpg", "a.png"], "a.png", "a.png"),
        (["a.JPG"], "a.jpg", "a.JPG"),
        (["a.jpg"], "a.png", None),
        (["a.jpg.png"], "a.jpg", None),
        ([NFD], NFC, NFD),
        ([NFC], without_ending(NFD), NFC),
        (["cam1/0001.jpg", "cam2/0001.jpg"], "cam2\\0001.jpg", "cam2/0001.jpg"),
        (["cam1/0001.jpg"], "0001.jpg", None),
        (["frame (1).jpg", "frame [1].jpg"], "frame [1]", "frame [1].jpg"),
    ],
)
def test_a_name_means_one_file_by_its_whole_path(files, name, found):
    assert names(*files).find(name, "list") == found


def test_the_end_of_a_path_is_enough_where_it_is_allowed_and_only_one_file_has_it():
    some = names("img/cam1/0001.jpg", "img/cam2/0001.jpg", "img/0002.jpg", anywhere=True)
    assert some.find("cam1/0001.jpg", "json") == "img/cam1/0001.jpg" and some.find("0002.jpg", "json") == "img/0002.jpg"
    assert some.find("cam3/0001.jpg", "json") is None and some.find("1.jpg", "json") is None
    with pytest.raises(DataError, match="json: '0001.jpg' may be img/cam1/0001.jpg or img/cam2/0001.jpg in here"):
        some.find("0001.jpg", "json")


def test_a_name_that_may_be_two_files_is_refused_with_both():
    with pytest.raises(DataError, match="list: 'a' may be a.jpg or a.png in here: two images have this name"):
        names("a.jpg", "a.png").find("a", "list")


def test_keys_hold_letters_and_digits_and_two_files_never_share_one():
    assert keys_of(["frame (1).jpg", "cam1/clip_12.5s"], "t") == ["frame__1_", "cam1_clip_12_5s"]
    assert key_of(NFD) == key_of(NFC) == "caf_"
    japanese = keys_of(["煙.jpg", "空.jpg"], "t")
    assert len(set(japanese)) == 2 and all(key.startswith("__") and key.isascii() for key in japanese)
    with pytest.raises(DataError, match="t: 'a.jpg' and 'a.png' would both have the key 'a'"):
        keys_of(["a.jpg", "a.png"], "t")
    with pytest.raises(DataError, match="'a b.jpg' and 'a_b.jpg' would both have the key 'a_b'"):
        keys_of(["a b.jpg", "a_b.jpg"], "t")


def test_two_rows_never_lead_to_one_file():
    check_one_row_each([("a", 1), ("b", 2)], "t", "mask")
    with pytest.raises(DataError, match="t: 'a' and 'b' both lead to the mask 1"):
        check_one_row_each([("a", 1), ("b", 1)], "t", "mask")
