import pytest
import torch

from wsss.losses.affinity import affinity_loss
from wsss.losses.contrast import class_token_contrast, pair_mask, patch_token_contrast
from wsss.losses.labels import balanced_segmentation_loss, classification_loss, segmentation_loss
from wsss.losses.pairs import affinity_logits
from wsss.losses.regions import feature_distance, scale_cams
from wsss.losses.still import still_loss, still_tokens
from wsss.maps.affinity import transition_matrix
from wsss.maps.agreement import agreeing_attention, walk_along
from wsss.maps.cam import maps_of_present
from wsss.maps.fusion import fold_views, fuse_cams
from wsss.maps.par import pixel_adaptive_refinement

LABEL = torch.arange(2 * 6 * 6).view(2, 6, 6) % 3
PAIRS, FLAGS = pair_mask(LABEL), torch.tensor([[1, 0, 1], [0, 1, 1]])
LOSSES_AND_MAPS = {  # of two images
    "classification": lambda x: classification_loss(x.flatten(1), torch.ones(2, 144)),
    "segmentation": lambda x: segmentation_loss(x, LABEL),
    "balanced segmentation": lambda x: balanced_segmentation_loss(x, LABEL),
    "affinity": lambda x: affinity_loss(x[:, :, :5, :4].flatten(2), LABEL, 2)["loss"],
    "affinity of patches": affinity_logits,
    "patch tokens": lambda x: patch_token_contrast(x, PAIRS),
    "class tokens": lambda x: class_token_contrast(x[:, :3, 0], x[:, 3:, 1], FLAGS, temperature=0.5),
    "maps of a scale": lambda x: scale_cams(x, x[:, :2, 0, :4], (4, 4)),
    "elements": lambda x: feature_distance(x, x.roll(1, 0), form="elements", beta=0.5),
    "length": lambda x: feature_distance(x, x.roll(1, 0)[..., ::2], form="l2norm", beta=0.5),
    "frames": lambda x: still_loss(x[:1], x[1:], torch.ones(1, 6, 6, dtype=torch.bool)),
    "still": lambda x: torch.stack([still_tokens(x[:1, :3], x[1:, :3], (6, 6), n / 256) for n in range(256)]),
    "maps of classes": lambda x: maps_of_present(x, torch.ones(2, 3, 4)),
    "rows of classes": lambda x: maps_of_present(torch.ones(2, 4, 3, 3), x[:, 0, :, :4]),
    "summed views": lambda x: fuse_cams([(x, x.flip(1))], (9, 9)),
    "folded views": lambda x: fold_views([(x, x.flip(1)), (x[..., ::2],)], (9, 9), flips="sum", scales="max"),
    "agreeing attention": lambda x: agreeing_attention(x.unflatten(1, (2, 2)).flatten(1, 2).transpose(0, 1), None),
    "walk": lambda x: walk_along(x[:, :3, :2, :3], x[:, 0], 2),
    "PAR": lambda x: pixel_adaptive_refinement(x[:, :3], x, dilations=(1, 2), num_iter=2),
    "transitions": lambda x: transition_matrix(x[:, :4, 0, :2], (2, 4), radius=2, beta=3.0),
}


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", LOSSES_AND_MAPS)
def test_what_comes_in_bfloat16_is_computed_in_float32(name, autocast):
    x = torch.rand(2, 4, 6, 6).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        found = LOSSES_AND_MAPS[name](x)
    expected = LOSSES_AND_MAPS[name](x.float())
    assert found.dtype == expected.dtype and torch.equal(found, expected)
