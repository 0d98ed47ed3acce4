import torch
from support.networks import tiny_toco
from support.toys import SMALL

from launcher.config.sections import CamConfig
from launcher.evaluation.evaluate import evaluate
from launcher.evaluation.protocol import describe_scores
from launcher.evaluation.report import write_report
from launcher.jobs.infer import cams_of, identify_cam, infer, inferred_rule, judged_rule
from launcher.training.run import train
from wsss.maps.fusion import TOCO, CamRule, fuse_cams
from wsss.maps.scales import scaled_views
from wsss.methods.toco import ToCo
from wsss.tensors import resize


def test_a_config_without_a_rule_means_the_mean_of_resized_maps_and_tocos_rule_where_masks_are_judged():
    cam = CamConfig(scales=(0.5, 1.0), flip=True)
    assert inferred_rule(cam) == CamRule((0.5, 1.0), True, "mean", "resize")
    assert judged_rule(cam) == TOCO
    assert identify_cam(CamConfig(scales=(0.5, 1.0), flip=True, fuse="mean", pad="resize")) == identify_cam(cam)


def test_a_named_rule_serves_what_is_written_and_what_is_judged():
    cam = CamConfig(scales=(1.0, 0.5, 1.5), flip=True, fuse="toco")
    assert inferred_rule(cam) == judged_rule(cam) == TOCO
    assert (identify_cam(cam)["fuse"], identify_cam(cam)["pad"]) == ("toco", "pad")
    floor = CamConfig(pad="floor")
    assert inferred_rule(floor).pad == judged_rule(floor).pad == "floor" and identify_cam(floor)["pad"] == "floor"


def test_the_protocol_states_the_rule():
    def line(cam):
        made_of = {"cam": identify_cam(cam), "image_size": 32, "checkpoint": "step_0000004", "ema_decay": None}
        return describe_scores(made_of, "val", 0)

    assert "scales 0.5, 1 + flip, fuse mean, sides resized, maps of all" in line(
        CamConfig(scales=(0.5, 1.0), flip=True)
    )
    assert "scales 1, fuse toco, sides padded, maps of all" in line(CamConfig(fuse="toco"))
    assert "scales 1, fuse toco, sides cut off, maps of all" in line(CamConfig(fuse="toco", pad="floor"))


def test_cams_written_by_tocos_rule_are_those_that_are_judged_on_a_smaller_grid():
    torch.manual_seed(0)
    method = ToCo(tiny_toco(3), **SMALL).eval()
    image = torch.rand(2, 3, 32, 32)
    cam = CamConfig(kinds=("class_map", "aux_map", "seg"), scales=(1.0, 0.5, 1.5), flip=True, fuse="toco")
    cams, probs_BK = cams_of(method, image, cam)
    assert {kind: tuple(x.shape) for kind, x in cams.items()} == dict.fromkeys(cam.kinds, (2, 3, 6, 6))
    with torch.no_grad():
        views = scaled_views(
            lambda x: ({"cam": method.student(x).class_map_BKhw}, method.student(x).cls_logits_BK),
            image,
            stride=8,
            scales=TOCO.scales,
        )
        judged = fuse_cams([view.maps["cam"] for view in views], (32, 32), fuse="toco")
    assert (cams["class_map"] - resize(judged, (6, 6))).abs().max() < 0.25 and probs_BK.shape == (2, 3)


def test_attention_is_validated_inferred_evaluated_and_reported_as_other_maps_are(run, scenes, tiny_config):
    of_attention = ("name=attention", "train.steps=1", "train.eval_every=1", "cam.kinds=[attention,project]")
    train(tiny_config("distill", *of_attention, "tracking.to=[]"))
    trained = run.with_name("attention")
    assert "val/attention/per_image_iou" in (trained / "metrics.jsonl").read_text()
    infer(trained, "val", scenes / "val")
    figures = evaluate(trained)
    assert figures["headline"]["source"] == "attention" and set(figures["sources"]) == {"attention", "project"}
    assert "attention" in write_report(trained).read_text()
