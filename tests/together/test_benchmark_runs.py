"""True VOC and COCO images through all rooms: shards, steps of M-SEE, masks at their own size with a CRF, figures."""

import pytest
from support.toys import TOY

from launcher.config.file import load_config
from launcher.evaluation.evaluate import evaluate
from launcher.jobs.segment import segment
from launcher.run.folder import run_folder
from launcher.training.run import train
from shards.folder import ShardFolder
from shards.image_bytes import decode_mask
from shards.sources.coco14 import read_coco
from shards.sources.coco_files import find_files as find_coco
from shards.sources.voc12 import read_voc12
from shards.sources.voc_files import find_files as find_voc
from shards.tars import tar_members
from shards.write import write_split

pytestmark = pytest.mark.real_data


class Part:
    """Every n-th sample of a source, beginning with one."""

    def __init__(self, source, first, step):
        self.source, self.numbers, self.class_set = source, range(first, len(source), step), source.class_set

    def __len__(self):
        return len(self.numbers)

    def __getitem__(self, number):
        return self.source[self.numbers[number]]

    def groups(self):
        return [self.source.groups()[number] for number in self.numbers]


def source_of(real_data, name, here, masks):
    root = real_data / name
    if name == "voc_real10":
        (here / "ten.txt").write_text("\n".join(sorted(path.stem for path in (root / "JPEGImages").iterdir())))
        return read_voc12(find_voc([root], here), "val", list_file=str(here / "ten.txt"), with_masks=masks)
    found = find_coco([root])
    return read_coco(found.annotations["train2017"], found.images["train2017"], here / "lines", with_masks=masks)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("name", "every"), [("voc_real10", 3), ("coco_tiny_a", 8)])
def test_real_images_are_trained_on_segmented_at_their_own_size_and_judged(real_data, in_tmp, request, name, every):
    train_part = Part(source_of(real_data, name, in_tmp, masks=False), 0, every)
    val_part = Part(source_of(real_data, name, in_tmp, masks=True), 1, every)
    write_split(train_part, in_tmp / "data", "train", "label", num_shards=2, may_lack_classes=True)
    write_split(val_part, in_tmp / "data", "val", "pixel", num_shards=2)
    overrides = [*TOY, "method.msee_from=0", "train.steps=3", "data.image_size=64", "data.may_lack_classes=true"]
    overrides += ["data.train=data/train", "data.val=data/val", "segment.size=native", "segment.crf=true"]
    overrides += ["segment.crf_classes=proposed", "segment.mean_field.iterations=1"]
    config = load_config(request.config.rootpath / "configs/voc/msee_vitb.yaml", [*overrides, "train.eval_every=null"])
    train(config)
    run, val = run_folder(config), ShardFolder(in_tmp / "data/val", "pixel")
    folder = segment(run, "val", val.folder, [], None, cams=True)
    sizes = {}
    for shard in val.index.shards:
        for key, extension, _, data in tar_members(folder / shard.name):
            if extension.endswith("png"):
                sizes[key, extension] = decode_mask(data, key).shape
    for number, key in enumerate(val.keys):
        assert sizes[key, "png"] == sizes[key, "cam.png"] == val.mask(number).shape
    figures = evaluate(run)["sources"]
    for source in ("segments", "segments.cam", "segments.aux_cam"):
        assert 0 <= figures[source]["fixed"]["miou"] <= 1
    assert "CRF" in figures["segments"]["protocol"]
