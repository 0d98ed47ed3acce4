"""Why Grad-CAM at the last block's first norm comes and goes: its two terms, run by run (see docs/experiments.md).

In the last block only the class token's query matters to the logit z. With its attention a_n over the tokens n, the
gradient g of z with respect to the attended value o = sum_n a_n v_n, and the evidence s_n = g . v_n of each token,

    d z / d A_n = a_n Wv^T g  +  a_n (s_n - s) scale Wk^T q,      s = sum_n a_n s_n,    A = output of norm1

so Grad-CAM's channel weights, means over the patches, have a value term and a key term. The a_n (s_n - s) sum to 0 over
all tokens, so over the patches they sum to minus the class token's own: where its own evidence exceeds the patches',
the key term is the attention map with its sign turned.

Run:  python docs/experiments/grad_cam_terms.py SHARDS RUN [RUN ...]     pixel shards; runs with a plain ViT student

Shapes: B images, H heads, N tokens, D channels, E channels per head.
"""

import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from launcher.evaluation.thresholds import nearest
from launcher.run.build import load_trained
from launcher.run.folder import Run
from shards.batches.augment import Squash
from shards.batches.loaders import eval_loader
from shards.folder import ShardFolder
from wsss.maps.cam import normalise_cam
from wsss.maps.gradients import gradient_maps
from wsss.metrics.counts import Counts, count, iou_per_image
from wsss.models.vit import ViT
from wsss.tensors import resize


def terms(vit: ViT, image: Tensor) -> dict[str, Tensor]:
    """Maps (B, h, w) of the value term, the key term and the attention; evidence (B) of class token and patches."""
    block = vit.backbone.blocks[-1]
    attention, heads = block.attn, block.attn.num_heads
    with torch.no_grad():
        tokens_BND, (height, width) = vit.embed(vit.normalise(image))
        stream_BND = vit.backbone.blocks[:-1](tokens_BND)
        a_BND = block.norm1(stream_BND)
        q_BHE, k_BHNE, v_BHNE = heads_of(attention, a_BND, heads)
        attend_BHN = (torch.einsum("bhe,bhne->bhn", q_BHE, k_BHNE) * attention.scale).softmax(-1)
        o_BD = torch.einsum("bhn,bhne->bhe", attend_BHN, v_BHNE).flatten(1)
    o_BD.requires_grad_()
    cls_BD = stream_BND[:, 0] + block.ls1(attention.proj(o_BD))
    cls_BD = cls_BD + block.ls2(block.mlp(block.norm2(cls_BD)))
    logit_B = vit.head(vit.backbone.norm(cls_BD)[..., None, None]).flatten()
    (gradient_BD,) = torch.autograd.grad(logit_B.sum(), o_BD)
    with torch.no_grad():
        g_BHE = gradient_BD.unflatten(1, (heads, -1))
        _, key_HED, value_HED = attention.qkv.weight.unflatten(0, (3, heads, -1))
        evidence_BHN = torch.einsum("bhe,bhne->bhn", g_BHE, v_BHNE)
        surplus_BHN = attend_BHN * (evidence_BHN - (attend_BHN * evidence_BHN).sum(-1, keepdim=True))
        toward_value_BHD = torch.einsum("bhe,hed->bhd", g_BHE, value_HED)
        toward_key_BHD = torch.einsum("bhe,hed->bhd", q_BHE, key_HED) * attention.scale
        patches = slice(vit.backbone.num_prefix_tokens, None)
        value_BD = (attend_BHN[..., patches].mean(-1, keepdim=True) * toward_value_BHD).sum(1)
        key_BD = (surplus_BHN[..., patches].mean(-1, keepdim=True) * toward_key_BHD).sum(1)
        weighed_BHN = attend_BHN * evidence_BHN
    return {
        "value term": torch.einsum("bnd,bd->bn", a_BND[:, patches], value_BD).unflatten(1, (height, width)),
        "key term": torch.einsum("bnd,bd->bn", a_BND[:, patches], key_BD).unflatten(1, (height, width)),
        "attention": attend_BHN[..., patches].mean(1).unflatten(1, (height, width)),
        "class token": weighed_BHN[..., 0].sum(1),
        "patches": weighed_BHN[..., patches].sum((1, 2)),
        "logit": logit_B.detach(),
    }


def heads_of(attention: torch.nn.Module, a_BND: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """The class token's query (B, H, E) and all keys and values (B, H, N, E)."""
    q, k, v = attention.qkv(a_BND).unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    return q[:, :, 0], k, v


def main(shard_folder: str, *runs: str) -> None:
    shards = ShardFolder(Path(shard_folder), "pixel")
    shown = [n for n in range(len(shards)) if shards.image_label_NK[n].any()]
    masks = [torch.from_numpy(shards.mask(n)) for n in shown]
    print(f"{shard_folder}: {len(shown)} images with smoke")
    for run in runs:
        of, method, checkpoint = load_trained(Run(Path(run)))
        config = of.config
        loader = eval_loader(
            shards, Squash(size=config.data.image_size), batch_size=32, numbers=shown, workers=config.data.workers
        )
        parts: dict[str, list[Tensor]] = {}
        for batch in loader:
            image = batch["image"].float() / 255
            maps, out = gradient_maps(method.student, image)
            found = {"Grad-CAM": maps["grad"][0][:, 0], **terms(method.student, image)}
            with torch.no_grad():
                found["projected map"] = method.maps_of(out)["project"][:, 0]
            torch.testing.assert_close(found["value term"] + found["key term"], found["Grad-CAM"], atol=1e-4, rtol=1e-2)
            for name, value in found.items():
                parts.setdefault(name, []).append(value)
        joined = {name: torch.cat(values) for name, values in parts.items()}
        print(f"{run} {checkpoint.name}")
        for name in ("Grad-CAM", "value term", "key term", "attention", "projected map"):
            print(
                f"  {name:14s} IoU at 0.30 {iou_of(joined[name], masks):.3f}  r {correlation(joined[name], masks):+.2f}"
            )
        own, patches, logit = (joined[name].mean() for name in ("class token", "patches", "logit"))
        print(f"  evidence of the class token {own:+.3f}, of the patches {patches:+.3f}; logit {logit:.2f}")


def iou_of(raw_Bhw: Tensor, masks: list[Tensor]) -> float:
    """Mean per-image IoU of the normalised map at 0.30."""
    cams = normalise_cam(raw_Bhw[:, None])
    counts = [count(resize(cam[None], mask.shape)[0, 0], mask) for cam, mask in zip(cams, masks, strict=True)]
    return float(iou_per_image(Counts.stack(counts))[:, nearest(0.3)].mean())


def correlation(raw_Bhw: Tensor, masks: list[Tensor]) -> float:
    """Mean Pearson correlation over the positions of raw map and share of smoke."""
    pairs = [
        (raw.flatten().numpy(), F.adaptive_avg_pool2d(mask[None, None].float(), raw.shape).flatten().numpy())
        for raw, mask in zip(raw_Bhw, masks, strict=True)
    ]
    return float(np.mean([np.corrcoef(*pair)[0, 1] for pair in pairs]))


if __name__ == "__main__":
    main(*sys.argv[1:])
