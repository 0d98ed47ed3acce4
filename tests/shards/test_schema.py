import pytest

from shards.schema import ClassSet, DataError, hint_at_order


def test_multi_hot_puts_class_k_into_channel_k_minus_1():
    two = ClassSet(name="two", classes=("cat", "dog"))
    assert two.multi_hot([2]).tolist() == [0.0, 1.0]
    assert two.multi_hot([]).tolist() == [0.0, 0.0]


def test_more_classes_than_a_byte_names_are_refused():
    ClassSet(name="most", classes=tuple(map(str, range(254))))
    with pytest.raises(DataError, match="'many' has 255 classes; wanted at most 254"):
        ClassSet(name="many", classes=tuple(map(str, range(255))))


def test_classes_in_another_order_are_told_to_be_so():
    assert "write the shards again with --classes cat,dog" in hint_at_order(("dog", "cat"), ("cat", "dog"))
    assert hint_at_order(("cat",), ("cat", "dog")) == hint_at_order(("cat",), ("cat",)) == ""
