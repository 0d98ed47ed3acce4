"""The dense CRF by exact sums next to the lattice, on drawn frames and on noisy regions, and in the jobs."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from launcher.bench.crf import crf_scene
from shards.image_bytes import decode_image
from shards.sources.synthetic import Synthetic
from wsss.refine.crf import dense_crf, mean_field
from wsss.tensors import resize

pytest.importorskip("pydensecrf")
TOCO = {"gaussian_sxy": 1, "gaussian_weight": 1, "bilateral_sxy": 121, "bilateral_srgb": 5, "bilateral_weight": 4}


@pytest.mark.parametrize("number", [1, 2, 10])
def test_masks_of_frames_differ_at_fewer_than_half_a_percent_of_the_pixels(number):
    sample = Synthetic(split="val", num_images=12, size=64, with_masks=True)[number]
    coarse = F.avg_pool2d(torch.from_numpy((sample.mask == 1).astype(np.float32))[None, None], 8)
    scores = 0.9 * resize(coarse, (64, 64))[0].numpy()
    image = decode_image(sample.image, sample.key)
    lattice, exact = (dense_crf(image, scores, by=by)[0] >= 0.3 for by in ("lattice", "exact"))
    assert 0.05 < exact.mean() < 0.5
    assert (lattice != exact).mean() < 0.005


def test_labels_of_several_classes_differ_at_fewer_than_half_a_percent_of_the_pixels():
    image, probs = crf_scene(np.random.default_rng(0), 6, 2, 64, 80)
    lattice, exact = (mean_field(image, probs, iterations=10, **TOCO, by=by).argmax(0) for by in ("lattice", "exact"))
    assert (exact != probs.argmax(0)).mean() > 0.01  # it does something
    assert (lattice != exact).mean() < 0.005
