import pytest
import torch

from wsss.losses.still import still_loss, still_tokens


def test_a_token_is_still_where_its_pixels_hardly_differ():
    first = torch.rand(1, 3, 4, 8) * 0.5
    second = first + 0.01  # a breath everywhere
    second[0, 0, 0, 0] += 0.47  # one value of the 12 of a token of 2 x 2: mean 0.01 + 0.47 / 12 = 0.049
    second[0, :, 2, 6] += 0.2  # one pixel of another: 0.01 + 0.2 / 4 = 0.06
    found = still_tokens(first, second, (2, 4), 0.05)
    wanted = torch.ones(1, 2, 4, dtype=torch.bool)
    wanted[0, 1, 3] = False
    assert torch.equal(found, wanted)
    assert torch.equal(still_tokens(second, first, (2, 4), 0.05), wanted)  # whichever frame comes first
    assert still_tokens(first, first, (2, 4), 0.0).all()


def test_two_maps_by_hand():
    """Values 0, 2 and 2, 0 have mean 1 and variance 1: z is -1, 1 and 1, -1, each square of a difference is 4."""
    first, second = torch.tensor([[[[0.0, 2.0]]]]), torch.tensor([[[[2.0, 0.0]]]])
    both, one, none = (torch.tensor([[[a, b]]]) for a, b in ((True, True), (True, False), (False, False)))
    assert still_loss(first, second, both).item() == pytest.approx(4.0, abs=1e-4)
    assert still_loss(first, second, one).item() == pytest.approx(4.0, abs=1e-4)
    assert still_loss(first, second, none).item() == 0.0
    # a variance of 1e-6 is as large as what is added to it
    assert still_loss(first / 1000, second / 1000, both).item() == pytest.approx(2.0, abs=1e-4)
    # a pair without still tokens counts as a pair whose maps are equal
    pairs = still_loss(torch.cat([first, first]), torch.cat([second, second]), torch.cat([one, none]))
    assert pairs.item() == pytest.approx(2.0, abs=1e-4)
    # two channels, of which one does not change: the mean of 4 and 0
    assert still_loss(first.expand(1, 2, 1, 2), torch.cat([second, first], dim=1), both).item() == pytest.approx(
        2.0, abs=1e-4
    )


@pytest.mark.parametrize("case", ["constant", "equal", "nothing still"])
def test_nothing_to_compare_is_0_with_a_gradient_of_0(case):
    first = torch.full((2, 2, 3, 4), 0.7) if case == "constant" else torch.randn(2, 2, 3, 4)
    second = torch.randn(2, 2, 3, 4) if case == "nothing still" else first.clone()
    first, second = first.requires_grad_(), second.requires_grad_()
    loss = still_loss(first, second, torch.full((2, 3, 4), case != "nothing still"))
    loss.backward()
    assert loss.item() == 0
    assert all(torch.equal(x.grad, torch.zeros_like(x)) for x in (first, second))


def test_scale_and_offset_of_the_maps_are_free_and_both_frames_learn():
    first, second = torch.randn(3, 2, 4, 5).requires_grad_(), torch.randn(3, 2, 4, 5).requires_grad_()
    still = torch.rand(3, 4, 5) > 0.3
    loss = still_loss(first, second, still)
    torch.testing.assert_close(still_loss(5 * first - 2, 5 * second - 2, still), loss, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(still_loss(second, first, still), loss)
    loss.backward()
    for x in (first, second):
        assert x.grad.abs().sum() > 0
    # nothing is gained by shrinking the maps
    assert abs(sum((x.grad * x).sum().item() for x in (first, second))) < 1e-5


def test_what_moves_does_not_count_and_unrelated_maps_have_about_2():
    first, second = torch.randn(64, 1, 12, 12), torch.randn(64, 1, 12, 12)
    assert still_loss(first, second, torch.ones(64, 12, 12, dtype=torch.bool)).item() == pytest.approx(2.0, abs=0.1)
    still = torch.ones(64, 12, 12, dtype=torch.bool)
    still[:, :6] = False
    same = torch.cat([second[:, :, :6], first[:, :, 6:]], dim=2)  # other only where something moves
    assert still_loss(first, same, still).item() == 0


def test_wrong_shapes_are_told():
    with pytest.raises(ValueError, match=r"wanted \(P, C, h, w\) twice and \(P, h, w\)"):
        still_loss(torch.rand(2, 1, 3, 3), torch.rand(1, 1, 3, 3), torch.ones(2, 3, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"tokens \(1, 3, 3\)"):
        still_loss(torch.rand(2, 1, 3, 3), torch.rand(2, 1, 3, 3), torch.ones(1, 3, 3, dtype=torch.bool))
