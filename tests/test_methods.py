import pytest
import torch
import torch.nn.functional as F
from networks import tiny_cnn, tiny_vit

from wsss.methods import METHODS, Classify, Distill
from wsss.methods.base import Frozen, classification_loss


def batch_of(images=4, classes=1):
    label = (torch.arange(images)[:, None] % (classes + 1) == torch.arange(classes)).float()
    return {"image": torch.rand(images, 3, 32, 32), "image_label": label}


def build(name, classes=1, **options):
    student = tiny_vit(classes)
    return METHODS[name](student, *([Frozen(tiny_cnn(classes))] if METHODS[name].needs_teacher else []), **options)


VARIANTS = [
    ("classify", {}),
    ("distill", {}),
    ("distill", {"align_weight": 0.0}),
    ("distill", {"target": "features", "level": "spatial", "metric": "l2", "standardise": True}),
]


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_losses_are_finite_and_every_parameter_gets_a_gradient(name, options, classes):
    method = build(name, classes, **options)
    losses = method(batch_of(classes=classes), 0)
    losses["loss"].backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert not [n for n, p in method.named_parameters() if p.grad is None]


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


def test_a_negative_lambda_is_refused():
    with pytest.raises(ValueError, match="align_weight is -1"):
        build("distill", align_weight=-1)
