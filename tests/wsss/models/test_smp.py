"""Networks of segmentation_models_pytorch as networks of ours."""

import pytest
import timm
import torch
from support.methods import batch_of

from wsss.methods.supervised import Supervised
from wsss.models.dry_run import refuse_lone_cell
from wsss.models.smp import build_smp

SMALL = {"upernet": {"decoder_channels": 8}, "unet": {"decoder_channels": (8, 8, 8, 8, 8)}}


@pytest.fixture
def smp():
    return pytest.importorskip("segmentation_models_pytorch", reason="pip install 'wsss[smp]'")


@pytest.mark.parametrize(
    ("architecture", "encoder", "grid"),
    [("upernet", "mit_b0", (16, 24)), ("unet", "tu-convnext_atto", (64, 96)), ("segformer", "resnet18", (16, 24))],
)
def test_enlarged_class_scores_are_those_of_the_package(smp, architecture, encoder, grid):
    network = build_smp(2, architecture=architecture, encoder=encoder, options=SMALL.get(architecture)).eval()
    theirs = smp.create_model(
        architecture, encoder_name=encoder, encoder_weights=None, classes=3, **SMALL.get(architecture, {})
    ).eval()
    parts = {"backbone": "encoder", "decoder": "decoder", "head": "segmentation_head.0"}
    state = {key.partition("."): value for key, value in network.state_dict().items()}
    theirs.load_state_dict({f"{parts[part]}.{name}": value for (part, _, name), value in state.items()})
    image = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        out = network(image)
        assert out.seg_logits_BChw.shape == (2, 3, *grid)
        assert torch.equal(theirs.segmentation_head[1](out.seg_logits_BChw), theirs(network.normalise(image)))


def test_a_step_trains_all_of_it(smp):
    method = Supervised(build_smp(1, architecture="upernet", encoder="tu-swin_tiny_patch4_window7_224", **TINY)).train()
    losses = method(batch_of(), 0)
    losses["loss"].backward()
    assert torch.isfinite(losses["seg_loss"])
    assert not [key for key, p in method.named_parameters() if p.requires_grad and p.grad is None]


TINY = {"options": {"decoder_channels": 8, "embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2)}}


def test_initial_weights_are_a_file_and_nothing_is_downloaded(smp, tmp_path, monkeypatch):
    def away(*_, **__):
        raise AssertionError("asked the hub")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", away)
    monkeypatch.setattr("segmentation_models_pytorch.encoders.hf_hub_download", away)
    donor = build_smp(1, architecture="segformer", encoder="mit_b0").backbone.state_dict()
    torch.save({**donor, "head.weight": torch.zeros(1000, 256)}, tmp_path / "mit_b0.pth")
    started = build_smp(4, architecture="fpn", encoder="mit_b0", weights=str(tmp_path / "mit_b0.pth"))
    assert all(torch.equal(value, donor[key]) for key, value in started.backbone.state_dict().items())
    with pytest.raises(ValueError, match="belong to another network"):
        build_smp(1, architecture="segformer", encoder="mit_b1", weights=str(tmp_path / "mit_b0.pth"))
    with pytest.raises(ValueError, match="model.weights: 'mit_b0' is not an encoder of timm; give a file"):
        build_smp(1, architecture="fpn", encoder="mit_b0", weights="timm")
    whole = timm.create_model("convnext_atto", num_classes=7)
    torch.save(whole.state_dict(), tmp_path / "atto.pth")
    started = build_smp(1, architecture="fpn", encoder="tu-convnext_atto", weights=str(tmp_path / "atto.pth"))
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(started.eval().backbone(image)[-1], whole.eval().forward_features(image))
    with pytest.raises(ValueError, match="with these weights .*belong to another network"):
        build_smp(1, architecture="fpn", encoder="tu-convnext_femto", weights=str(tmp_path / "atto.pth"))
    assert build_smp(1, architecture="fpn", encoder="tu-resnet10t").mean.flatten().tolist() == pytest.approx(
        [0.485, 0.456, 0.406]
    )


@pytest.mark.parametrize(
    ("architecture", "encoder", "message"),
    [
        ("dpt", "resnet18", "model.architecture: there is no 'dpt'; choose one of unet, .*segformer"),
        ("unet", "resnet19", "model.encoder: there is no 'resnet19'; near: resnet18"),
        ("unet", "tu-convnext_ato", "there is no 'tu-convnext_ato'; near: tu-convnext_atto"),
        ("linknet", "mit_b0", "model.encoder: 'mit_b0' does not run as a linknet encoder .*not supported for Linknet"),
    ],
)
def test_what_there_is_not_is_told(smp, architecture, encoder, message):
    with pytest.raises(ValueError, match=message):
        build_smp(1, architecture=architecture, encoder=encoder)


def test_images_that_it_cannot_take_are_told(smp):
    network = build_smp(1, architecture="upernet", encoder="resnet18", options=SMALL["upernet"])
    with pytest.raises(ValueError, match="images of 64 x 70 px; this decoder takes .* multiples of 32"):
        network(torch.rand(2, 3, 64, 70))
    with pytest.raises(
        ValueError, match="for one image of 512 px a BatchNorm of this SMP sees a single value per channel"
    ):
        refuse_lone_cell(network, 512)  # of the image's mean, whatever its size


@pytest.mark.parametrize(
    ("encoder", "option"),
    [("resnet18", "activation"), ("tu-convnext_atto", "classes"), ("resnet18", "decoder_channel")],
)
def test_an_option_without_effect_is_told(smp, encoder, option):
    with pytest.raises(
        ValueError, match=f"model.options: there is no '{option}'; choose from decoder_attention_type, decoder_channel"
    ):
        build_smp(1, architecture="unet", encoder=encoder, options={option: 1})
