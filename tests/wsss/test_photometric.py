import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tv
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from torch.nn.functional import pad

from wsss.photometric import COLUMNS, RADIUS, photometric

NEUTRAL = (1, 1, 1, 0, 0, 0, 0, 0)


def parameters(images, **columns):
    """(B, 8), neutral but for these."""
    values = torch.tensor([NEUTRAL] * images, dtype=torch.float32)
    for name, value in columns.items():
        values[:, COLUMNS.index(name)] = torch.as_tensor(value, dtype=torch.float32)
    return values


@pytest.fixture
def image():
    """(4, 3, 23, 31): smooth colours with noise, a grey picture among them, values that 8 bits can hold."""
    y, x = torch.linspace(0, 1, 23)[:, None], torch.linspace(0, 1, 31)[None]
    smooth = torch.stack([y * x, (1 - y) * x.expand(23, 31), (y + 1 - x) / 2])
    noisy = (smooth + 0.3 * torch.rand(4, 3, 23, 31)).clamp(0, 1)
    noisy[3] = noisy[3, :1]
    return (noisy * 255).round() / 255


def as_pil(image_3HW):
    return Image.fromarray((image_3HW * 255).round().byte().permute(1, 2, 0).numpy())


def assert_like_pil(got, image, change):
    """Within the rounding of what PIL does to each image: it cuts to 8 bits, and rounds a grey image on the way."""
    for mine, before in zip(got, image, strict=True):
        theirs = np.asarray(change(as_pil(before)).convert("RGB"), dtype=np.float32) / 255
        assert np.abs(mine.permute(1, 2, 0).numpy() - theirs).max() <= 1.5 / 255


def test_neutral_parameters_leave_every_bit(image):
    assert torch.equal(photometric(image, parameters(4)), image)


@pytest.mark.parametrize("factor", [0.0, 0.6, 1.4, 3.0])
@pytest.mark.parametrize(
    ("name", "enhancer", "adjust"),
    [
        ("brightness", ImageEnhance.Brightness, tv.adjust_brightness),
        ("contrast", ImageEnhance.Contrast, tv.adjust_contrast),
        ("saturation", ImageEnhance.Color, tv.adjust_saturation),
    ],
)
def test_brightness_contrast_and_saturation_are_torchvisions_and_pils(image, name, enhancer, adjust, factor):
    got = photometric(image, parameters(4, **{name: factor}))
    torch.testing.assert_close(got, adjust(image, factor), rtol=0, atol=3e-4)  # its grey is 0.2989 R + ..., not 0.299
    if factor <= 1.4:  # PIL rounds the mean grey and the grey image, which larger factors enlarge
        assert_like_pil(got, image, lambda picture: enhancer(picture).enhance(factor))


@pytest.mark.parametrize("shift", [-0.5, -0.1, 0.03, 0.1, 0.4, 0.5])
def test_hue_is_torchvisions(image, shift):
    got = photometric(image, parameters(4, hue=shift))
    torch.testing.assert_close(got, tv.adjust_hue(image, shift), rtol=0, atol=1e-5)
    assert (got[3] - image[3]).abs().max() < 1e-6 and (got[0] - image[0]).abs().max() > 0.01  # grey has no hue


def test_hue_by_hand():
    colours = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [0.2, 0.8, 0.5], [0, 0, 0]]).T.view(1, 3, 1, 5)
    third = photometric(colours, parameters(1, hue=1 / 3))  # red -> green -> blue -> red
    expected = torch.tensor([[0, 1.0, 0], [0, 0, 1], [1, 0, 0], [0.5, 0.2, 0.8], [0, 0, 0]]).T.view(1, 3, 1, 5)
    torch.testing.assert_close(third, expected, rtol=0, atol=1e-6)


def test_grey_is_pils(image):
    got = photometric(image, parameters(4, grey=1))
    assert_like_pil(got, image, lambda picture: picture.convert("L"))
    assert torch.equal(got[:, 0], got[:, 1]) and torch.equal(got[:, 0], got[:, 2])


def test_solarise_is_pils_and_torchvisions(image):
    got = photometric(image, parameters(4, solarise=1))
    assert torch.equal(got, tv.solarize(image, 0.5))
    assert_like_pil(got, image, lambda picture: ImageOps.solarize(picture, 128))


def test_mirror_turns_left_to_right_before_all_else(image):
    assert torch.equal(photometric(image, parameters(4, mirror=1)), image.flip(-1))
    changed = {"contrast": 1.3, "hue": 0.1, "blur": 1.0, "solarise": 1}
    both = photometric(image, parameters(4, mirror=1, **changed))
    torch.testing.assert_close(both, photometric(image, parameters(4, **changed)).flip(-1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("sigma", [0.1, 0.7, 2.0])
def test_blur_is_a_gaussian_over_repeated_borders(image, sigma):
    wide = pad(image, (RADIUS,) * 4, mode="replicate")
    expected = tv.gaussian_blur(wide, [2 * RADIUS + 1] * 2, [sigma] * 2)[..., RADIUS:-RADIUS, RADIUS:-RADIUS]
    torch.testing.assert_close(photometric(image, parameters(4, blur=sigma)), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("sigma", [1.0, 2.0])
def test_blur_is_pils_away_from_the_border(image, sigma):
    """Where it is wide: for sigma < 0.5 a Gaussian at whole pixels blurs less than PIL's boxes of variance sigma^2."""
    got = photometric(image, parameters(4, blur=sigma))
    for mine, before in zip(got, image, strict=True):
        theirs = np.asarray(as_pil(before).filter(ImageFilter.GaussianBlur(sigma)), dtype=np.float32) / 255
        assert np.abs(mine.permute(1, 2, 0).numpy() - theirs)[6:-6, 6:-6].max() < 0.01


def test_blur_keeps_the_sum_of_a_point_and_spreads_it_by_sigma():
    point = torch.zeros(1, 3, 41, 41)
    point[..., 20, 20] = 1
    for sigma in (1.0, 2.0):
        spread = photometric(point, parameters(1, blur=sigma))[0, 1].double()
        assert spread.sum().item() == pytest.approx(1, abs=1e-5)
        variance = (spread.sum(dim=0) * (torch.arange(41) - 20) ** 2).sum()
        assert variance.sqrt().item() == pytest.approx(sigma, rel=0.02)


def test_each_image_has_its_own_parameters_and_none_of_its_neighbours(image):
    rows = torch.tensor(
        [
            [1.3, 0.7, 1.2, 0.1, 0, 1.5, 1, 1],
            [0.7, 1.4, 0.8, -0.1, 1, 0.3, 0, 0],
            [1.0, 1.0, 1.0, 0.0, 0, 0.0, 0, 0],
            [1.0, 1.4, 1.0, 0.0, 0, 2.0, 0, 1],
        ]
    )
    together = photometric(image, rows)
    alone = torch.cat([photometric(image[i : i + 1], rows[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)
    assert torch.equal(together[2], image[2])
    assert together.min() >= 0 and together.max() <= 1


def test_the_order_is_brightness_contrast_saturation_hue_grey_blur_solarise(image):
    row = parameters(4, brightness=1.4, contrast=0.6, saturation=1.2, hue=0.1, blur=1.0, solarise=1)
    x = tv.adjust_saturation(tv.adjust_contrast(tv.adjust_brightness(image, 1.4), 0.6), 1.2)
    x = pad(tv.adjust_hue(x, 0.1), (RADIUS,) * 4, mode="replicate")
    x = tv.gaussian_blur(x, [13, 13], [1.0, 1.0])[..., RADIUS:-RADIUS, RADIUS:-RADIUS]
    got, near_half = photometric(image, row), (x - 0.5).abs() < 2e-3
    torch.testing.assert_close(got[~near_half], tv.solarize(x, 0.5)[~near_half], rtol=0, atol=2e-3)
    assert near_half.float().mean() < 0.05
    grey = photometric(image, parameters(4, hue=0.1, grey=1, saturation=1.4))
    torch.testing.assert_close(
        grey, tv.rgb_to_grayscale(tv.adjust_hue(tv.adjust_saturation(image, 1.4), 0.1), 3), rtol=0, atol=1e-3
    )


def test_images_smaller_than_the_kernel_are_blurred(image):
    flat = torch.full((1, 3, 2, 1), 0.4)
    torch.testing.assert_close(photometric(flat, parameters(1, blur=2.0)), flat)


def test_it_runs_in_float32_under_autocast_and_takes_other_types(image):
    row = parameters(4, contrast=1.3, hue=0.1, blur=1.0)
    expected = photometric(image, row)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(photometric(image, row), expected)
    assert photometric(image.half(), row).dtype == torch.float32
    assert photometric(image.double(), row.double()).dtype == torch.float64
    assert not photometric(image.requires_grad_(), row).requires_grad


def test_parameters_of_another_shape_are_told(image):
    with pytest.raises(ValueError, match=r"parameters \(4, 7\) for 4 images; wanted \(4, 8\): brightness, contrast"):
        photometric(image, parameters(4)[:, :7])
    with pytest.raises(ValueError, match=r"parameters \(1, 8\) for 4 images"):
        photometric(image, parameters(1))
