import pytest
import torch
from support.networks import tiny_toco, two_view_batch
from support.toys import SMALL

from wsss.losses.labels import classification_loss
from wsss.maps.cam import packed_rows
from wsss.methods import looks
from wsss.methods.looks import make_views
from wsss.methods.msee import MSEE
from wsss.methods.toco import ToCo
from wsss.models.toco import build_toco


def msee(**options) -> MSEE:
    torch.manual_seed(0)
    return MSEE(tiny_toco(3), **{**SMALL, "crop_px": 24, "seg_from": 0, **options}).train()


def loss_by_hand(method: MSEE, batch: dict) -> torch.Tensor:
    """Eq. 1-7 read off the page, one image and one scale after the other; every position is inside the box of image 0,
    the box of image 1 leaves out its first column."""
    views = make_views(batch)
    student = method.student
    out = student(views.main)
    total = torch.zeros(())
    kept: dict[int, torch.Tensor] = {}
    for scale in method.scales:
        size = int(scale * 32)
        view = torch.nn.functional.interpolate(views.main, size=(size, size), mode="bilinear", align_corners=False)
        other = student(view)
        target = torch.nn.functional.interpolate(other.patches_BDhw.detach(), size=(4, 4), mode="bilinear")
        weighted, positions = 0.0, 0
        for image in range(2):
            inside = torch.ones(4, 4, dtype=torch.bool)
            inside[:, 0] = image == 0
            present = [k for k in range(3) if batch["image_label"][image, k] > 0]
            raw = torch.relu(other.class_map_BKhw[image, present])
            raw = raw / (raw.amax(dim=(1, 2), keepdim=True) + 1e-5)
            m = torch.nn.functional.interpolate(raw[None], size=(4, 4), mode="bilinear")[0].amax(0)
            allowed = [0, *(k + 1 for k in present)]
            segmented = out.seg_logits_BChw[image, allowed].argmax(0)
            object_ = (segmented > 0) & inside
            fires = m > m[object_].mean() if object_.any() else torch.zeros(4, 4, dtype=torch.bool)
            free = kept.setdefault(image, inside.clone())
            region = fires & free
            kept[image] = free & ~fires
            difference = (out.patches_BDhw[image] - target[image]).abs()
            huber = torch.where(
                difference <= method.beta, difference**2 / (2 * method.beta), difference - method.beta / 2
            )
            weighted = weighted + huber.mean(0)[region].sum()
            positions += int(region.sum())
        total = total + weighted / (positions + 1)
    return total


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("scales", [(1.5, 0.5), (0.5,), (1.5, 2.0, 0.5, 0.75)])
def test_the_loss_is_that_of_the_equations_written_out(seed, scales):
    torch.manual_seed(seed)
    method = MSEE(tiny_toco(3), **SMALL, seg_from=0, scales=scales).train()
    batch = two_view_batch(3, seed=seed)
    expected = loss_by_hand(method, batch)
    torch.testing.assert_close(method(batch, 1)["msee_loss"], expected, rtol=1e-4, atol=1e-6)


def test_without_its_weight_it_is_toco():
    torch.manual_seed(0)
    toco = ToCo(tiny_toco(3), **{**SMALL, "crop_px": 24}, seg_from=0).train()
    method = msee(msee_weight=0.0)
    method.load_state_dict(toco.state_dict())
    batch = two_view_batch(3)
    for name, value in toco(batch, 1).items():
        torch.testing.assert_close(method(batch, 1)[name], value, msg=name)


def test_teachers_that_toco_looks_at_anyway_cost_no_pass(monkeypatch):
    seen = []
    for factory in (lambda: msee(msee_weight=0.0), msee):
        method, passes = factory(), []
        encode = method.student.encode
        monkeypatch.setattr(method.student, "encode", lambda x, e=encode, p=passes: p.append(tuple(x.shape)) or e(x))
        method(two_view_batch(3), 1)
        seen.append(passes)
    assert seen[0] == seen[1]


def test_what_an_image_shows_is_picked_from_each_classifier_once(monkeypatch):
    method, rows = msee(seg_from=0, contrast_from=0), []
    monkeypatch.setattr(looks, "packed_rows", lambda *given: rows.append(packed_rows(*given)) or rows[-1])
    method(two_view_batch(), 2)
    assert len(rows) == 2


def test_a_teacher_gets_gradients_only_where_it_is_asked_to(monkeypatch):
    def depends_on_the_small_scale(method: MSEE) -> bool:
        found = []
        encode = method.student.encode

        def watched(image):
            tokens = encode(image)
            found.extend([tokens.patches_BDhw.requires_grad] if image.shape[-1] == 16 and len(image) == 2 else [])
            return tokens

        monkeypatch.setattr(method.student, "encode", watched)
        method(two_view_batch(3), 1)["loss"].backward()
        return any(found)

    assert not depends_on_the_small_scale(msee())
    assert depends_on_the_small_scale(msee(teacher_grad=True))


def test_the_loss_pulls_the_features_to_the_teachers():
    """A step along the gradient of this loss alone makes it smaller where the teachers stay."""
    method = msee(region_masks=False)
    batch = two_view_batch(3)
    seen = method.see(make_views(batch), 1)
    loss = method.msee_loss(seen)
    (gradient,) = torch.autograd.grad(loss, seen.main.patches_BDhw)
    moved = seen.main.patches_BDhw - 50 * gradient
    object.__setattr__(seen.main, "patches_BDhw", moved)
    assert method.msee_loss(seen) < loss


def test_every_switch_changes_the_loss_and_keeps_every_gradient():
    batch = two_view_batch(3)
    reference = msee()(batch, 1)["msee_loss"]
    switches = [
        {"classes": "per_class"},
        {"distance": "l2norm"},
        {"reduction": "sum"},
        {"region_masks": False},
        {"beta": 0.3},
        {"scales": (0.5, 1.5)},
    ]
    for switch in switches:
        method = msee(**switch)
        losses = method(batch, 1)
        losses["loss"].backward()
        assert not torch.allclose(losses["msee_loss"], reference), switch
        assert all(p.grad is not None for p in method.parameters() if p.requires_grad), switch


def test_classification_of_the_teachers_is_added_where_it_is_asked_for():
    method, batch = msee(teacher_grad=True, scale_cls_weight=1.0), two_view_batch(3)
    found = method(batch, 1)["scale_cls_loss"]
    at = method.see(make_views(batch), 1).looks
    of_scales = [method.student.classify(at[s].features["final"], at[s].features["aux"]) for s in (1.5, 0.5)]
    expected = sum(classification_loss(logits, batch["image_label"]) for both in of_scales for logits in both)
    torch.testing.assert_close(found, expected)
    with pytest.raises(ValueError, match="teacher_grad"):
        msee(scale_cls_weight=1.0)


def test_what_a_scale_teaches_can_be_watched():
    method = msee()
    losses = method(two_view_batch(3), 1)
    for scale in (1.5, 0.5):
        assert 0 <= losses[f"region_{scale}"] <= 1 and losses[f"distance_{scale}"] > 0
        assert not losses[f"distance_{scale}"].requires_grad
    everywhere = msee(region_masks=False)(two_view_batch(3), 1)
    assert everywhere["region_0.5"] == pytest.approx(
        (16 + 12) / 32
    )  # all cells of one image, three columns of the other
    assert "region_1.5" not in msee(msee_from=5)(two_view_batch(3), 4)


def test_before_its_start_it_neither_decodes_nor_adds():
    method = msee(seg_from=10, msee_from=5)
    batch = two_view_batch(3)
    assert "msee_loss" not in method(batch, 4)
    losses = method(batch, 5)
    assert "msee_loss" in losses and "seg_loss" not in losses
    losses["loss"].backward()
    assert all(p.grad is not None for p in method.parameters() if p.requires_grad)


def test_impossible_scales_are_refused():
    for scales in ((), (1.0,), (0.5, 0.5), (1.5, -1.0), (0.0,)):
        with pytest.raises(ValueError, match="scales"):
            msee(scales=scales)


def test_a_step_never_waits_for_the_device():
    """Tensors without values cannot be read by the host: a step that runs on them reads none."""
    method = msee().to("meta")
    batch = {name: value.to("meta") for name, value in two_view_batch(3).items()}
    losses = method(batch, 1)
    losses["loss"].backward()
    assert set(losses) >= {"ptc_loss", "ctc_loss", "seg_loss", "energy_loss", "msee_loss"}
    with pytest.raises(RuntimeError):
        losses["loss"].item()


def test_the_pictures_show_every_scale_the_label_and_where_each_scale_teaches():
    method = msee().eval()
    batch = two_view_batch(3)
    shown = method.pictures(batch)
    names = ["cam at scale 0.5", "cam at scale 1", "cam at scale 1.5", "pseudo label", "region of scale 1.5"]
    assert [*names, "region of scale 0.5"] == list(shown)
    assert shown["pseudo label"].shape == (2, 32, 32) and not shown["pseudo label"].is_floating_point()
    assert all(picture.min() >= 0 and picture.max() <= 1 for name, picture in shown.items() if name != "pseudo label")
    assert (shown["region of scale 1.5"] * shown["region of scale 0.5"]).sum() == 0


@pytest.mark.parametrize(
    "timm_name", ["vit_small_patch16_dinov3", "eva02_tiny_patch14_224", "vit_small_patch14_dinov2"]
)
def test_a_step_on_todays_pretrained_networks_trains_all_of_the_student(timm_name):
    options = {"embed_dim": 16, "depth": 3, "num_heads": 2, "patch_size": 8, "img_size": 32}
    student = build_toco(3, timm_name=timm_name, decoder_dim=8, dilation=1, timm_options=options)
    method = MSEE(student, **{**SMALL, "crop_px": 24, "seg_from": 0}).train()
    losses = method(two_view_batch(), 0)
    losses["loss"].backward()
    assert losses["msee_loss"] > 0 and losses["ptc_loss"] > 0
    without = {name for name, p in student.named_parameters() if p.requires_grad and p.grad is None}
    assert not without
    assert (student.backbone.pos_embed is None) == ("dinov3" in timm_name)
