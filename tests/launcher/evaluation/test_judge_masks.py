import copy
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from support.photographs import SIZES, Colours, Photographs, Segmenting

from launcher.config.file import load_config
from launcher.errors import RunError
from launcher.evaluation import validate as validating
from launcher.evaluation.figures import find_figure
from launcher.evaluation.judge import LABELS
from launcher.evaluation.judge_labels import LabelJudge
from launcher.evaluation.judge_masks import MaskJudge, MaskPart, draw_row
from launcher.evaluation.judge_scores import ScoreJudge
from launcher.evaluation.pictures import LABEL_PX, TILE_PX, as_tile, overlay_classes
from launcher.evaluation.validate import choose_judge, choose_part, make_validator, read_before, say_headlines
from launcher.tracking.protocol import NoTracker
from shards.folder import ShardFolder
from shards.write import write_split
from wsss.metrics.confusion import confusion_matrix, mean_iou


class Kept(NoTracker):
    def __init__(self):
        self.figures, self.images = {}, {}

    def log(self, figures, step):
        self.figures[step] = figures

    def image(self, name, image, step):
        self.images[name] = image


@pytest.fixture(scope="session")
def pets(tmp_path_factory):
    out = tmp_path_factory.mktemp("pets")
    write_split(Photographs("val", 10), out, "val", "pixel", num_shards=3)
    return out


@pytest.fixture
def config(tiny_yaml, pets):
    def make(*overrides):
        return load_config(tiny_yaml("classify"), [f"data.val={pets}/val", "evaluate.threshold=0.45", *overrides])

    return make


@pytest.fixture
def shards(pets):
    return ShardFolder(pets / "val", "pixel")


def validate(config, method, shards, accelerator, tracker):
    judge = choose_judge(method, shards.index.supervision)(config, method, shards, accelerator)
    return make_validator(judge, config, shards, accelerator, tracker)


def up(x, size):
    return F.interpolate(x, size, mode="bilinear", align_corners=False)


def plain(shards, number, threshold, size=32):
    """{kind: class ids} of one image, by ToCo's protocol step by step."""
    from PIL import Image

    image = Image.fromarray(shards.image(number)).resize((size, size), Image.Resampling.BILINEAR)
    image = torch.from_numpy(np.asarray(image).astype(np.float32) / 255).permute(2, 0, 1)[None]
    network, own = Colours(), shards.mask(number).shape
    found = {"seg": up(network(image).seg_logits_BChw, own).argmax(1)[0]}
    for kind, raw_of in (("cam", lambda out: out.class_map_BKhw), ("aux_cam", lambda out: out.maps["aux_map"])):
        total = 0
        for side in (32, 16, 48):
            view = up(image, (side, side))
            raw, mirrored = up(raw_of(network(view)), (size, size)), up(raw_of(network(view.flip(-1))), (size, size))
            total = total + F.relu(torch.maximum(raw, mirrored.flip(-1)))
        total = total - total.amin((2, 3), keepdim=True)
        cam = up(total / (total.amax((2, 3), keepdim=True) + 1e-5), own)[0]
        cam = cam * torch.from_numpy(shards.image_label_NK[number])[:, None, None]
        found[kind] = torch.where(cam.amax(0) <= threshold, 0, 1 + cam.argmax(0))
    return found


def test_the_line_of_a_step_has_the_headline_figures_alone_and_all_are_logged(config, shards, capsys):
    tracker = Kept()
    figures = validate(config(), Segmenting(), shards, Accelerator(cpu=True), tracker)(5)
    said = capsys.readouterr().out
    names = ("seg/miou", "cam/miou", "average_precision")
    seg, cam, ap = (f"{100 * figures[f'val/{name}']:.1f} %" for name in names)
    wanted = f"step 5: seg mIoU {seg}, cam mIoU {cam}, average precision {ap}, 10 images in "
    assert said.startswith(wanted)
    assert figures == {name: value for name, value in tracker.figures[5].items() if name != "val/seconds"}


def test_a_line_says_how_good_each_quoted_kind_is_and_how_that_changed():
    of_kind = {"per_image_iou": 0.5, "precision": 0.25, "false_alarm_area": 0.125}
    figures = {"grad": of_kind, "class_map": of_kind, LABELS: {"accuracy": 1.0}}
    assert say_headlines(("grad",), figures, {}, "smoke") == ["grad per-image IoU 50.0 %"]
    before = {"val/grad/per_image_iou": 0.52, "val/class_map/per_image_iou": 0.1}
    assert say_headlines(("grad",), figures, before, "smoke") == ["grad per-image IoU 50.0 % (-2.0)"]


def test_a_run_that_goes_on_says_the_change_since_its_last_evaluation_in_the_log(tmp_path):
    lines = [
        {"step": 2, "val/grad/miou": 0.1, "val/seconds": 1.0},
        {"step": 4, "val/grad/miou": 0.2, "val/seconds": 1.0},
        {"step": 5, "train/loss": 0.2},
        {"step": 6, "val/grad/miou": 0.3, "val/seconds": 1.0},  # of the step that is made again
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_before(tmp_path, 6)["val/grad/miou"] == 0.2
    assert read_before(tmp_path, 2) == {} and read_before(tmp_path / "none", 2) == {}


def test_every_image_is_judged_at_its_own_size_by_the_published_protocol(config, shards):
    tracker, accelerator = Kept(), Accelerator(cpu=True)
    method = Segmenting().train()
    validate(config("evaluate.gallery=0"), method, shards, accelerator, tracker)(7)
    wanted = {kind: torch.zeros(3, 3, dtype=torch.int64) for kind in ("seg", "cam", "aux_cam")}
    for number in range(len(shards)):
        for kind, label in plain(shards, number, 0.45).items():
            wanted[kind] += confusion_matrix(torch.from_numpy(shards.mask(number)), label, 3)
    figures = tracker.figures[7]
    for kind, confusion in wanted.items():
        assert figures[f"val/{kind}/miou"] == pytest.approx(mean_iou(confusion), abs=1e-3)
    assert len({round(figures[f"val/{kind}/miou"], 3) for kind in wanted}) == 3  # the three are different maps
    assert figures["val/seg/miou"] > 0.6 and 0.6 < figures["val/f1"] <= 0.8  # every fourth image shows nothing: F1 0
    assert figures["val/seconds"] > 0 and not tracker.images


@pytest.mark.parametrize("ranks", [2, 3])
def test_shares_of_the_ranks_add_up_to_the_whole_and_no_sample_counts_twice(config, shards, ranks):
    accelerator, method = Accelerator(cpu=True), Segmenting()
    whole = MaskJudge(config(), method, shards, accelerator).judge(list(range(len(shards))), set())
    judge = MaskJudge(config("segment.batch_size=3"), method, shards, accelerator)
    shares = [judge.judge(list(range(len(shards)))[r::ranks], set()) for r in range(ranks)]
    assert torch.equal(sum(share.confusion for share in shares), whole.confusion)
    torch.testing.assert_close(sum(share.f1 for share in shares), whole.f1)
    for share in shares[1:]:
        shares[0].extend(share)
    assert {kind: pytest.approx(values) for kind, values in whole.figures().items()} == shares[0].figures()
    valid = sum(int((shards.mask(n) != 255).sum()) for n in range(len(shards)))
    assert whole.confusion.sum(dim=(1, 2)).tolist() == [valid] * 3 and whole.f1[1] == len(shards)


@pytest.mark.parametrize("judge", [MaskJudge, ScoreJudge, LabelJudge])
def test_ranks_find_together_what_one_process_finds_also_of_a_part(config, shards, judge, monkeypatch, capsys):
    """Of ten images 0, 2, 5 and 7 before the last step, which is 4; the pictures are those of all steps."""
    settings = config("data.val_part=4", "cam.kinds=[class_map]", "evaluate.gallery=3")
    gathered = []
    monkeypatch.setattr(validating, "gather_object", lambda mine: gathered.insert(0, *copy.deepcopy(mine)) or gathered)

    def found(step, ranks):
        gathered.clear()
        for rank in reversed(range(ranks)):  # rank 0 is the last one here, when all others have handed over theirs
            accelerator = SimpleNamespace(device=torch.device("cpu"), process_index=rank, num_processes=ranks)
            accelerator.is_main_process, accelerator.wait_for_everyone = rank == 0, lambda: None
            tracker, of_rank = Kept(), judge(settings, Segmenting(), shards, accelerator)
            figures = make_validator(of_rank, settings, shards, accelerator, tracker)(step)
            assert rank == 0 or not (figures or tracker.figures or tracker.images)
        return figures, tracker.images["gallery"].tobytes()

    seen = {}
    for step, numbers in ((2, [0, 2, 5, 7]), (4, list(range(10)))):
        seen[step] = found(step, 1)
        part = judge(settings, Segmenting(), shards, Accelerator(cpu=True)).judge(numbers, set())
        values = {value for kind in part.figures().values() for value in kind.values()}
        assert set(seen[step][0].values()) == values and f" {len(numbers)} images in " in capsys.readouterr().out
        figures, gallery = found(step, 2 if step == 2 else 3)
        assert figures == pytest.approx(seen[step][0]) and gallery == seen[step][1]
    assert seen[2][1] == seen[4][1] and seen[2][0] != seen[4][0]
    assert choose_part(3, 4) == [0, 1, 2]


def test_a_rank_without_a_sample_counts_nothing(config, shards):
    judged = MaskJudge(config("data.workers=1"), Segmenting(), shards, Accelerator(cpu=True)).judge([], set())
    assert not judged.confusion.any() and not judged.f1.any()


def test_a_network_without_an_auxiliary_classifier_has_no_auxiliary_figures(config, shards):
    tracker = Kept()
    validate(config(), Segmenting(Colours(aux=False)), shards, Accelerator(cpu=True), tracker)(0)
    assert {"val/seg/miou", "val/cam/miou"} <= set(tracker.figures[0])
    assert "val/aux_cam/miou" not in tracker.figures[0]


def test_a_method_that_does_not_segment_keeps_its_validator(config, shards):
    class Classifying(Segmenting):
        segments = False

    tracker = Kept()
    validate(config("cam.kinds=[class_map]"), Classifying(), shards, Accelerator(cpu=True), tracker)(0)
    assert "val/class_map/miou" in tracker.figures[0] and "val/seg/miou" not in tracker.figures[0]
    names = {name.rpartition("/")[2] for name in tracker.figures[0]} - {"seconds"}
    assert all(find_figure(name).in_training for name in names)  # no interval, no count of groups


def test_views_of_all_scales_come_from_three_passes_over_a_batch(config, shards):
    method = Segmenting()
    MaskJudge(config("segment.batch_size=4"), method, shards, Accelerator(cpu=True)).judge([0, 1, 2, 3], set())
    assert method.student.seen == [(8, 3, 32, 32), (8, 3, 16, 16), (8, 3, 48, 48)]


def test_cams_are_judged_by_the_rule_of_the_config_and_segmentation_at_scale_one(config, shards):
    def judged(*overrides):
        method = Segmenting()
        found = MaskJudge(config(*overrides), method, shards, Accelerator(cpu=True)).judge([0, 1, 2, 3], set())
        return found.confusion, method.student.seen

    before, _ = judged()
    toco, passes = judged("cam.fuse=toco", "cam.scales=[1.0, 0.5, 1.5]", "cam.flip=true")
    assert torch.equal(before, toco)  # what is judged where nothing is said
    assert torch.equal(before, judged("cam.scales=[2.0]")[0])  # scales alone are those of `wsss infer`
    mean, _ = judged("cam.fuse=mean", "cam.scales=[1.0, 0.5, 1.5]", "cam.flip=true")
    assert torch.equal(before[0], mean[0]) and not torch.equal(before[1], mean[1])
    small, passes = judged("cam.fuse=toco", "cam.scales=[0.5]")
    assert torch.equal(before[0], small[0]) and not torch.equal(before[1], small[1])
    assert passes == [(4, 3, 32, 32), (4, 3, 16, 16)]


def test_the_gallery_shows_truth_segmentation_cams_and_the_methods_own_pictures(config, shards):
    class Drawing(Segmenting):
        def pictures(self, batch):
            assert batch["image"].shape == (1, 3, 32, 32) and batch["image_label"].shape == (1, 2)
            return {"sure": batch["image"].mean(1), "target": torch.ones(1, 4, 4, dtype=torch.int64)}

    tracker = Kept()
    validate(config("evaluate.gallery=4"), Drawing(), shards, Accelerator(cpu=True), tracker)(0)
    width, height = tracker.images["gallery"].size
    sheet = (6 * TILE_PX, LABEL_PX + 4 * (TILE_PX + LABEL_PX) + LABEL_PX)
    assert (width, height) == sheet  # image, seg, cam, aux_cam, sure, target; four images; the colours of the classes
    number = next(n for n in range(len(shards)) if shards.mask(n).shape == SIZES[1])
    _, tiles = draw_row(shards, number, {"target": torch.tensor([[0, 1], [2, 255]]), "score": torch.zeros(2, 2)})
    image = as_tile(shards.image(number))
    assert {tile.shape for tile in tiles.values()} == {image.shape} and max(image.shape) == TILE_PX
    assert (tiles["score"] == image).all()  # a score of 0 is transparent


def test_a_label_map_is_painted_in_the_colours_of_voc_and_background_stays_as_it_is():
    image = np.full((1, 4, 3), 100, dtype=np.uint8)
    drawn = overlay_classes(image, np.array([[0, 1, 2, 255]]))
    assert drawn[0, 0].tolist() == [100, 100, 100]
    assert drawn[0, 1].tolist() == [118, 35, 35]  # 0.35 * 100 + 0.65 * (128, 0, 0)
    assert drawn[0, 2].tolist() == [35, 118, 35]
    assert (drawn[0, 3] > 100).all()


def test_figures_by_hand():
    confusion = torch.zeros(3, 2, 2, dtype=torch.int64)
    confusion[0] = torch.tensor([[3, 1], [0, 4]])
    assert MaskPart(confusion, torch.tensor([3.0, 4.0, 3.0])).figures() == {
        "seg": {"miou": pytest.approx((3 / 4 + 4 / 5) / 2)},
        LABELS: {"f1": 0.75},
    }


def test_figures_of_nothing_are_none_and_a_kind_that_no_network_has_is_left_out():
    part = MaskPart(torch.zeros(3, 2, 2, dtype=torch.int64), torch.tensor([0.0, 4.0, 0.0]), kinds={"seg", "cam"})
    part.extend(MaskPart(torch.zeros(3, 2, 2, dtype=torch.int64), torch.zeros(3)))
    assert part.figures() == {"seg": {"miou": None}, "cam": {"miou": None}, LABELS: {"f1": None}}
    words = say_headlines(("seg",), part.figures(), {}, "the class")
    assert words == ["seg mIoU – (the truth holds no pixel)"]


def test_a_network_that_gives_nan_is_told_instead_of_judged(config, shards):
    class Broken(Colours):
        def forward(self, image):
            out = super().forward(image)
            out.seg_logits_BChw[0, 0, 0, 0] = torch.nan
            return out

    judge = MaskJudge(config("segment.batch_size=3"), Segmenting(Broken()), shards, Accelerator(cpu=True))
    with pytest.raises(RunError, match="logits of 2 of 4 images are NaN"):
        judge.judge([0, 1, 2, 3], set())
