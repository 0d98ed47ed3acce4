import pytest
import torch
import torch.nn.functional as F
from support.methods import batch_of, build
from support.networks import tiny_cnn, tiny_frozen, tiny_pcm, tiny_segmenter, tiny_vit

from wsss.losses.labels import classification_loss, segmentation_loss
from wsss.maps.affinity import pair_affinity
from wsss.methods.affinity import Affinity
from wsss.methods.base import Frozen
from wsss.methods.classify import Classify
from wsss.methods.consistency import orthonormal
from wsss.methods.cotrain import CoTrain, is_norm
from wsss.methods.distill import Distill
from wsss.methods.mixed import Mixed, with_zero_background
from wsss.methods.supervised import Supervised

VARIANTS = [
    ("classify", {}),
    ("distill", {}),
    ("distill", {"align_weight": 0.0}),
    ("distill", {"align_weight": 0.0, "time_weight": 1.0, "still": 0.4}),
    ("distill", {"level": "logits", "time_weight": 1.0, "still": 0.4}),
    ("distill", {"target": "features", "level": "spatial", "metric": "l2", "standardise": True}),
    ("distill", {"level": "logits", "tau": 2.0}),
    ("distill", {"level": "map_max", "metric": "centred_cosine", "project": "none"}),
    ("distill", {"target": "features", "project": "both", "project_dim": 5, "level": "channel"}),
    ("distill", {"target": "features", "project_dim": 5, "level": "legacy.inner", "shuffle_teacher": True}),
    ("cotrain", {}),
    ("cotrain", {"gradient": "student", "level": "spatial"}),
    ("cotrain", {"gradient": "alternate", "project": "both", "project_dim": 3}),
    ("cotrain", {"align_weight": 0.0, "freeze_norm": True}),
    ("mixed", {"pixel_weight": 0.2}),
    ("mixed", {"pixel_weight": 0.0}),
    ("supervised", {}),
]


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_losses_are_finite_and_every_parameter_gets_a_gradient(name, options, classes):
    method = build(name, classes, **options)
    for step in (0, 1):
        method.zero_grad(set_to_none=True)
        losses = method(batch_of(classes=classes), step)
        losses["loss"].backward()
        assert all(torch.isfinite(loss) for loss in losses.values())
        assert not [n for n, p in method.named_parameters() if p.requires_grad and p.grad is None]


def test_classification_loss_by_hand():
    # at logit 0 every term is log 2; at +-20 and right, it is 0
    assert classification_loss(torch.zeros(2, 3), torch.eye(3)[:2]).item() == pytest.approx(0.693147, abs=1e-6)
    assert classification_loss(torch.tensor([[20.0, -20.0]]), torch.tensor([[1.0, 0.0]])).item() < 1e-6
    logits, label = torch.randn(4, 3), (torch.rand(4, 3) > 0.5).float()
    by_hand = -(label * F.logsigmoid(logits) + (1 - label) * F.logsigmoid(-logits)).mean()
    torch.testing.assert_close(classification_loss(logits, label), by_hand)


def test_distill_is_classification_plus_lambda_times_alignment():
    method = build("distill", align_weight=0.7)
    losses = method(batch_of(), 0)
    torch.testing.assert_close(losses["loss"], losses["cls_loss"] + 0.7 * losses["align_loss"])


def test_lambda_zero_trains_exactly_like_the_classifier_and_does_not_run_the_teacher():
    torch.manual_seed(1)
    student = tiny_vit()
    calls = []
    teacher = tiny_cnn()
    teacher.register_forward_hook(lambda *_: calls.append(1))
    batch = batch_of()
    losses = Distill(student, Frozen(teacher), align_weight=0.0)(batch, 0)
    losses["loss"].backward()
    distilled = [p.grad.clone() for p in student.parameters()]
    student.zero_grad()
    alone = Classify(student)(batch, 0)["loss"]
    alone.backward()
    assert not calls and "align_loss" not in losses
    assert torch.equal(losses["loss"], alone)
    assert all(torch.equal(a, p.grad) for a, p in zip(distilled, student.parameters(), strict=True))


def test_the_teacher_is_not_trained_saved_or_put_in_train_mode():
    teacher = tiny_cnn()
    method = Distill(tiny_vit(), Frozen(teacher))
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    optimizer = torch.optim.SGD(method.parameters(), lr=0.1)
    method.train()
    for _ in range(2):
        method(batch_of(), 0)["loss"].backward()
        optimizer.step()
    assert not teacher.training and not any(m.training for m in teacher.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())  # BatchNorm too
    assert not any(p.requires_grad or p.grad is not None for p in teacher.parameters())
    owned = {id(p) for p in method.parameters()}
    assert not owned & {id(p) for p in teacher.parameters()}
    assert {name.split(".")[0] for name in method.state_dict()} == {"student", "project"}


def test_alignment_reaches_the_students_features_and_the_projection():
    method = build("distill")
    out = method.student(batch_of()["image"])
    method.align_loss(out, method.teacher(batch_of()["image"])).backward()
    assert method.project.weight.grad.abs().sum() > 0
    assert method.student.backbone.blocks[0].attn.qkv.weight.grad.abs().sum() > 0
    assert method.student.head.weight.grad is None  # the classifier learns from labels alone


def test_training_on_the_teachers_map_brings_the_projected_map_closer():
    method = build("distill")
    optimizer = torch.optim.AdamW(method.parameters(), lr=3e-3)
    batch = batch_of()
    history = []
    for _ in range(30):
        optimizer.zero_grad()
        losses = method(batch, 0)
        losses["loss"].backward()
        optimizer.step()
        history.append(losses["align_loss"].item())
    assert history[-1] < 0.5 * history[0]


def test_projected_features_are_read_through_the_teachers_classifier():
    teacher = tiny_cnn(2)
    method = Distill(tiny_vit(2), Frozen(teacher), target="features").eval()
    with torch.no_grad():
        out = method.student(batch_of(classes=2)["image"])
        maps = method.maps_of(out)
        expected = teacher.head(method.project(out.patches_BDhw))
    assert maps["project"].shape == (4, 2, 4, 4)
    torch.testing.assert_close(maps["project"], expected)


def two_pairs():
    """Two pairs: of the second, only the left half of the image stands still."""
    batch = batch_of()
    batch["image"][1], batch["image"][3] = batch["image"][0], batch["image"][2]
    batch["image"][3, :, :, 16:] = torch.rand(3, 32, 16)
    return batch


@pytest.mark.parametrize(("weight", "read"), [(1.0, "project"), (0.0, "class_map")])
def test_the_loss_over_time_is_of_the_map_that_is_read_and_of_still_places_alone(weight, read):
    method = build("distill", classes=1, align_weight=weight, time_weight=0.5)
    batch = two_pairs()
    losses = method(batch, 0)
    torch.testing.assert_close(
        losses["loss"], losses["cls_loss"] + weight * losses.get("align_loss", 0) + 0.5 * losses["time_loss"]
    )
    x_B1hw = method.maps_of(method.student(batch["image"]))[read]  # 4 x 4 tokens
    still_Phw = torch.ones(2, 4, 4, dtype=torch.bool)
    still_Phw[1, :, 2:] = False
    wanted = []
    for first, second, still in zip(x_B1hw[::2, 0], x_B1hw[1::2, 0], still_Phw, strict=True):
        both = torch.stack([first, second])
        z = (both - both.mean()) / both.std(correction=0)
        wanted.append((z[0] - z[1])[still].square().mean())
    torch.testing.assert_close(losses["time_loss"], torch.stack(wanted).mean(), rtol=1e-3, atol=1e-6)
    assert losses["time_loss"] > 0


def test_without_a_weight_nothing_is_compared_over_time():
    method = build("distill")
    assert "time_loss" not in method(batch_of(3), 0) and not method.compares_pairs
    method.check_images(3)


def test_pairs_are_wanted_whole_and_weights_in_their_range():
    with pytest.raises(ValueError, match="a process has 3 images at a time, which do not form pairs"):
        build("distill", time_weight=1.0).check_images(3)
    build("distill", time_weight=1.0, still=0.0).check_images(4)
    for options in ({"time_weight": -1.0}, {"still": 2.0}, {"still": -0.1}):
        with pytest.raises(ValueError, match="wanted >= 0 and in"):
            build("distill", **options)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("distill", {"align_weight": -1}, "align_weight is -1"),
        ("classify", {"dark_weight": -0.1}, "dark_weight is -0.1; wanted >= 0"),
        ("mixed", {"pixel_weight": -1}, "pixel_weight is -1; wanted >= 0"),
        ("affinity", {"radius": 1}, "radius is 1; wanted 2 or more"),
        ("frozen", {"seg_weight": -1.0}, r"wanted seg_weight \(-1.0\) and pair_weight \(0.1\) >= 0"),
        ("frozen", {"pair_weight": -1.0}, r"wanted seg_weight \(1.0\) and pair_weight \(-1.0\) >= 0"),
        ("frozen", {"attended": 0, "walk_steps": -1}, r"walk_steps \(-1\) in \[0, 100\]"),
        ("frozen", {"attended": 0, "walk_steps": 101}, r"walk_steps \(101\) in \[0, 100\]"),
        ("msee", {"beta": 0.0}, "beta is 0.0; wanted > 0"),
    ],
)
def test_a_number_out_of_its_range_is_refused(name, options, said):
    with pytest.raises(ValueError, match=said):
        build(name, **options)


@pytest.mark.parametrize(("name", "options"), [("toco", {}), ("frozen", {"attended": 0})])
def test_images_that_do_not_divide_into_groups_are_refused(name, options):
    method = build(name, group_size=2, **options)
    method.check_images(4)
    with pytest.raises(ValueError, match="3 images .* groups of 2"):
        method.check_images(3)


def test_without_a_weight_the_dark_channel_is_not_computed():
    assert set(build("classify")(batch_of(), 0)) == {"loss", "cls_loss"}


def test_affinities_come_with_the_grid_of_the_image():
    method, image = build("affinity", radius=2).eval(), torch.rand(2, 3, 32, 64)
    affinity_BOP, grid = method.affinities(image)
    assert grid == method.grid_of((32, 64)) == (4, 8) and not affinity_BOP.requires_grad
    torch.testing.assert_close(affinity_BOP, pair_affinity(method.student(image), 2))
    with pytest.raises(ValueError, match="method affinity trains an affinity_net, not a ViT"):
        Affinity(tiny_vit())


def test_a_teacher_follows_the_images_to_their_device():
    teacher = Frozen(tiny_cnn())
    assert teacher.on(torch.device("cpu")) is teacher.network
    assert {p.device.type for p in teacher.on(torch.device("meta")).parameters()} == {"meta"}


def test_what_a_teacher_does_not_have_is_named():
    with pytest.raises(ValueError, match=r"no \['background'\], only \['class_map', 'features'\]"):
        build("distill", target="class_map+background")
    with pytest.raises(ValueError, match=r"method.project_dim is 0; wanted 1 or more, or null"):
        build("distill", project_dim=0)
    with pytest.raises(ValueError, match="standardise makes every spatial mean 0"):
        build("distill", level="pooled", standardise=True)
    with pytest.raises(ValueError, match="method.freeze_norm: the partner has no BatchNorm; leave it out"):
        build("cotrain", teacher=tiny_vit, freeze_norm=True)


def test_the_published_target_has_the_random_channel_behind_the_class_map():
    method = build("distill", teacher=tiny_pcm, target="class_map+background")
    assert method.project.out_channels == 2
    out = method.student(batch_of()["image"])
    torch.testing.assert_close(method.maps_of(out)["project"], method.project(out.patches_BDhw)[:, :1])
    alone = build("distill", teacher=tiny_pcm, target="background")  # which is no map of a class
    assert "project" not in alone.maps_of(alone.student(batch_of()["image"]))


def test_without_a_projection_only_levels_of_any_width_are_taken():
    with pytest.raises(ValueError, match="project is none, but level 'global' compares channel with channel"):
        build("distill", project="none")
    names = build("distill", project="none", level="map_mean").state_dict()
    assert {name.split(".")[0] for name in names} == {"student"}


def test_a_width_of_its_own_leaves_the_target_fixed_and_keeps_its_angles():
    method = build("distill", target="features", project_dim=16)  # as wide as the teacher's features
    assert method.project_target is None
    layer = orthonormal(4, 9)
    x = torch.randn(2, 4, 3, 3)
    torch.testing.assert_close(layer(x).norm(dim=1), x.norm(dim=1))
    assert not layer.weight.requires_grad


def test_a_shuffled_teacher_shows_the_map_of_another_image():
    torch.manual_seed(3)
    batch = batch_of()
    teacher, student = Frozen(tiny_cnn()), tiny_vit()
    shuffled = Distill(student, teacher, shuffle_teacher=True)
    plain = Distill(student, teacher)
    plain.project.load_state_dict(shuffled.project.state_dict())
    out, seen = student(batch["image"]), teacher(batch["image"])
    rolled = teacher(batch["image"].roll(1, 0))
    torch.testing.assert_close(shuffled.align_loss(out, seen), plain.align_loss(out, rolled), atol=1e-5, rtol=1e-5)
    assert abs(shuffled.align_loss(out, seen) - plain.align_loss(out, seen)) > 1e-4


@pytest.mark.parametrize("level", ["global", "logits", "legacy.logits"])
def test_a_shuffled_teacher_of_one_image_at_a_time_is_refused_since_it_would_be_the_treatment(level):
    teacher = Frozen(tiny_cnn())
    method = Distill(tiny_vit(), teacher, shuffle_teacher=True, level=level)
    batch = {name: value[:1] for name, value in batch_of().items() if name in ("image", "image_label")}
    with pytest.raises(ValueError, match="shuffle_teacher: a process has one image at a time"):
        method(batch, 0)
    with pytest.raises(ValueError, match="shuffle_teacher"):
        method.check_images(1)
    method.check_images(2)
    Distill(tiny_vit(), teacher, level=level)(batch, 0)


@pytest.mark.parametrize("level", ["legacy.logits", "global"])
def test_a_temperature_that_a_level_does_not_have_is_refused_at_once(level):
    with pytest.raises(
        ValueError, match=rf"tau is 2.0 at the level '{level}'; only channel_softmax, logits have a temperature"
    ):
        Distill(tiny_vit(), Frozen(tiny_cnn()), level=level, tau=2.0)
    Distill(tiny_vit(), Frozen(tiny_cnn()), level="logits", tau=2.0)


@pytest.mark.parametrize(
    ("gradient", "step", "student_moves", "partner_moves"),
    [
        ("both", 0, True, True),
        ("student", 0, True, False),
        ("alternate", 0, True, False),
        ("alternate", 1, False, True),
        ("alternate", 2, True, False),
        ("alternate", 3, False, True),
    ],
)
def test_co_training_aligns_whom_it_says(gradient, step, student_moves, partner_moves):
    method = CoTrain(tiny_vit(), tiny_cnn(), gradient=gradient)
    batch = batch_of()
    losses = method(batch, step)
    grads = torch.autograd.grad(
        losses["align_loss"],
        [method.student.backbone.blocks[0].attn.qkv.weight, method.partner.head.weight],
        allow_unused=True,
    )
    assert [g is not None and bool(g.abs().sum() > 0) for g in grads] == [student_moves, partner_moves]
    assert (method.phase(step) == method.phase(step + 1)) == (gradient != "alternate")
    assert method.phase(step) == method.phase(step + 2)


def test_co_training_is_two_classifications_and_lambda_times_the_alignment():
    method = CoTrain(tiny_vit(), tiny_cnn(), align_weight=0.5)
    losses = method(batch_of(), 0)
    expected = losses["cls_loss"] + losses["partner_loss"] + 0.5 * losses["align_loss"]
    torch.testing.assert_close(losses["loss"], expected)
    assert any(name.startswith("partner.") for name in method.state_dict())


def test_frozen_norms_of_the_partner_keep_their_statistics():
    for freeze_norm, moved in ((True, False), (False, True)):
        method = CoTrain(tiny_vit(), tiny_cnn(), freeze_norm=freeze_norm).train()
        before = {n: b.clone() for n, b in method.partner.named_buffers() if "running_mean" in n}
        method(batch_of(), 0)
        assert any(not torch.equal(before[n], b) for n, b in method.partner.named_buffers() if n in before) == moved
        trained = [module.training for module in method.partner.modules() if not is_norm(module)]
        assert all(trained) and method.student.training
        assert not any(module.training for module in method.eval().modules())


def test_segmentation_loss_by_hand():
    # two pixels right at +-20, one ignored, one undecided: (0 + 0 + log 2) / 3
    logits = torch.tensor([[[[0.0, 0.0, 9.0, 0.0]], [[20.0, -20.0, -9.0, 0.0]]]])
    mask = torch.tensor([[[1, 0, 255, 1]]], dtype=torch.uint8)
    assert segmentation_loss(logits, mask).item() == pytest.approx(0.693147 / 3, abs=1e-6)
    mask[..., :3] = 255  # the undecided one alone
    assert segmentation_loss(logits, mask).item() == pytest.approx(0.693147, abs=1e-6)


def test_segmentation_loss_without_a_labelled_pixel_is_zero_and_differentiable():
    logits = torch.randn(1, 2, 2, 2, requires_grad=True)
    loss = segmentation_loss(logits, torch.full((1, 4, 4), 255, dtype=torch.uint8))
    loss.backward()
    assert loss.item() == 0 and logits.grad.abs().sum() == 0


def test_masks_reach_the_network_through_the_class_map():
    # the published attempt cut the gradient at the CAM: here the pixel loss alone must move the first block
    method = Mixed(tiny_vit())
    losses = method(batch_of(), 0)
    (gradient,) = torch.autograd.grad(losses["pixel_loss"], method.student.backbone.blocks[0].attn.qkv.weight)
    assert gradient.abs().sum() > 0
    assert with_zero_background(torch.ones(1, 1, 2, 2)).softmax(1)[0, 1, 0, 0].item() == pytest.approx(
        0.731059, abs=1e-6
    )
    assert with_zero_background(torch.ones(1, 3, 1, 1)).flatten().tolist() == [0, 1, 1, 1]


def test_a_supervised_network_gives_probabilities_and_a_classifier_cannot_take_its_place():
    method = build("supervised", 3).eval()
    with torch.no_grad():
        seg = method.maps_of(method.student(batch_of()["image"]))["seg"]
    assert seg.shape[:2] == (4, 3) and seg.min() >= 0 and seg.sum(1).max() <= 1 + 1e-6
    with pytest.raises(ValueError, match="gives no segmentation scores; choose setr"):
        Supervised(tiny_vit())(batch_of(), 0)


def classified_by_texts(classes):
    network = tiny_frozen(classes, texts=("a", "b", "c")[:classes])
    torch.nn.init.normal_(network.head.text_PD)
    return network


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("teacher", [classified_by_texts, tiny_segmenter])
def test_a_teacher_whose_head_is_no_classifier_of_k_channels_has_k_maps(teacher, classes):
    method = build("distill", classes, teacher)
    method(batch_of(classes=classes), 0)["loss"].backward()
    maps = method.maps_of(method.student(torch.rand(1, 3, 32, 32)))
    assert maps["project"].shape == (1, classes, 4, 4)
    of_features = build("distill", classes, teacher, target="features")
    of_features(batch_of(classes=classes), 0)["loss"].backward()
    assert "project" not in of_features.maps_of(method.student(torch.rand(1, 3, 32, 32)))  # nothing linear reads them
