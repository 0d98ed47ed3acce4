"""What the trainer relies on, of every method of the registry: one that is listed in support.methods.TOYS is tested."""

import math

import pytest
import torch
from support.methods import TOYS, build

from wsss.methods import METHODS

CASES = [
    pytest.param(name, classes, step, id=f"{name}, {classes} classes, {phase}")
    for name, toy in TOYS.items()
    for classes in (1, 3)
    for phase, step in toy.steps.items()
]


def stepped(name, classes, step, *, seed=0, empty=False):
    """(method, losses of one step): everything random comes from the seed."""
    torch.manual_seed(seed)
    method = build(name, classes, **TOYS[name].options).train()
    batch = TOYS[name].batch(4, classes)
    if empty:
        batch = emptied(batch)
    losses = method(batch, step)
    losses["loss"].backward()
    return method, losses


def emptied(batch):
    """The batch as if no image showed a class."""
    empty = {"image_label": torch.zeros_like(batch["image_label"])}
    empty |= {"mask": torch.zeros_like(batch["mask"])} if "mask" in batch else {}
    empty |= {"present": torch.full_like(batch["present"], -1)} if "present" in batch else {}
    empty |= {"pixel": emptied(batch["pixel"])} if "pixel" in batch else {}
    return {**batch, **empty}


def check_losses(losses):
    assert losses["loss"].requires_grad
    for name, loss in losses.items():
        assert loss.shape == (), f"{name} is of shape {tuple(loss.shape)}; wanted a scalar"
        assert loss.dtype == torch.float32, f"{name} is {loss.dtype}; wanted float32"
        assert torch.isfinite(loss), f"{name} is {loss.item()}"
        assert name == "loss" or name.endswith("_loss") or not loss.requires_grad, f"{name} is logged with its graph"


def check_gradients(method):
    without = [name for name, p in method.named_parameters() if p.requires_grad and p.grad is None]
    assert not without, f"no gradient in this step: {without}; add 0 times what a phase leaves out"
    assert all(torch.isfinite(p.grad).all() for p in method.parameters() if p.requires_grad)


def test_every_method_has_a_toy():
    missing = [name for name in METHODS.ours if name not in TOYS]
    assert not missing, (
        f"methods {missing} have no entry in tests/support/methods.py: add one to TOYS, such as "
        f"'{missing[0]}': Toy(weights={{'cls': 1.0}}, student=tiny_vit, options={{...}})"
    )
    assert set(TOYS) == set(METHODS.ours)


@pytest.mark.parametrize(("name", "classes", "step"), CASES)
def test_losses_are_float32_scalars_and_every_trained_parameter_gets_a_gradient(name, classes, step):
    method, losses = stepped(name, classes, step)
    check_losses(losses)
    check_gradients(method)


@pytest.mark.parametrize(("name", "classes", "step"), CASES)
def test_the_total_is_the_weighed_sum_of_its_parts(name, classes, step):
    _, losses = stepped(name, classes, step)
    parts = {key.removesuffix("_loss"): loss.item() for key, loss in losses.items() if key.endswith("_loss")}
    unknown = sorted(set(parts) - set(TOYS[name].weights))
    assert not unknown, f"parts {unknown} of '{name}' have no weight in tests/support/methods.py: add them to its Toy"
    total = sum(TOYS[name].weights[part] * value for part, value in parts.items())
    assert math.isclose(losses["loss"].item(), total, rel_tol=1e-5, abs_tol=1e-6)


@pytest.mark.parametrize("name", TOYS)
def test_every_weight_of_the_sum_is_of_a_part_that_some_phase_has(name):
    seen = {key.removesuffix("_loss") for step in TOYS[name].steps.values() for key in stepped(name, 3, step)[1]}
    assert set(TOYS[name].weights) <= seen


@pytest.mark.parametrize(("name", "classes", "step"), CASES)
def test_a_batch_in_which_no_image_shows_a_class_is_a_step_like_others(name, classes, step):
    method, losses = stepped(name, classes, step, empty=True)
    check_losses(losses)
    check_gradients(method)


@pytest.mark.parametrize("name", TOYS)
def test_the_same_seed_gives_the_same_losses_and_gradients(name):
    step = max(TOYS[name].steps.values())
    (first, losses), (second, again) = stepped(name, 3, step), stepped(name, 3, step)
    assert {key: loss.item() for key, loss in losses.items()} == {key: loss.item() for key, loss in again.items()}
    gradients = zip(first.parameters(), second.parameters(), strict=True)
    assert all(torch.equal(a.grad, b.grad) for a, b in gradients if a.requires_grad)
    assert losses["loss"].item() != stepped(name, 3, step, seed=1)[1]["loss"].item()


@pytest.mark.parametrize("name", TOYS)
def test_steps_of_one_phase_give_the_same_losses(name):
    found = {}
    for step in sorted({start + more for start in TOYS[name].steps.values() for more in (0, 1)}):
        method, losses = stepped(name, 1, step)
        values = {part: loss.item() for part, loss in losses.items()}
        assert found.setdefault(method.phase(step), values) == values, f"step {step} of {name}"


def split(batch, parts):
    """The batch in equal parts, as micro-batches and processes get them."""
    return [
        {
            name: split(value, parts)[number] if isinstance(value, dict) else value.chunk(parts)[number]
            for name, value in batch.items()
        }
        for number in range(parts)
    ]


def unevenly_labelled(batch):
    """The batch with masks of which some images know much and others little."""
    if "mask" not in batch:
        return batch
    mask = batch["mask"].clone()
    for number in range(len(mask)):
        mask[number, 4 * (number % 8) :] = 255
    few = {"pixel": {name: value[4:] for name, value in batch.items() if name != "pixel"}}
    return {**batch, "mask": mask, **({"pixel": {**few["pixel"], "mask": mask[4:]}} if "pixel" in batch else {})}


def learnt_in_parts(name, classes, step, parts):
    """(mean losses, gradients) of a step whose batch comes in parts, as the trainer gives it to a method."""
    torch.manual_seed(0)
    method = build(name, classes, **TOYS[name].options).train()
    for module in method.modules():  # each process normalises by its own images: the exception
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.eval()
    batches = split(unevenly_labelled(TOYS[name].batch(8, classes)), parts)
    counts = [method.counts(batch) for batch in batches]
    totals = {kind: sum(of_part[kind] for of_part in counts) for kind in counts[0]}
    means: dict[str, float] = {}
    for batch in batches:
        losses = method({**batch, **({"totals": totals, "shares": parts} if totals else {})}, step)
        (losses["loss"] / parts).backward()
        for key, loss in losses.items():
            means[key] = means.get(key, 0.0) + loss.item() / parts
    return means, {key: p.grad for key, p in method.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("name", "classes", "step"), CASES)
def test_a_step_is_the_same_however_its_batch_is_spread_over_processes_and_micro_batches(name, classes, step):
    losses, gradients = learnt_in_parts(name, classes, step, 1)
    for parts in (2, 4):
        of_parts, in_parts = learnt_in_parts(name, classes, step, parts)
        assert of_parts == pytest.approx(losses, rel=1e-4, abs=1e-6)
        for key, gradient in gradients.items():
            torch.testing.assert_close(in_parts[key], gradient, rtol=1e-3, atol=1e-5, msg=lambda m, k=key: f"{k}: {m}")


@pytest.mark.parametrize("name", TOYS)
def test_a_batch_that_is_the_whole_step_needs_no_totals(name):
    step, batch = max(TOYS[name].steps.values()), unevenly_labelled(TOYS[name].batch(8, 3))
    found = []
    for with_totals in (False, True):
        torch.manual_seed(0)
        method = build(name, 3, **TOYS[name].options).train()
        more = {"totals": method.counts(batch), "shares": 1} if with_totals else {}
        losses = method({**batch, **more}, step)
        losses["loss"].backward()
        found.append(({key: loss.item() for key, loss in losses.items()}, [p.grad for p in method.parameters()]))
    assert found[0][0] == found[1][0]  # bit for bit
    assert all(a is b or torch.equal(a, b) for a, b in zip(found[0][1], found[1][1], strict=True))


def test_methods_that_learn_from_masks_count_what_their_means_are_over():
    batch = unevenly_labelled(TOYS["supervised"].batch(8, 1))
    assert build("supervised").counts(batch) == {"labelled": int((batch["mask"] != 255).sum())}
    assert build("mixed").counts(batch) == {"labelled": int((batch["pixel"]["mask"] != 255).sum())}
    assert set(build("affinity", **TOYS["affinity"].options).counts(batch)) == {"bg", "fg", "neg"}
    assert all(
        build(name, **toy.options).counts(toy.batch(8, 1)) == {} for name, toy in TOYS.items() if name not in COUNTED
    )


COUNTED = {"supervised", "mixed", "affinity"}
