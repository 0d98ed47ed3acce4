import copy

import numpy as np
import pytest
import torch
from support.networks import tiny_toco, two_view_batch
from support.toys import SMALL
from timm.models.vision_transformer import VisionTransformer

from shards.batches.batch import present_classes
from wsss.losses.labels import balanced_segmentation_loss
from wsss.maps.fusion import fuse_cams
from wsss.maps.pseudo_label import certainty, seed_label
from wsss.methods import toco as toco_module
from wsss.methods.looks import Views, make_views, mirrored_box
from wsss.methods.toco import ToCo
from wsss.models.toco import ToCoNet, build_toco

GOLDEN = {"crop_px": 32, "projection_dim": 24, "projection_out": 20, "bottleneck": 12, "energy_weight": 0}


def golden_method(arrays, **options) -> ToCo:
    """The method with the weights of the golden step, in float64, on images that are normalised already."""
    weights = {n.removeprefix("w."): torch.from_numpy(v) for n, v in arrays.items() if n.startswith("w.")}
    encoder = {n.removeprefix("encoder."): v for n, v in weights.items() if n.startswith("encoder.")}
    backbone = VisionTransformer(embed_dim=32, depth=4, num_heads=2, num_classes=0, global_pool="")
    backbone.load_state_dict(encoder)
    num_classes = len(weights["classifier.weight"])
    student = ToCoNet(backbone, num_classes, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), decoder_dim=16)
    method = ToCo(student, **GOLDEN, group_size=None, **options)
    for place, name in ((0, "conv6"), (2, "conv7"), (4, "conv8")):
        student.decoder[place].weight.data.copy_(weights[f"decoder.{name}.weight"])
    student.head.weight.data.copy_(weights["classifier.weight"])
    student.aux_head.weight.data.copy_(weights["aux_classifier.weight"])
    for head, prefix in ((method.project, "proj_head."), (method.project_teacher, "proj_head_t.")):
        state = {n.removeprefix(prefix): v for n, v in weights.items() if n.startswith(prefix + "mlp.")}
        head.load_state_dict({**state, "rows": weights[prefix + "last_layer.weight_v"]})
    return method.double().train()


def golden_views(arrays, compat: bool) -> Views:
    tensor = {n: torch.from_numpy(arrays[n]) for n in ("image", "view2", "local_image", "image_denorm_u8")}
    image_label_BK = torch.from_numpy(arrays["cls_label"]).double()
    return Views(
        main=tensor["image"].double(),
        view2=tensor["view2"].double(),
        local=tensor["local_image"].double(),
        guide=tensor["image_denorm_u8"].double() / 255,
        box=torch.from_numpy(arrays["img_box_raw" if compat else "img_box_true"]),
        mirrored=torch.from_numpy(arrays["main_flip"] != arrays["local_flip"]),
        seed=torch.zeros(len(arrays["image"]), dtype=torch.int64),
        image_label_BK=image_label_BK,
        present_BP=present_classes(image_label_BK),
    )


GRADIENTS = {
    "classifier.weight": "student.head.weight",
    "aux_classifier.weight": "student.aux_head.weight",
    "encoder.cls_token": "student.backbone.cls_token",
    "encoder.blocks.0.attn.qkv.weight": "student.backbone.blocks.0.attn.qkv.weight",
    "encoder.patch_embed.proj.bias": "student.backbone.patch_embed.proj.bias",
    "encoder.norm.weight": "student.backbone.norm.weight",
    "decoder.conv8.weight": "student.decoder.4.weight",
    "proj_head.last_layer.weight_v": "project.rows",
    "proj_head.mlp.0.bias": "project.mlp.0.bias",
}


@pytest.mark.parametrize("case", ["step_p0", "step_p1"])
@pytest.mark.parametrize("mode", ["corrected", "legacy"])
def test_a_whole_step_equals_the_golden_vectors(golden, monkeypatch, case, mode):
    arrays = golden(case)
    compat = mode == "legacy"
    method = golden_method(arrays, toco_compat=compat)
    drawn = torch.from_numpy(arrays[f"{mode}.topleft"])
    monkeypatch.setattr(toco_module, "draw_crops", lambda *args, **kwargs: drawn)
    losses = method.losses(golden_views(arrays, compat), step=3000)
    for name in ("cls", "cls_aux", "ctc", "ptc", "seg"):
        expected = float(arrays[f"{mode}.loss.{name}_f64"])
        assert losses[f"{name}_loss"].item() == pytest.approx(expected, rel=1e-9), name
    assert losses["loss"].item() == pytest.approx(float(arrays[f"{mode}.loss.total_f64"]), rel=1e-9)
    losses["loss"].backward()
    parameters = dict(method.named_parameters())
    for name, ours in GRADIENTS.items():
        expected = arrays[f"{mode}.grad.{name}_f64"]
        found = parameters[ours].grad.numpy()
        assert np.abs(found - expected).max() <= 1e-6 * np.abs(expected).max() + 1e-9, name
    if compat:
        np.testing.assert_allclose(method.project_teacher.rows.detach(), arrays["legacy.ema_weight_v_f64"], atol=1e-12)


def test_before_the_segmentation_starts_the_step_is_that_of_the_warm_up(golden, monkeypatch):
    arrays = golden("step_p0")
    method = golden_method(arrays)
    drawn = torch.from_numpy(arrays["corrected.topleft"])
    monkeypatch.setattr(toco_module, "draw_crops", lambda *args, **kwargs: drawn)
    losses = method.losses(golden_views(arrays, False), step=2000)
    assert "seg_loss" not in losses
    assert losses["loss"].item() == pytest.approx(float(arrays["corrected.loss.total_warmup_f64"]), rel=1e-9)


def test_a_phase_computes_only_what_it_weighs(monkeypatch):
    method = ToCo(tiny_toco(3), **SMALL, contrast_from=5, seg_from=10).train()
    seen = []
    encode, encode_aux = method.student.encode, method.student.encode_aux
    monkeypatch.setattr(method.student, "encode", lambda x: seen.append((len(x), x.shape[-1])) or encode(x))
    monkeypatch.setattr(method.student, "encode_aux", lambda x: seen.append(("aux", x.shape[-1])) or encode_aux(x))
    batch = two_view_batch(3)
    assert sorted(method(batch, 0)) == ["cls_aux_loss", "cls_loss", "loss"]
    assert seen == [(2, 32)]
    seen.clear()
    method(batch, 5)  # both views at once; mirror, half and 1.5 only up to the auxiliary block; crops
    assert seen == [(4, 32), ("aux", 32), ("aux", 16), ("aux", 48), (4, 16)]


def test_the_loss_of_a_batch_is_the_mean_of_the_losses_of_its_groups():
    method = ToCo(tiny_toco(3), **SMALL, seg_from=0, momentum=1.0).train()
    batch = two_view_batch(3, images=4)
    whole = method(batch, 7)
    halves = [method({name: value[part] for name, value in batch.items()}, 7) for part in (slice(0, 2), slice(2, 4))]
    for name, value in whole.items():
        torch.testing.assert_close(value, (halves[0][name] + halves[1][name]) / 2, rtol=1e-4, atol=1e-5, msg=name)


def test_labels_come_from_the_final_classifier_from_the_step_on_that_is_said():
    method, views = ToCo(tiny_toco(3), **SMALL, seg_from=0, aux_labels_before=5), make_views(two_view_batch(3))
    for step, source in ((4, "aux"), (5, "final")):
        seen = method.see(views, step)
        assert set(seen.cams) == {"aux", source}
        assert torch.equal(seen.label_BHW, method.pseudo_label(seen, source))


def test_the_teacher_head_follows_once_per_step():
    method = ToCo(tiny_toco(3), **SMALL, seg_from=0).train()
    batch = two_view_batch(3)
    method.project.rows.data += 1.0
    start = method.project_teacher.rows.clone()
    method(batch, 0)
    method(batch, 0)  # the second micro-batch of one step
    torch.testing.assert_close(method.project_teacher.rows, 0.9 * start + 0.1 * method.project.rows)
    method(batch, 1)
    assert not torch.allclose(method.project_teacher.rows, 0.9 * start + 0.1 * method.project.rows)


def test_the_terms_of_a_copied_method_are_its_own():
    method = ToCo(tiny_toco(3), **SMALL)
    copied = copy.deepcopy(method)
    assert all(term.compute.__self__ is copied for term in copied.schedule.terms.values())


def test_a_mirrored_box_mirrors_back():
    box = torch.tensor([[1, 9, 2, 5], [0, 8, 0, 8]])
    assert mirrored_box(box, 8).tolist() == [[1, 9, 3, 6], [0, 8, 0, 8]]
    assert torch.equal(mirrored_box(mirrored_box(box, 8), 8), box)


def test_each_view_is_made_of_its_own_image_and_colours():
    batch = two_view_batch(3)  # neutral colours; every second local source is mirrored
    batch["photometric"][0, 0, 0], batch["photometric"][0, 1, 4] = 0.5, 1.0  # a darker main view, a grey second one
    views, image, view2 = make_views(batch), batch["image"], batch["view2"] / 255
    torch.testing.assert_close(views.main, image * torch.tensor([0.5, 1.0]).view(2, 1, 1, 1))
    torch.testing.assert_close(views.view2[1], view2[1])
    assert torch.equal(views.view2[0, 0], views.view2[0, 2]) and not torch.equal(view2[0, 0], view2[0, 2])
    torch.testing.assert_close(views.local, torch.stack([image[0], image[1].flip(-1)]))
    assert views.guide is views.main and views.mirrored.tolist() == [False, True]


def test_the_published_box_is_that_of_before_the_views_own_flip():
    batch = {**two_view_batch(3), "main_flip": torch.tensor([False, True])}
    assert make_views(batch).box.tolist() == [[0, 32, 0, 32], [0, 32, 8, 32]]
    assert make_views(batch, toco_compat=True).box.tolist() == [[0, 32, 0, 32], [0, 32, 0, 24]]


def test_options_that_contradict_each_other_are_refused():
    with pytest.raises(ValueError, match="1.0 must be among them"):
        ToCo(tiny_toco(3), cam_scales=(0.5, 1.5))
    with pytest.raises(ValueError, match="bg_threshold"):
        ToCo(tiny_toco(3), bg_threshold=0.8)
    for options, said in (
        ({"ptc_weight": -0.2}, "ptc has weight -0.2"),
        ({"seg_from": -1}, "seg .* starts at step -1"),
    ):
        with pytest.raises(ValueError, match=said):
            ToCo(tiny_toco(3), **options)
    for size in ({"decoder_dim": 0}, {"dilation": 0}):
        with pytest.raises(ValueError, match="wanted decoder_dim .* and dilation .* >= 1"):
            build_toco(3, timm_name="vit_tiny_patch16_224", timm_options={"depth": 3}, **size)


@pytest.mark.parametrize("case", ["segloss_p0", "segloss_p1"])
def test_the_balanced_loss_equals_the_golden_vectors(golden, case):
    arrays = golden(case)
    for labels, name in (("labels", "guard_"), ("up_labels", "up_")):
        if labels not in arrays:
            continue
        logits = torch.from_numpy(arrays["logits"]).double().requires_grad_()
        loss = balanced_segmentation_loss(logits, torch.from_numpy(arrays[labels]))
        loss.backward()
        assert loss.item() == pytest.approx(float(arrays[f"{name}loss_f64"]), rel=1e-9)
        expected = arrays[f"{name}grad_logits_f64"]
        assert np.abs(logits.grad.numpy() - expected).max() <= 1e-6 * np.abs(expected).max() + 1e-9


def test_the_balanced_loss_weighs_a_small_object_like_a_large_background():
    scores = torch.log(torch.tensor([[0.8, 0.2]]))[..., None, None].expand(1, 2, 1, 4)
    label = torch.tensor([[[0, 0, 0, 1]]])
    by_hand = 0.5 * -np.log(0.8) + 0.5 * -np.log(0.2)
    assert balanced_segmentation_loss(scores, label).item() == pytest.approx(by_hand)
    assert balanced_segmentation_loss(scores, torch.full((1, 1, 4), 255)).item() == 0


def test_the_example_of_what_a_step_looks_at():
    raw, mirrored = torch.tensor([[2.0, -1], [2, -3]]), torch.tensor([[0.0, 4], [1, -2]])
    present = torch.tensor([[1]])
    cam = fuse_cams([(raw[None, None], mirrored[None, None])], (2, 2), fuse="toco")
    torch.testing.assert_close(cam[0, 0], torch.tensor([[1.0, 0.0], [0.5, 0.25]]), atol=1e-5, rtol=0)
    assert certainty(cam, bg_threshold=0.25, fg_threshold=0.7).tolist() == [[[2, 0], [1, 0]]]
    assert seed_label(cam, present, bg_threshold=0.25, fg_threshold=0.7).tolist() == [[[2, 0], [255, 0]]]
