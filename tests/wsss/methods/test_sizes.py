"""An option that no step can be made with is refused before the first one, with its value and what fits."""

import inspect
from typing import get_args, get_origin, get_type_hints

import pytest
import torch
from support.methods import TOYS, build

from wsss.methods import METHODS

SIZES = [
    (
        "affinity",
        {"radius": 5},
        32,
        "method.radius is 5; on the 4 x 4 cells of images of 32 px the largest radius is 2",
    ),
    (
        "affinity",
        {"radius": 2},
        8,
        "on the 1 x 1 cells of images of 8 px no radius fits; take a larger data.image_size",
    ),
    (
        "toco",
        {"crop_px": 40},
        32,
        "method.crop_px is 40: an image of 32 x 32 px has 0 places for crops of this size, but",
    ),
    ("toco", {"crop_px": 4}, 32, "method.crop_px is 4, method.crop_num 2; wanted a crop_px of 8 .one patch. or more"),
    (
        "toco",
        {"cam_scales": (1.0, 0.1)},
        32,
        "method.cam_scales has 0.1, at which images of 32 px shrink to 3 px, less than one",
    ),
    (
        "toco",
        {"cam_scales": (1.0, 100.0)},
        32,
        "method.cam_scales has 100; wanted at most 8 times the sides of an image",
    ),
    (
        "toco",
        {"energy_scale": 0.01},
        32,
        "nothing is left of 32 x 32 pixels at scale 0.01; wanted a method.* of 0.031 or",
    ),
    ("msee", {"scales": (1.5, 0.2)}, 32, "method.scales has 0.2, .* wanted 0.25 or more, or a larger data.image_size"),
]


@pytest.mark.parametrize(("name", "options", "side", "told"), SIZES)
def test_a_size_that_does_not_fit_the_images_is_told_before_a_step(name, options, side, told):
    build(name, **TOYS[name].options).check_size(32)
    with pytest.raises(ValueError, match=told):
        build(name, **{**TOYS[name].options, **options}).check_size(side)


def test_what_is_not_computed_is_not_asked_for():
    off = {"ctc_weight": 0.0, "energy_weight": 0.0, "msee_weight": 0.0}
    too_small = {"crop_px": 400, "energy_scale": 0.01, "scales": (0.01,)}
    build("msee", **{**TOYS["msee"].options, **off, **too_small}).check_size(32)


def negative_of(hint):
    """-1 as an option of this type takes it; None of what is no number."""
    parts = get_args(hint)
    if get_origin(hint) is tuple:
        return (-1.0,) if parts[0] is float else (-1,)
    return next((kind(-1) for kind in (int, float) if kind is hint or kind in parts), None)


def takes_a_step(name, **options):
    """Whether a method with these options makes its last step; a ValueError before it is an answer, too."""
    toy = TOYS[name]
    try:
        method = build(name, **{**toy.options, **options})
        method.check_size(32)
        method.check_images(4)
    except ValueError:
        return True
    losses = method.train()(toy.batch(4, 1), max(toy.steps.values()))
    return torch.isfinite(losses["loss"])


@pytest.mark.parametrize("name", TOYS)
def test_no_negative_number_ends_the_first_step(name):
    for cls in inspect.getmro(METHODS[name]):
        hints = get_type_hints(cls.__init__) if "__init__" in vars(cls) else {}
        for option, value in ((option, negative_of(hint)) for option, hint in hints.items()):
            assert value is None or takes_a_step(name, **{option: value}), (name, option)
