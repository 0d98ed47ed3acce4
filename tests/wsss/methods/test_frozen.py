"""What a decoder on frozen ViTs learns from, with values worked out by hand."""

import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.clips import write_tiny_clip
from support.methods import batch_with_present
from support.networks import tiny_frozen, tiny_toco, tiny_vit

from wsss.losses.pairs import affinity_logits
from wsss.maps.agreement import agreeing_attention, walk_along
from wsss.maps.cam import normalise_cam
from wsss.maps.gradients import gradient_maps
from wsss.methods import frozen as frozen_module
from wsss.methods.frozen import FrozenFeatures
from wsss.methods.toco import ToCo
from wsss.models.clip import SCENE_NEGATIVES, encode_prompts, load_clip
from wsss.models.frozen import build_frozen
from wsss.tensors import resize


def test_nothing_of_the_encoders_is_trained_and_their_attention_is_the_one_inside():
    student = tiny_frozen(2)
    image = torch.rand(2, 3, 32, 32)
    trained = {name.split(".")[0] for name, p in student.named_parameters() if p.requires_grad}
    assert trained == {"project", "fuse", "blocks", "seg_head", "head"}
    assert student.train().encoders.training is False and student.blocks.training
    attention_LBNN = student.encode(image, 2).attention_LBNN
    assert attention_LBNN.shape == (2, 2, 16, 16) and 0 < attention_LBNN.sum(-1).max() <= 1
    first = student.first  # the class token's row of the last block, read by another way
    with student.reading_attention() as seen:
        student(image)
    whole_BNN = first.attend(seen[-1], -1, slice(None))
    torch.testing.assert_close(attention_LBNN[-1], whole_BNN[:, 1:, 1:])
    torch.testing.assert_close(student.attention_of(seen[-1], image).flatten(1), whole_BNN[:, 0, 1:])


def test_depths_are_the_blocks_that_are_asked_for_on_the_grid_of_the_first_vit():
    whole, last = tiny_frozen(2), tiny_frozen(2, layers=(-1,))
    last.encoders.load_state_dict(whole.encoders.state_dict())
    image = torch.rand(1, 3, 32, 32)
    of_all, of_last = whole.encode(image).depths, last.encode(image).depths
    assert [tuple(x.shape) for x in of_all] == [(1, 16, 4, 4)] * 2 + [(1, 8, 4, 4)] * 2
    assert [torch.equal(x, y) for x, y in zip(of_last, of_all[1::2], strict=True)] == [True, True]


def test_an_image_without_a_class_has_a_pseudo_label_of_background():
    method = FrozenFeatures(tiny_frozen(), seg_from=0, attended=2, par_iterations=1)
    batch = batch_with_present()
    batch["present"] = torch.full_like(batch["present"], -1)
    seen, raw = method.look(batch)
    affinity = affinity_logits(method.student.decode(seen.depths)[0])
    assert not method.pseudo_label(batch, raw, seen.attention_LBNN, affinity, 0).any()


@pytest.mark.parametrize("step", [9, 10])
def test_maps_walk_along_the_blocks_that_agree_once_the_affinity_has_learnt(monkeypatch, step):
    method = FrozenFeatures(tiny_frozen(), attended=2, agree_from=10)
    batch, raw, affinity = batch_with_present(), torch.randn(4, 1, 4, 4), torch.randn(4, 16, 16)
    attention = torch.rand(3, 4, 16, 16)
    seen = []
    monkeypatch.setattr(frozen_module, "refined_label", lambda image, cam, *args, **options: seen.append(cam))
    method.pseudo_label(batch, raw, attention, affinity, step)
    method.pseudo_label(batch, raw, None, affinity, step)
    agreeing = agreeing_attention(attention, affinity.sigmoid() if step == 10 else None)
    walked = normalise_cam(walk_along(normalise_cam(raw), agreeing, 2))
    for found, cam in zip(seen, (walked, normalise_cam(raw)), strict=True):
        torch.testing.assert_close(found, resize(cam, (32, 32)))


def test_pictures_are_the_strongest_first_map_and_the_label_of_a_last_step(monkeypatch):
    method, batch, calls = FrozenFeatures(tiny_frozen(3), attended=2, agree_from=10), batch_with_present(classes=3), []
    batch["present"] = torch.tensor([[0, 2], [1, 2], [0, -1], [-1, -1]])
    batch["box"][:] = torch.tensor([0, 8, 0, 8])  # what a step sees of an image: a picture shows all of it
    monkeypatch.setattr(method, "pseudo_label", lambda *args: calls.append(args))
    found = method.pictures(batch)
    (whole, raw, attention, affinity, step), (seen, expected) = calls[0], method.look(batch)
    torch.testing.assert_close(found["first map"], normalise_cam(expected).amax(1))
    assert whole["box"].tolist() == [[0, 32, 0, 32]] * 4 and step == 10 and torch.equal(raw, expected)
    torch.testing.assert_close(attention, seen.attention_LBNN)
    torch.testing.assert_close(affinity, affinity_logits(method.student.decode(seen.depths)[0]))


def test_what_thresholds_and_choices_read_keeps_its_digits_in_mixed_precision(clip):
    fused, attention, cam = torch.randn(1, 8, 3, 3), torch.rand(1, 9, 9), torch.rand(1, 2, 3, 3)
    head, features = by_text(clip).head, torch.randn(1, 16, 2, 2)
    calls = [lambda: affinity_logits(fused), lambda: walk_along(cam, attention, 2), lambda: head(features)]
    calls.append(lambda: agreeing_attention(attention[None].expand(3, -1, -1, -1), attention))
    for number, call in enumerate(calls):
        with torch.autocast("cpu", torch.bfloat16):
            mixed = call()
        assert mixed.dtype == torch.float32 and torch.equal(mixed, call()), number


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """(folder of a tiny CLIP, file of its image encoder as timm has it)"""
    folder = write_tiny_clip(tmp_path_factory.mktemp("clip"))
    save_file(as_timm(load_clip(folder).model.vision_model), folder / "vit.safetensors")
    return folder, folder / "vit.safetensors"


def as_timm(vision):
    """A CLIP's image encoder under timm's names."""
    state, found = vision.state_dict(), {}
    found["cls_token"] = state["embeddings.class_embedding"].view(1, 1, -1)
    found["pos_embed"] = state["embeddings.position_embedding.weight"][None]
    found["patch_embed.proj.weight"] = state["embeddings.patch_embedding.weight"]
    parts = {"layer_norm1": "norm1", "layer_norm2": "norm2", "self_attn.out_proj": "attn.proj", "mlp.fc1": "mlp.fc1",
             "mlp.fc2": "mlp.fc2"}  # fmt: skip
    for kind in ("weight", "bias"):
        found |= {f"norm_pre.{kind}": state[f"pre_layrnorm.{kind}"], f"norm.{kind}": state[f"post_layernorm.{kind}"]}
        for number in range(2):
            theirs, ours = f"encoder.layers.{number}", f"blocks.{number}"
            found |= {f"{ours}.{b}.{kind}": state[f"{theirs}.{a}.{kind}"] for a, b in parts.items()}
            qkv = [state[f"{theirs}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
            found[f"{ours}.attn.qkv.{kind}"] = torch.cat(qkv)
    return {name: tensor.contiguous() for name, tensor in found.items()}


def by_text(clip, texts=("smoke", "fire"), **options):
    folder, weights = clip
    size = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "mlp_ratio": 2}
    named = {"text_weights": str(folder), "weights": str(weights), **options}
    decoder = {"decoder_dim": 8, "decoder_blocks": 1, "decoder_heads": 2}
    name = "vit_base_patch16_clip_quickgelu_224"
    return build_frozen(len(texts), timm_name=name, timm_options=size, texts=texts, **decoder, **named)


def test_texts_classify_as_clip_itself_does(clip):
    student, whole = by_text(clip), load_clip(clip[0])
    image = torch.rand(2, 3, 16, 16)
    got = student(image).cls_logits_BK.sigmoid()
    prompts = encode_prompts(whole, [["smoke"], ["fire"]], SCENE_NEGATIVES)
    with torch.no_grad():
        seen = whole.model.visual_projection(whole.model.vision_model(student.first.normalise(image)).pooler_output)
    cosine_BP = torch.nn.functional.normalize(seen, dim=-1) @ prompts.embedding_PE.T
    want = (whole.model.logit_scale.exp() * cosine_BP).softmax(-1)[:, :2]
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-3)


def test_first_maps_of_texts_are_grad_cam_of_the_classes_that_are_shown(clip):
    student = by_text(clip)
    method = FrozenFeatures(student, seg_from=0, attended=2, par_iterations=1).train()
    batch = {"image": torch.rand(2, 3, 16, 16), "image_label": torch.tensor([[0.0, 1.0], [1.0, 1.0]])}
    batch |= {"present": torch.tensor([[1, -1], [0, 1]]), "box": torch.tensor([[0, 16, 0, 16]] * 2)}
    _, raw = method.look(batch)
    all_of_them = gradient_maps(student, batch["image"])[0]["grad"][0]
    torch.testing.assert_close(raw[0, 0], all_of_them[0, 1])
    torch.testing.assert_close(raw[1], all_of_them[1])
    assert raw[0, 1].abs().sum() == 0 and raw[1].abs().sum() > 0
    losses = method(batch, 0)
    losses["loss"].backward()
    assert set(losses) == {"loss", "seg_loss", "pair_loss"}
    assert all(p.grad is not None for p in method.parameters() if p.requires_grad)
    assert torch.is_grad_enabled()


def test_texts_come_with_a_checkpoint(clip):
    known, empty = by_text(clip), by_text(clip, weights=None, text_weights=None)
    empty.load_state_dict(known.state_dict())
    image = torch.rand(1, 3, 16, 16)
    assert torch.equal(known(image).cls_logits_BK, empty(image).cls_logits_BK)
    empty.check_begun()
    with pytest.raises(ValueError, match="model.texts: no CLIP has encoded them; give model.text_weights"):
        by_text(clip, weights=None, text_weights=None).check_begun()


def test_what_does_not_fit_is_told(clip, tmp_path):
    with pytest.raises(ValueError, match="trains a network of model 'frozen', not ViT"):
        FrozenFeatures(tiny_vit())
    with pytest.raises(ValueError, match=r"attended \(3\) in \[0, 2\]"):
        FrozenFeatures(tiny_frozen(), attended=3)
    wrong = {"different blocks between -2 and 1": {"layers": (5,)}, "a divisor": {"decoder_heads": 3}}
    wrong |= {"entries for 1 classes": {"texts": ("a", "b")}, "without model.texts": {"text_weights": "x"}}
    wrong |= {"gone.pth: weights file is missing": {"second_weights": "gone.pth"}}
    wrong |= {"model.second: timm has no 'vit_tiny_patch16'; near": {"second": "vit_tiny_patch16"}}
    wrong |= {"model.second: timm cannot build .* with .*depth=x": {"second_options": {"depth": "x"}}}
    wrong |= {"model.texts and other_texts .*: one is empty; wanted words": {"texts": (" ",)}}
    wrong |= {"'the sky' is listed twice and would compete with itself": {"texts": ("The  sky",)}}
    wrong |= {"decoder_dim .0. >= 1": {"decoder_dim": 0}, "decoder_blocks .-1. >= 0": {"decoder_blocks": -1}}
    for said, options in wrong.items():
        with pytest.raises(ValueError, match=said):
            tiny_frozen(**options)
    alone = "belong to a second ViT: name it with model.second=NAME, or leave .*=null model.second_options=null"
    with pytest.raises(ValueError, match=alone):
        build_frozen(1, timm_name="vit_tiny_patch16_224", timm_options={"depth": 1}, second_weights="x")
    for options, said in (({"par_iterations": -1}, "num_iter is -1"), ({"par_dilations": ()}, "dilations are ()")):
        with pytest.raises(ValueError, match=re.escape(said)):
            FrozenFeatures(tiny_frozen(), attended=2, **options)
        with pytest.raises(ValueError, match=re.escape(said)):
            ToCo(tiny_toco(), **options)
    with pytest.raises(ValueError, match="wanted 0, since with model.texts nothing is trained before"):
        FrozenFeatures(by_text(clip), attended=2)
    with pytest.raises(ValueError, match="config.json, model.safetensors, vocab.json, merges.txt missing"):
        by_text(clip, text_weights=str(tmp_path))
    with pytest.raises(ValueError, match="is another CLIP than the one that model.weights comes from"):
        state = load_file(clip[1])
        save_file({**state, "norm.weight": state["norm.weight"] + 1}, tmp_path / "other.safetensors")
        by_text(clip, weights=str(tmp_path / "other.safetensors"))
