"""Evaluation of outputs that no network made: random scores and label maps next to small shards."""

import numpy as np
import pytest
from support.squares import Squares

from launcher.config.file import load_config
from launcher.errors import RunError
from launcher.evaluation.evaluate import count_predictions, judge_sources
from launcher.evaluation.per_image import write_rows
from launcher.evaluation.sources import LabelSource, ScoreSource, find_sources
from launcher.evaluation.tuning import Tuned
from launcher.jobs import output as jobs
from launcher.jobs.scores import Scores
from shards.folder import ShardFolder
from shards.image_bytes import encode_mask
from shards.schema import DataError
from shards.write import write_split, write_tar


def write_outputs(shards, out, members_of):
    """Shards of a job next to image shards."""
    jobs.open_output(out, {"fingerprint": shards.index.fingerprint})
    for shard in shards.index.shards:
        numbers = shards.numbers_of(shard.name)
        write_tar(out / shard.name, [(shards.keys[n], members_of(n)) for n in numbers])


def write_scores(shards, out, kinds):
    """Random maps of the given kinds."""

    def members_of(n):
        rng = np.random.default_rng(n)
        class_ids = tuple(range(1, len(shards.index.classes) + 1))
        maps = {kind: rng.random((len(class_ids), 4, 4)) for kind in kinds}
        probs = tuple(rng.random(len(class_ids)).tolist())
        return Scores(
            key=shards.keys[n], group=shards.groups[n], class_ids=class_ids, cls_probs=probs, maps=maps
        ).members()

    write_outputs(shards, out, members_of)
    return [ScoreSource(kind, out, kind) for kind in kinds]


def write_labels(shards, out):
    """Random class ids."""

    def members_of(n):
        label_HW = np.random.default_rng(n).integers(0, 3, shards.mask(n).shape).astype(np.uint8)
        return {"json": b"{}", "png": encode_mask(label_HW)}

    write_outputs(shards, out, members_of)
    return [LabelSource("segments", out, "png")]


@pytest.fixture
def splits(scenes, tmp_path):
    """Two data sets with what was predicted of them: scores of one class; scores and label maps of two classes."""
    write_split(Squares("val", 12, True), tmp_path / "pets", "val", "pixel", num_shards=4)
    smoke, pets = ShardFolder(scenes / "val", "pixel"), ShardFolder(tmp_path / "pets/val", "pixel")
    of_pets = [*write_scores(pets, tmp_path / "cams_of_pets", ["class_map"]), *write_labels(pets, tmp_path / "labels")]
    return [(smoke, write_scores(smoke, tmp_path / "cams", ["grad", "project"])), (pets, of_pets)]


@pytest.fixture
def config(tiny_yaml):
    def make(*overrides):
        return load_config(tiny_yaml("classify"), overrides)

    return make


def test_figures_and_rows_do_not_depend_on_the_number_of_workers(splits, config, tmp_path):
    found = []
    for workers in ("1", "2"):
        measures = count_predictions(splits, config(f"evaluate.workers={workers}"))
        assert [list(of_split) for of_split in measures] == [["grad", "project"], ["class_map", "segments"]]
        figures = [m.figures_at(0.5) | m.bounds_and_curve() for of_split in measures for m in of_split.values()]
        write_rows(tmp_path / "rows.csv", list(measures[0]["grad"].rows({"fixed": 0.5})))
        found.append((repr(figures), (tmp_path / "rows.csv").read_text()))
    assert found[0] == found[1]
    assert found[0][1].count("\n") == 25


def test_what_is_counted_is_every_sample_once_in_the_order_of_the_index(splits, config):
    smoke, _ = splits[0]
    measures = count_predictions(splits, config())
    grad, segments = measures[0]["grad"], measures[1]["segments"]
    assert grad.keys == smoke.keys and grad.groups == smoke.groups and len(grad.counts) == len(smoke)
    assert grad.bounds_and_curve()["groups"] == len({*smoke.groups}) < len(smoke)
    assert int(segments.confusion_CC.sum()) == 12 * 32 * 32
    assert len(measures[1]["class_map"].decisions()[0]) == 12


def test_scores_of_several_classes_are_counted_again_at_their_tuned_threshold(splits, config):
    pets, sources = splits[1]
    judged = judge_sources(pets, sources, Tuned(thresholds={"class_map": 0.7}), config())
    of_maps = judged["class_map"]
    assert of_maps.thresholds == {"fixed": 0.3, "tuned": 0.7} and list(judged["segments"].measures) == ["fixed"]
    for choice, threshold in of_maps.thresholds.items():
        alone = config(f"evaluate.threshold={threshold}")
        wanted = count_predictions([(pets, sources)], alone)[0]["class_map"].figures_at(threshold)
        assert repr(of_maps.measures[choice].figures_at(threshold)) == repr(wanted)
    assert of_maps.measures["fixed"].figures_at(0.3)["miou"] != of_maps.measures["tuned"].figures_at(0.7)["miou"]
    rows = list(of_maps.rows())
    assert len(rows) == len(pets) and any(row["iou_fixed"] != row["iou_tuned"] for row in rows)


def test_a_label_map_with_an_id_that_is_no_class_is_refused_by_file_and_image(splits, config):
    pets, (_, labels) = splits[1]
    name = pets.index.shards[0].name
    first, *others = pets.numbers_of(name)
    content = [(pets.keys[n], {"json": b"{}", "png": encode_mask(np.zeros((32, 32), np.uint8))}) for n in others]
    wrong = {"json": b"{}", "png": encode_mask(np.full((32, 32), 3, np.uint8))}
    write_tar(labels.folder / name, [(pets.keys[first], wrong), *content])
    said = rf"{name}: sample '{pets.keys[first]}': mask holds class ids \[3\]; wanted 0 .*1..2 \(cat, dog\)"
    with pytest.raises(DataError, match=said):
        count_predictions([(pets, [labels])], config())
    with pytest.raises(DataError, match=said):
        labels.predict(pets, first, 0.5)


def test_counts_of_all_images_are_joined_once(splits, config, monkeypatch):
    from wsss.metrics.counts import Counts

    grad = count_predictions(splits, config())[0]["grad"]
    plain, joined = Counts.stack, []
    monkeypatch.setattr(Counts, "stack", staticmethod(lambda parts: (joined.append(len(parts)), plain(parts))[1]))
    figures = grad.figures_at(0.3)
    assert len(joined) == 1 + ("chimney_area" in figures)  # of the images, and of the boxes
    grad.bounds_and_curve(), grad.classification(), list(grad.rows({"fixed": 0.5})), grad.figures_at(0.3)
    assert len(joined) == 1 + ("chimney_area" in figures)


@pytest.mark.parametrize("which", [(0, "grad"), (1, "class_map"), (1, "segments")])
def test_one_sample_read_on_its_own_is_the_one_of_its_shard(splits, which):
    shards, sources = splits[which[0]]
    source = next(source for source in sources if source.name == which[1])
    name = shards.index.shards[1].name
    for number, prediction in source.predictions(shards, name, 0.5):
        alone = source.predict(shards, number, 0.5)
        size = shards.mask(number).shape
        np.testing.assert_array_equal(alone.label_at(size), prediction.label_at(size))
        np.testing.assert_array_equal(alone.draw_on(shards.image(number)), prediction.draw_on(shards.image(number)))


def test_a_folder_of_which_a_killed_job_could_not_say_what_it_makes_is_not_begun(tmp_path, capsys):
    for empty in ("cams/val", "cams@wide/val", "masks/grad+crf/val", "segments/val"):
        (tmp_path / empty).mkdir(parents=True)
        (tmp_path / empty / ".job.json.0a1b.tmp").touch()
    assert find_sources(tmp_path, "val") == find_sources(tmp_path, "val") == []
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 4 and all(
        "left out: its job never started (no job.json); run that command" in one for one in told
    )
    (tmp_path / "cams/val/val-00000.tar").touch()
    with pytest.raises(RunError, match="cams/val: has no job.json, so nothing says how it was made"):
        find_sources(tmp_path, "val")
