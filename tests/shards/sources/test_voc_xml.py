import pytest
from PIL import Image

from shards.schema import DataError
from shards.sources.images import read_images

OBJECT = "<object><name> {} </name><difficult>1</difficult><part><name>head</name></part></object>"


@pytest.fixture
def pets(tmp_path):
    """Three images in VOC's layout: a cat and two dogs, none, a dog."""
    for name, objects in {"a.5": ("cat", "dog", "dog"), "b": (), "set/c": ("dog",)}.items():
        for folder, ending in (("JPEGImages", "jpg"), ("Annotations", "xml")):
            (tmp_path / folder / name).parent.mkdir(parents=True, exist_ok=True)
            file = tmp_path / folder / f"{name}.{ending}"
            if ending == "jpg":
                Image.new("RGB", (8, 6)).save(file)
            else:
                inside = "".join(map(OBJECT.format, objects))
                file.write_text(f"<annotation><filename>C:\\\\other.png</filename>{inside}</annotation>")
    return tmp_path


def read(root, **options):
    return read_images(root, "Annotations", image_folder="JPEGImages", **options)


def test_the_names_of_objects_are_the_labels_of_the_image_of_that_path(pets):
    (pets / "Annotations/._b.xml").write_bytes(b"\0\5\x16\7")  # macOS packs such twins of files into archives
    found = read(pets)
    assert found.source.class_set.classes == ("cat", "dog")
    assert [(row.key, row.image_label) for row in found.source.rows] == [("a_5", (1, 2)), ("b", ()), ("set_c", (2,))]
    (pets / "val.txt").write_text("set/c\n")
    assert [row.key for row in read(pets, only="val.txt", classes=("dog", "cat")).source.rows] == ["set_c"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("<annotation>", "b.xml: not xml "),
        ("", "b.xml: not xml "),
        ("<svg/>", "b.xml: is '<svg>'; wanted <annotation>"),
        ("<annotation><object/></annotation>", "b.xml: object 1 of 1 has no name"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><annotation/>', "b.xml: declares entities"),
    ],
)
def test_an_xml_that_is_no_annotation_is_refused(pets, data, message):
    (pets / "Annotations/b.xml").write_text(data)
    with pytest.raises(DataError, match=message):
        read(pets)


def test_an_annotation_without_its_image_and_a_folder_without_any_are_told(pets):
    (pets / "JPEGImages/b.jpg").unlink()
    with pytest.raises(DataError, match="row 'b': no image .*b with ending .jpg, .*see --image-folder"):
        read(pets)
    with pytest.raises(DataError, match="JPEGImages: holds no .xml; wanted a table of labels, or VOC's annotations"):
        read_images(pets, "JPEGImages")
