import numpy as np
import pytest

from launcher.evaluation.class_sums import CLASS_SUMS, compare_mious, read_class_sums, write_class_sums
from launcher.evaluation.confusion import Confusion
from launcher.evaluation.measure import Truth
from launcher.evaluation.sources import LabelPrediction
from launcher.evaluation.thresholds import Thresholds
from launcher.files import Damaged
from shards.schema import ClassSet

ONE = Thresholds()  # of one class there is no mIoU
PETS = ClassSet(name="pets", classes=("cat", "dog"))


def counted(images=4, wrong=0, class_set=PETS):
    """Images of two groups that show a cat and a dog; of the first `wrong` the dog is taken for a cat."""
    tally = Confusion(class_set)
    truth_HW = np.array([[0, 1], [1, 2]], np.uint8)
    for n in range(images):
        label_HW = np.where(truth_HW == 2, 1, truth_HW).astype(np.uint8) if n < wrong else truth_HW
        tally.add(LabelPrediction(label_HW), Truth(f"image {n}", f"group {n % 2}", truth_HW, {}))
    return tally


def test_what_is_written_is_read_by_source_and_threshold(tmp_path):
    good, bad = counted(), counted(wrong=1)
    write_class_sums(tmp_path / CLASS_SUMS, {("seg@a", "fixed"): good, ("map", "tuned"): bad, ("one", "fixed"): ONE})
    groups, sums_G3C = read_class_sums(tmp_path, "seg@a", "fixed")
    assert groups == ["group 0", "group 1"] and sums_G3C.tolist() == [[[2, 4, 2]] * 3] * 2
    assert read_class_sums(tmp_path, "map", "tuned").sums_G3C.tolist()[0] == [[2, 4, 1], [2, 4, 2], [2, 5, 1]]
    assert read_class_sums(tmp_path, "map", "fixed") is None and read_class_sums(tmp_path, "one", "fixed") is None
    write_class_sums(tmp_path / CLASS_SUMS, {("one", "fixed"): ONE})  # an evaluation of one class came after
    assert read_class_sums(tmp_path, "seg@a", "fixed") is None and not any(tmp_path.iterdir())


def test_a_damaged_file_is_told_with_the_command_that_makes_it_anew(tmp_path):
    write_class_sums(tmp_path / CLASS_SUMS, {("seg", "fixed"): counted()})
    data = (tmp_path / CLASS_SUMS).read_bytes()
    for damaged in (data[: len(data) // 2], b"", b"no zip"):
        (tmp_path / CLASS_SUMS).write_bytes(damaged)
        with pytest.raises(Damaged, match=r"class_sums.npz: damaged \(.*run `wsss evaluate"):
            read_class_sums(tmp_path, "seg", "fixed")


def test_two_methods_are_compared_on_the_same_groups_alone(tmp_path):
    measures = {"good": counted(), "bad": counted(wrong=1), "fewer": counted(images=1)}
    write = {name: tmp_path / name for name in measures}
    for name, folder in write.items():
        folder.mkdir()
        write_class_sums(folder / CLASS_SUMS, {("seg", "fixed"): measures[name]})
    good, bad, fewer = (read_class_sums(folder, "seg", "fixed") for folder in write.values())
    gap, low, high = compare_mious([good, good], [bad, bad])
    # the cat is given 1 pixel too many of 9, one dog of four is missed
    assert gap == pytest.approx(1 - (1 + 8 / 9 + 3 / 4) / 3)
    assert low == 0 < high  # drawn twice, the group without an error has none
    assert compare_mious([good], [good]) == (0, 0, 0)
    assert compare_mious([good], [fewer]) is None
    assert compare_mious([good, None], [bad, bad]) is None and compare_mious([], []) is None
