"""Parameters that a step does not read are told by name at the first step, on one process as on several."""

import pytest
import torch
from support.methods import TOYS, build
from support.networks import tiny_toco

from launcher.errors import RunError
from launcher.files import RUNS
from launcher.run import checkpoint
from launcher.training.run import train
from launcher.training.unread import name_unread, refuse_unread
from wsss.methods.classify import Classify

CONVNEXT = "{name: cnn, timm_name: convnext_atto, timm_options: {depths: [1, 1, 1, 1], dims: [8, 8, 16, 16]}}"
TOCO = (
    "{name: toco, timm_name: vit_tiny_patch16_224, decoder_dim: 8, timm_options: "
    "{img_size: 32, patch_size: 8, embed_dim: 16, depth: 3, num_heads: 2}}"
)


@pytest.mark.parametrize("name", TOYS)
def test_every_method_reads_all_it_trains_in_every_phase(name):
    method = build(name, **TOYS[name].options)
    for step in TOYS[name].steps.values():
        refuse_unread(method, method(TOYS[name].batch(4, 1), step)["loss"])


def test_a_loss_that_leaves_out_parameters_is_refused_with_their_names():
    method = Classify(tiny_toco(2))
    loss = method({"image": torch.rand(2, 3, 32, 32), "image_label": torch.ones(2, 2)}, 0)["loss"]
    idle = [
        f"student.{name}" for name, _ in method.student.named_parameters() if name.startswith(("decoder", "aux_head"))
    ]
    idle.remove("student.aux_head.weight")  # image_label_loss trains both classifiers
    with pytest.raises(RunError, match="loss of method 'Classify' does not depend on") as told:
        refuse_unread(method, loss)
    assert f" {len(idle)} trainable parameters: {', '.join(idle[:5])};" in str(told.value)
    assert all(p.grad is None for p in method.parameters())


def test_a_run_of_one_process_ends_before_its_first_update(in_tmp, tiny_config):
    with pytest.raises(RunError, match=r"does not depend on .* student\.decoder\."):
        train(tiny_config("classify", f"model={TOCO}"))
    assert not list((RUNS / "teacher").glob("step_*"))


def test_what_no_output_depends_on_is_frozen_and_said(in_tmp, tiny_config, capsys):
    method = train(tiny_config("classify", f"model={CONVNEXT}", "model.output_stride=16", "train.steps=2"))
    names = "student.backbone.head.norm.weight, student.backbone.head.norm.bias"
    assert f"not trained, since no output of the network depends on them: {names}\n" in capsys.readouterr().out
    assert name_unread(method).endswith(names) and name_unread(build("classify")) == ""
    train(tiny_config("classify", f"model={CONVNEXT}", "model.output_stride=16", "train.steps=2"))  # goes on


def test_an_optimizer_of_other_parameters_is_told(in_tmp, tiny_config):
    method = train(tiny_config("classify", "train.steps=2"))
    folder = RUNS / "teacher/step_0000002"
    fewer = torch.optim.AdamW(list(method.parameters())[:2])
    with pytest.raises(RunError, match="optimizer.pt: belongs to a method with other trained parameters"):
        checkpoint.load(folder, method, fewer)
