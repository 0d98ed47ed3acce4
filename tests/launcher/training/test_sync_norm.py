"""BatchNorm joined over GPUs: what is converted must stay the network that it was."""

import copy

import pytest
import torch
from support.networks import tiny_affinity_net, tiny_cnn, tiny_pcm
from torch import nn

from launcher.training.run import convert_sync_batchnorm
from wsss.models import MODELS

NETWORKS = {
    "cnn": tiny_cnn,
    "pcm": tiny_pcm,
    "affinity_net": tiny_affinity_net,
    "cnn of EfficientNet": lambda: MODELS["cnn"](1, timm_name="efficientnet_b0", output_stride=8),
    "cnn of RegNet": lambda: MODELS["cnn"](1, timm_name="regnety_002", output_stride=8),
    "conformer": lambda: MODELS["conformer"](1, embed_dim=16, depth=3, num_heads=2, channel_ratio=1),
    "deeplab": lambda: MODELS["deeplab"](1, timm_name="resnet10t"),
    "setr": lambda: MODELS["setr"](
        1, patch_size=8, image_size=64, hidden_dim=32, mlp_dim=32, layers=2, heads=2, widths=(32, 16)
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_with_joined_norms_gives_the_same_outputs(name):
    """torch's own conversion drops the activation inside timm's BatchNormAct2d, in silence."""
    torch.manual_seed(0)
    network = NETWORKS[name]()
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    for norm in norms:  # as after a training: no norm that does nothing
        nn.init.uniform_(norm.running_var, 0.5, 2)
        nn.init.normal_(norm.running_mean, std=0.1)
    converted = convert_sync_batchnorm(copy.deepcopy(network)).eval()
    assert sum(isinstance(module, nn.SyncBatchNorm) for module in converted.modules()) == len(norms)
    image = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        before, after = network.eval()(image), converted(image)
    for name, value in vars(before).items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(vars(after)[name], value, rtol=0, atol=0)
