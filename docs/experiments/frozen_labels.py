"""What method `frozen` would learn from on the val images of a run, and what its decoder makes of it, in mIoU.

    python docs/experiments/frozen_labels.py runs/voc_mini/frozen_seed0 runs/voc_mini/frozen_seed1

Figures of docs/experiments.md, "A decoder on frozen features beside ToCo and M-SEE".
"""

import sys
from pathlib import Path

import torch

from launcher.run.build import load_trained
from launcher.run.folder import Run
from shards.batches.augment import Squash
from shards.batches.loaders import eval_loader
from shards.folder import ShardFolder
from wsss.losses.pairs import affinity_logits
from wsss.maps.agreement import agreeing_attention, walk_along
from wsss.maps.cam import normalise_cam
from wsss.maps.pseudo_label import seed_label
from wsss.metrics.confusion import confusion_matrix, mean_iou
from wsss.tensors import IGNORE_INDEX, resize

JUDGED = ("first map", "walked", "walked, all blocks", "label", "decoder", "decoder, shown classes")


@torch.no_grad()
def figures(run: Path) -> dict[str, float]:
    of, method, _ = load_trained(Run(run))
    config, student, classes = of.config, method.student, of.class_set.num_fg_classes + 1
    size, val = config.data.image_size, ShardFolder(config.data.val, "pixel")
    counted = {name: torch.zeros(classes, classes, dtype=torch.int64) for name in JUDGED}
    left_out: list[float] = []
    above: list[float] = []
    for batch in eval_loader(val, Squash(size=size), batch_size=10, numbers=range(len(val)), workers=0):
        batch["image"] = batch["image"].float() / 255
        present, label_BK = batch["present"], batch["image_label"]
        seen, raw = method.look(batch)
        fused, seg_logits = student.decode(seen.depths)
        affinity, cam = affinity_logits(fused), normalise_cam(raw)
        attention = agreeing_attention(seen.attention_LBNN, affinity.sigmoid())
        walked = normalise_cam(walk_along(cam, attention, method.walk_steps))
        by_all = normalise_cam(walk_along(cam, agreeing_attention(seen.attention_LBNN, None), method.walk_steps))
        above.append(float((affinity.sigmoid() > seen.attention_LBNN).float().mean()))
        label = method.pseudo_label(batch, raw, seen.attention_LBNN, affinity, method.agree_from)
        absent = torch.cat([torch.zeros(len(label_BK), 1), 1 - label_BK], dim=1)[:, :, None, None]
        for i, number in enumerate(batch["number"]):
            truth, one = torch.from_numpy(val.mask(number)).long(), slice(i, i + 1)
            for name, of_cam in (("first map", cam), ("walked", walked), ("walked, all blocks", by_all)):
                seeds = seed_label(resize(of_cam[one], truth.shape), present[one], bg_threshold=0.5, fg_threshold=0.5)
                counted[name] += confusion_matrix(truth, seeds[0], classes)
            scores = resize(seg_logits[one], truth.shape)
            counted["decoder"] += confusion_matrix(truth, scores.argmax(dim=1)[0], classes)
            among = scores.masked_fill(absent[one] > 0, -torch.inf)
            counted["decoder, shown classes"] += confusion_matrix(truth, among.argmax(dim=1)[0], classes)
            near = torch.nn.functional.interpolate(label[one, None].float(), truth.shape, mode="nearest-exact")[0, 0]
            unknown = near == IGNORE_INDEX
            left_out.append(float(unknown.float().mean()))
            known = truth.masked_fill(unknown, IGNORE_INDEX)
            counted["label"] += confusion_matrix(known, near.long().masked_fill(unknown, 0), classes)
    means = {name: 100 * mean_iou(confusion) for name, confusion in counted.items()}
    shares = {"label, left out": left_out, "affinity above attention": above}
    return {**means, **{name: 100 * sum(values) / len(values) for name, values in shares.items()}}


if __name__ == "__main__":
    for place in sys.argv[1:]:
        print(place, {name: round(value, 1) for name, value in figures(Path(place)).items()})
