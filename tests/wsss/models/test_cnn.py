import pytest
import torch
from support.networks import tiny_cnn

from wsss.models.cnn import build_cnn, create_stages, last_stages


def test_logits_are_the_mean_of_the_class_map():
    cnn = tiny_cnn(num_classes=3).eval()
    out = cnn(torch.rand(2, 3, 32, 32))
    assert out.class_map_BKhw.shape == (2, 3, 4, 4)
    torch.testing.assert_close(out.cls_logits_BK, out.class_map_BKhw.mean(dim=(2, 3)))
    pooled = out.patches_BDhw.mean(dim=(2, 3))
    expected = pooled @ cnn.head.weight[:, :, 0, 0].T + cnn.head.bias
    torch.testing.assert_close(out.cls_logits_BK, expected)


@pytest.mark.parametrize(("name", "dim"), [("resnet50", 2048), ("resnet101", 2048), ("tf_efficientnet_lite0", 1280)])
def test_teachers_of_output_stride_16(name, dim):
    cnn = build_cnn(2, timm_name=name).eval()
    with torch.no_grad():
        out = cnn(torch.rand(1, 3, 64, 64))
    assert out.patches_BDhw.shape == (1, dim, 4, 4)
    assert out.class_map_BKhw.shape == (1, 2, 4, 4)


@pytest.mark.parametrize(
    ("name", "option", "dims"), [("convnext_atto", "depths", [160, 320]), ("resnetv2_50", "layers", [1024, 2048])]
)
def test_nothing_is_left_behind_the_last_stage_that_would_train_without_a_gradient(name, option, dims):
    one_each = {option: (1, 1, 1, 1)}
    backbone, found = create_stages(name, None, one_each, count=2, output_stride=16, dilated=True)
    sum(stage.sum() for stage in last_stages(backbone, torch.rand(2, 3, 64, 64), 2)).backward()
    assert found == dims and all(p.grad is not None for p in backbone.parameters())


def test_a_network_without_a_map_is_refused():
    with pytest.raises(ValueError, match=r"'vit_tiny_patch16_224' .*output_stride.*choose a CNN"):
        build_cnn(1, timm_name="vit_tiny_patch16_224", timm_options={"img_size": 64, "depth": 1})


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("tf_efficientnet_lite0", "tf_efficientnet_lite0_pypi.pth"),
        ("resnet50", "resnet50_augnet_imgsim_backbone_fp16.pth"),
    ],
)
def test_real_weights_load(real_data, name, file):
    assert build_cnn(1, timm_name=name, weights=str(real_data / "weights" / file)).feature_dim > 0
