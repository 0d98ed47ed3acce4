import torch
from wsss_prototypes.method import Prototypes

from wsss.models import MODELS

SIZE = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}


def make():
    student = MODELS["vit"](2, timm_name="vit_tiny_patch16_224", timm_options=SIZE)
    return Prototypes(student, momentum=0.5).train()


def batch_of(*labels):
    return {"image": torch.rand(len(labels), 3, 32, 32), "image_label": torch.tensor(labels, dtype=torch.float32)}


def test_a_class_that_was_never_seen_trains_nothing_and_keeps_no_prototype():
    method = make()
    losses = method(batch_of([0, 0], [0, 0]), 0)
    method.synchronise(lambda x: x[None])
    assert losses["proto_loss"] == 0 and losses["loss"] == losses["cls_loss"]
    assert not method.prototype_KD.any()


def test_the_loss_by_hand():
    method = make()
    batch = batch_of([1, 0])
    direction = torch.nn.functional.normalize(method.student(batch["image"]).patches_BDhw.mean((0, 2, 3)), dim=0)
    method.prototype_KD[0] = -direction  # as far as can be: 1 - (-1) = 2, of one image and two classes
    torch.testing.assert_close(method(batch, 0)["proto_loss"], torch.tensor(1.0))


def test_two_processes_have_the_prototype_of_one_that_saw_both_batches():
    method = make()
    first, second = torch.eye(2, 16), torch.eye(2, 16).roll(1, dims=1)
    method.synchronise(lambda x: torch.stack([first, second]))
    torch.testing.assert_close(method.prototype_KD, (first + second) / 2**0.5)
    method.synchronise(lambda x: torch.stack([first, first]))  # half way on from there
    torch.testing.assert_close(method.prototype_KD, (first + second) / 2**1.5 + first / 2)
