import pytest
import torch

from wsss.losses.dark_channel import dark_channel, dark_channel_loss, min_max


def test_the_dark_channel_is_the_minimum_over_colours_and_window():
    image = torch.full((1, 3, 5, 7), 0.9)
    image[0, 1, 2, 3] = 0.2  # one dark green value darkens the window around it
    image[0, 2, 0, 6] = 0.5  # one in the corner, cut off by the border
    expected = torch.full((1, 5, 7), 0.9)
    expected[0, 0:2, 5:7] = 0.5
    expected[0, 1:4, 2:5] = 0.2
    torch.testing.assert_close(dark_channel(image, window_px=3), expected)


def test_a_window_of_one_pixel_is_the_minimum_over_colours():
    image = torch.rand(2, 3, 6, 5)
    torch.testing.assert_close(dark_channel(image, window_px=1), image.amin(dim=1))


@pytest.mark.parametrize("window_px", [3, 15])
def test_the_dark_channel_equals_the_definition_at_every_pixel(window_px):
    image, half = torch.rand(2, 3, 20, 9), window_px // 2
    found = dark_channel(image, window_px=window_px)
    for y in range(20):
        for x in range(9):
            window = image[:, :, max(y - half, 0) : y + half + 1, max(x - half, 0) : x + half + 1]
            torch.testing.assert_close(found[:, y, x], window.amin(dim=(1, 2, 3)))


def test_a_veil_lifts_the_dark_channel():
    image = torch.rand(1, 3, 32, 32)
    veiled = 0.4 * image + 0.6 * 0.8  # transmission 0.4, airlight 0.8
    torch.testing.assert_close(dark_channel(veiled), 0.4 * dark_channel(image) + 0.48)


def smoke_left() -> torch.Tensor:
    """8 x 16 pixels: white on the left half, black on the right."""
    image = torch.zeros(1, 3, 8, 16)
    image[..., :8] = 1
    return image


@pytest.mark.parametrize(
    ("attention", "expected"),
    [
        ([[3.0, 1.0], [3.0, 1.0]], 0.0),  # on the smoke only
        ([[1.0, 3.0], [1.0, 3.0]], 0.5),  # on the dark half only: a (1 - d) is 1 in 2 of 4 places
        ([[1.0, 3.0], [3.0, 3.0]], 0.5),
        ([[1.0, 2.0], [3.0, 1.0]], 0.125),  # a = 1/2 in one dark place of 4
    ],
)
def test_the_loss_by_hand(attention, expected):
    loss = dark_channel_loss(torch.tensor([attention]), smoke_left(), window_px=1)
    assert loss.item() == pytest.approx(expected, abs=1e-6)


def test_each_image_is_normalised_by_itself():
    attention, images = torch.rand(2, 4, 4), torch.rand(2, 3, 32, 32)
    alone = [dark_channel_loss(attention[i : i + 1], images[i : i + 1], window_px=3).item() for i in range(2)]
    scaled = attention * torch.tensor([1.0, 1e-3])[:, None, None]
    assert dark_channel_loss(scaled, images, window_px=3).item() == pytest.approx(sum(alone) / 2, abs=1e-5)


def test_the_loss_lowers_attention_on_the_dark_and_not_on_the_smoke():
    attention = torch.tensor([[[0.0, 0.5], [1.0, 0.6]]], requires_grad=True)
    image = smoke_left().requires_grad_()
    dark_channel_loss(attention, image.detach(), window_px=1).backward()
    assert attention.grad[0, 0, 1] > 0 and attention.grad[0, 1, 1] > 0
    assert image.grad is None


@pytest.mark.parametrize("value", [0.0, 1.0, 1 / 1025])
def test_constant_attention_costs_nothing_and_gets_no_gradient(value):
    attention = torch.full((2, 4, 4), value, requires_grad=True)
    loss = dark_channel_loss(attention * 1.0, torch.rand(2, 3, 32, 32))
    loss.backward()
    assert loss.item() == 0 and not attention.grad.any()


def test_attention_constant_up_to_rounding_gets_no_gradient():
    attention = (torch.full((1, 4, 4), 0.1) + 1e-8 * torch.randn(1, 4, 4)).requires_grad_()
    assert attention.amax() > attention.amin()
    dark_channel_loss(attention, torch.rand(1, 3, 32, 32)).backward()
    assert not attention.grad.any()


@pytest.mark.parametrize("brightness", [0.0, 0.5, 1.0])
def test_an_image_with_a_constant_dark_channel_gives_the_mean_attention(brightness):
    attention = torch.rand(1, 4, 4, requires_grad=True)
    loss = dark_channel_loss(attention, torch.full((1, 3, 32, 32), brightness))
    loss.backward()
    torch.testing.assert_close(loss, min_max(attention).mean())
    assert torch.isfinite(attention.grad).all()


def test_the_loss_is_in_the_unit_interval_and_computed_in_float32_for_bf16_inputs():
    for _ in range(20):
        attention, image = torch.rand(2, 6, 5).bfloat16(), torch.rand(2, 3, 96, 80).bfloat16()
        loss = dark_channel_loss(attention, image)
        assert torch.equal(loss, dark_channel_loss(attention.float(), image.float())) and 0 <= loss.item() <= 1


@pytest.mark.parametrize(
    ("image", "window_px", "message"),
    [
        (torch.zeros(1, 3, 8, 8), 4, "window_px is 4; wanted an odd number"),
        (torch.zeros(1, 3, 8, 8), 0, "window_px is 0; wanted an odd number"),
        (torch.zeros(1, 3, 8, 8), -1, "window_px is -1; wanted an odd number"),
        (torch.zeros(1, 1, 8, 8), 3, r"image is \(1, 1, 8, 8\)"),
        (torch.zeros(2, 3, 8), 3, r"image is \(2, 3, 8\)"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), 3, "torch.uint8; wanted .* RGB in \\[0, 1\\]"),
    ],
)
def test_a_bad_window_or_image_is_told(image, window_px, message):
    with pytest.raises(ValueError, match=message):
        dark_channel(image, window_px=window_px)
