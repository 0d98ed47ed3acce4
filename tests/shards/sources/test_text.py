import json

import pytest

from shards.schema import DataError
from shards.sources.text import cell_of, json_of, names_of, read_rows, select_rows, table_at


def rows_of(tmp_path, data, name="t.csv"):
    (tmp_path / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    return read_rows(tmp_path / name)


@pytest.mark.parametrize(
    "data",
    [
        "key,label\na,1\nb,0\n",
        "key,label\r\na,1\r\nb,0",
        "key,label\ra,1\rb,0\r",
        "\ufeffkey,label\na,1\nb,0\n",
        "key;label\na;1\nb;0\n",
        "key\tlabel\na\t1\nb\t0\n",
        '"key", "label"\n"a", "1"\n\n,\nb,0\n'.replace(', "', ',"'),
        "key , label\n a,1 \nb, 0\n",
    ],
)
def test_a_csv_of_any_system_says_the_same(tmp_path, data):
    assert rows_of(tmp_path, data) == [("a", {"key": "a", "label": "1"}), ("b", {"key": "b", "label": "0"})]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("key,label\na,1,2\n", r"t.csv: line 2: 3 cells .*; the header has 2: \['key', 'label'\]"),
        ("key,label\na\n", "line 2: 1 cells"),
        ("key,label\na,1\na,0\n", "t.csv: 'a' is listed twice"),
        ("key,key\na,1\n", "two columns of its header have the same name"),
        ('key,label\n"a,1\n', "t.csv: line 2: unexpected end of data"),
        ('key,label\n"a"b,1\n', "t.csv: line 2: "),
        (
            "name,label\na,1\n",
            "neither 'key' nor 'image' among the columns of its first line, 'name,label'; call the .* 'image'",
        ),
        ("key,label\n,1\n", "line 2: its 'key' or 'image' is empty"),
        ("", "t.csv: is empty"),
        ("key,label\n", "t.csv: holds no row"),
        ("key,label\na,1\n\ufeffb,0\n", "line 3: a byte order mark inside the text"),
        ("key,label\nK\u00f6ln,1\n".encode("latin-1"), "line 2: byte 0xf6 is not UTF-8"),
        ("key,label\na,1\n".encode("utf-16"), "is UTF-16 or not text"),
        ("key,label\na,1\n".encode("utf-16-le"), "is UTF-16 or not text"),
        (b"\x89PNG\r\n\x1a\n\0\0", "is UTF-16 or not text"),
        ("caf\u00e9,label\nkey,1\n", "neither 'key' nor"),
        ("key,label\ncaf\u00e9,1\ncafe\u0301,0\n", r"is listed twice \(also as 'caf\\xe9'\)"),
    ],
)
def test_a_malformed_csv_is_refused_with_file_row_got_and_wanted(tmp_path, data, message):
    with pytest.raises(DataError, match=message):
        rows_of(tmp_path, data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("{", "t.json: not json"),
        ("[" * 100_000, "t.json: not json"),
        ("1" * 5000, "t.json: not json"),
        ("3", "t.json: holds 3; wanted a list of rows"),
        ('{"items": [1]}', r"its 'items' are \[1\]; wanted an object"),
        ('{"a": {}, "a": {}}', "'a' is listed twice"),
        ("[1]", "row 0: is 1; wanted an object with 'key'"),
        ('[{"key": 1}]', "row 0: its key is 1; wanted text"),
        ('[{"label": 1}]', "row 0: neither 'key' nor 'image'"),
        ('[{"key": "a"}, {"key": "a"}]', "'a' is listed twice"),
        ('{"a\\ud800": {}}', r"'a\\ud800' holds half a character"),
    ],
)
def test_a_malformed_json_is_refused_with_its_row(tmp_path, data, message):
    with pytest.raises(DataError, match=message):
        rows_of(tmp_path, data, "t.json")


def test_a_json_is_a_list_or_an_object_of_rows(tmp_path):
    wanted = [("a", {"key": "a", "label": 1})]
    for content in ([wanted[0][1]], dict(wanted), {"meta": 3, "items": dict(wanted)}):
        assert rows_of(tmp_path, "\ufeff" + json.dumps(content), "t.json") == wanted


@pytest.mark.parametrize("value", ["", " ", "nan", "None", None, float("nan"), "NULL"])
def test_an_empty_cell_has_no_default(value):
    with pytest.raises(DataError, match="row 'a': group is empty .*fill it in or remove the row: see"):
        cell_of({"group": value}, "group", "row 'a'", "see --group-column")


def test_a_cell_holds_text_or_a_whole_number():
    assert [cell_of({"x": value}, "x", "a", "") for value in (1, " v ", True)] == ["1", "v", "True"]
    for value in (1.5, [1], {}):
        with pytest.raises(DataError, match="a: x is .*; wanted text or a whole number"):
            cell_of({"x": value}, "x", "a", "")
    with pytest.raises(DataError, match=r"a: no 'x'; it has \['y'\]: see --x"):
        cell_of({"y": 1}, "x", "a", "see --x")


def test_a_list_has_one_name_a_line_and_each_once():
    assert names_of(b"\xef\xbb\xbfa b\r\n\r\n c.5 \r\n", "l") == ["a b", "c.5"]
    with pytest.raises(DataError, match="l: 'a' is listed twice; remove"):
        names_of(b"a\nb\na\n", "l")
    with pytest.raises(DataError, match="l: lists no name"):
        names_of(b"\n \n", "l")
    with pytest.raises(DataError, match="l: line 3: byte 0xe9 is not UTF-8"):
        names_of(b"a\nb\n\xe9", "l")


def test_text_lines_end_at_line_ends_only():
    assert names_of("a\u2028b\nc\x0bd\n".encode(), "l") == ["a\u2028b", "c\x0bd"]
    assert json_of(b'{"a": 1}', "j") == {"a": 1}


PATHS = {"photos/a.jpg": {"split": "train"}, "photos/b.PNG": {"split": "val"}, "c": {"split": "train"}}


@pytest.fixture
def table(tmp_path):
    return tmp_path / "t.csv"


def selected(table, names=None, *, split="train", column=None, rows=None):
    only = None if names is None else table.with_name("list.txt")
    if only is not None:
        only.write_text("\n".join(names))
    return list(select_rows(PATHS if rows is None else rows, table, only=only, split=split, column=column))


def test_a_name_in_a_list_may_lack_the_ending_that_the_table_has(table):
    assert selected(table, ["c", "photos/b", "photos/a"]) == ["c", "photos/b.PNG", "photos/a.jpg"]
    with pytest.raises(DataError, match="list.txt: 'photos/a.jpg' is listed twice"):
        selected(table, ["photos/a", "photos/a.jpg"])
    with pytest.raises(DataError, match=r"'a' may be a.jpg or a.png in .*t.csv: two images have this name"):
        selected(table, ["a"], rows={"a.jpg": {}, "a.png": {}})


def test_a_list_that_names_paths_in_another_way_is_told_which(table):
    with pytest.raises(DataError, match="2 keys are not in .*first 'a.jpg'; did you mean 'photos/a.jpg'"):
        selected(table, ["a.jpg", "b"])
    with pytest.raises(DataError, match="first 'x/z'; the first of the table is 'photos/a.jpg'"):
        selected(table, ["x/z"])


def test_a_column_of_splits_selects_rows_and_is_never_passed_over(table):
    assert selected(table, column="split") == ["photos/a.jpg", "c"]
    assert selected(table, split="dev", column="split=val") == ["photos/b.PNG"]
    wanted = "says 'train' in 2 rows, 'val' in 1 rows; wanted only '{}': .* with --split-column {}, or all after"
    with pytest.raises(DataError, match=wanted.format("val", "split")):
        selected(table, split="val")
    with pytest.raises(DataError, match=wanted.format("dev", "split=NAME")):
        selected(table, split="dev")  # what the table calls otherwise: all rows would be judged on, or learned from
    with pytest.raises(DataError, match="says 'train' in 1 rows; wanted only 'val'"):
        selected(table, split="val", rows={"a": {"split": "train"}})
    with pytest.raises(DataError, match="says '' in 2 rows, 'val' in 1 rows; wanted only 'val'"):
        selected(table, split="val", rows={"a": ["cat"], "b": {"split": ""}, "c": {"split": "val"}})
    with pytest.raises(DataError, match="says 'train' in 2 rows, 'val' in 1 rows, and nowhere 'dev'; say --split-col"):
        selected(table, split="dev", column="split")
    with pytest.raises(DataError, match="row 'a': no 'part'; .*see --split-column"):
        selected(table, column="part", rows={"a": {"x": 1}})
    with pytest.raises(DataError, match="both say which rows to take"):
        selected(table, ["c"], column="split")


def test_rows_are_all_of_a_split_that_no_column_names(table):
    assert selected(table, ["c"]) == ["c"]  # a list says enough
    assert selected(table, rows={"a": ["cat"], "b": {"split": None}, "c": {"split": "NaN"}}) == ["a", "b", "c"]
    assert selected(table, rows={"a": {"split": "train"}, "b": {"split": " train"}}) == ["a", "b"]


def test_a_folder_where_a_table_is_wanted_is_no_missing_file(tmp_path):
    (tmp_path / "Annotations").mkdir()
    with pytest.raises(DataError, match="Annotations: is a folder; wanted a file: a table of labels"):
        table_at(tmp_path, "Annotations")
    with pytest.raises(
        DataError, match="labels.csv: file is missing; .*neither below the root of the images nor in the working folder"
    ):
        table_at(tmp_path, "labels.csv")
