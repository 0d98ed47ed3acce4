"""What M-SEE does on the val images of a run: shares and hits of its regions, thresholds, distances, map of each scale.

    python docs/experiments/msee_regions.py runs/voc_mini/toco_seed0 runs/voc_mini/msee_seed0

Figures of docs/experiments.md, "M-SEE on small real data". Runs of ToCo are read as if M-SEE looked at them.
"""

import sys
from pathlib import Path

import torch
from torch.nn.functional import interpolate

from launcher.run.build import load_trained
from launcher.run.folder import Run
from shards.batches.augment import Squash
from shards.batches.loaders import eval_loader
from shards.folder import ShardFolder
from wsss.losses.regions import feature_distance, fires, reliable_regions, scale_cams, segmented_class, thresholds
from wsss.maps.cam import packed_rows
from wsss.maps.pseudo_label import seed_label
from wsss.metrics.confusion import confusion_matrix, mean_iou
from wsss.tensors import resize

SCALES = (1.5, 0.5)


@torch.no_grad()
def figures(run: Path) -> dict[str, dict[float, float]]:
    of, method, _ = load_trained(Run(run))
    config, class_set = of.config, of.class_set
    student, size, classes = method.student, config.data.image_size, class_set.num_fg_classes + 1
    val = ShardFolder(config.data.val, "pixel")
    confusion = {scale: torch.zeros(classes, classes, dtype=torch.int64) for scale in (*SCALES, 1.0)}
    parts = {name: {scale: [] for scale in SCALES} for name in ("share", "hits", "threshold", "distance")}
    for batch in eval_loader(val, Squash(size=size), batch_size=25, numbers=range(len(val)), workers=0):
        image, present = batch["image"].float() / 255, batch["present"]
        tokens = {s: student.encode(resize(image, [int(s * size)] * 2)) for s in confusion}
        grid, rows = tokens[1.0].grid, packed_rows(student.head.weight.flatten(1), present)
        everywhere = torch.ones(len(image), *grid, dtype=torch.bool)
        cams = {s: scale_cams(of_scale.patches_BDhw, rows, grid) for s, of_scale in tokens.items()}
        segmented = segmented_class(student.decoder(tokens[1.0].patches_BDhw), present, everywhere)
        at = {s: thresholds(cams[s], segmented, present, classes="agnostic") for s in SCALES}
        regions = reliable_regions([fires(cams[s], at[s]) for s in SCALES], everywhere)
        truths = [torch.from_numpy(val.mask(number)).long() for number in batch["number"]]
        shown = [((truth > 0) & (truth != 255)).float()[None, None] for truth in truths]
        objects = torch.cat([interpolate(one, size=grid, mode="area")[0] for one in shown])
        for scale, region in zip(SCALES, regions, strict=True):
            distance = feature_distance(tokens[1.0].patches_BDhw, tokens[scale].patches_BDhw, form="elements", beta=2.0)
            parts["share"][scale].append(region.float().flatten())
            parts["hits"][scale].append(objects[region])
            parts["threshold"][scale].append(at[scale][at[scale].isfinite()])
            parts["distance"][scale].append(distance.flatten())
        for scale, cam in cams.items():
            for i, truth in enumerate(truths):
                one = slice(i, i + 1)
                seeds = seed_label(resize(cam[one], truth.shape), present[one], bg_threshold=0.5, fg_threshold=0.5)
                confusion[scale] += confusion_matrix(truth, seeds[0], classes)
    means = {n: {s: float(torch.cat(of_scale).mean()) for s, of_scale in part.items()} for n, part in parts.items()}
    return {**means, "cam_miou": {scale: 100 * mean_iou(counted) for scale, counted in confusion.items()}}


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        print(argument)
        for name, of_scale in figures(Path(argument)).items():
            print(f"  {name:10s}", {scale: round(value, 4) for scale, value in sorted(of_scale.items())})
