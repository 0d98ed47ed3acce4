import torch

from wsss.maps.agreement import agreeing_attention, balanced, walk_along

STRAIGHT, CROSSED = torch.eye(2), torch.eye(2).flip(0)
EVEN = torch.full((2, 2), 0.5)


def test_layers_no_further_from_the_affinity_than_the_mean_are_kept_for_each_image():
    layers = torch.stack([STRAIGHT, CROSSED, EVEN])[:, None].expand(-1, 2, -1, -1)
    # distances 0, 1 and 1/2 from the affinity of the first image, 1, 0 and 1/2 from that of the second
    kept = agreeing_attention(layers, torch.stack([STRAIGHT, CROSSED]))
    torch.testing.assert_close(kept, torch.stack([(STRAIGHT + EVEN) / 2, (CROSSED + EVEN) / 2]))
    torch.testing.assert_close(agreeing_attention(layers, None), torch.stack([EVEN, EVEN]))
    assert torch.equal(agreeing_attention(layers[1:2], STRAIGHT.expand(2, -1, -1)), layers[1])  # one is never left out


def test_columns_and_then_rows_are_divided_by_their_sums_and_the_mean_with_the_transpose_is_taken():
    # columns: 1/2 1/4, 1/2 3/4; rows: 2/3 1/3, 2/5 3/5
    found = balanced(torch.tensor([[[2.0, 1.0], [2.0, 3.0]]]), iterations=1)
    torch.testing.assert_close(found, torch.tensor([[[2 / 3, 11 / 30], [11 / 30, 3 / 5]]]))
    rows = balanced(torch.rand(2, 9, 9) + 0.1, iterations=20).sum(2)
    torch.testing.assert_close(rows, torch.ones(2, 9), atol=1e-3, rtol=0)


def test_a_walk_multiplies_each_map_by_the_weights_once_per_step():
    attention, cam = torch.rand(2, 6, 6), torch.rand(2, 3, 2, 3)
    weights = balanced(attention, iterations=3)
    expected = torch.einsum("bij,bjk,bpk->bpi", weights, weights, cam.flatten(2)).view_as(cam)
    torch.testing.assert_close(walk_along(cam, attention, 2), expected)
    assert torch.equal(walk_along(cam, attention, 0), cam)
