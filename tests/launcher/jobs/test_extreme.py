"""Images of one pixel's width and maps that are saturated go through every job."""

import numpy as np
import pytest
from support.photographs import PETS, Segmenting, stand_in_for_a_run

from launcher.config.file import load_config
from launcher.config.options import Named
from launcher.config.sections import RefineConfig
from launcher.jobs import infer as infer_job
from launcher.jobs import network_job
from launcher.jobs import segment as segment_job
from launcher.jobs.refine import refine
from launcher.jobs.scores import at_size, read_scores
from shards.folder import ShardFolder
from shards.image_bytes import encode_image
from shards.masks import MaskFolder
from shards.schema import Sample
from shards.write import write_split
from wsss.refine.crf import add_background, dense_crf

SIZES = ((1, 1), (1, 90), (90, 1), (2, 33), (9, 7))


class Thin:
    """Noise of extreme sizes."""

    class_set = PETS

    def __len__(self):
        return len(SIZES)

    def groups(self):
        return [str(n) for n in range(len(self))]

    def __getitem__(self, n):
        image = np.random.default_rng(n).integers(0, 256, (*SIZES[n], 3), dtype=np.uint8)
        label = (1 + n % 2,)
        return Sample(key=f"thin{n}", image=encode_image(image), image_label=label, group=str(n), source="thin")


@pytest.fixture
def thin(tmp_path):
    write_split(Thin(), tmp_path, "val", "label", num_shards=2)
    return ShardFolder(tmp_path / "val")


@pytest.fixture
def run(in_tmp, tiny_yaml, monkeypatch):
    def config_of(overrides):
        return load_config(tiny_yaml("classify"), ["segment.workers=0", "cam.kinds=[class_map]", *overrides])

    for job in (infer_job, segment_job):
        stand_in_for_a_run(job, monkeypatch, config_of, PETS, Segmenting())
    return in_tmp / "runs/pets"


@pytest.mark.parametrize("job", ["infer", "segment"])
def test_the_first_large_image_of_a_shard_is_named(run, thin, job, monkeypatch, capsys):
    monkeypatch.setattr(network_job, "LARGE_PX", 60)
    if job == "infer":
        infer_job.infer(run, "val", thin.folder, ["cam.window_px=16"])
    else:
        segment_job.segment(run, "val", thin.folder, ["segment.crf=false", "segment.size=native"])
    said = [line for line in capsys.readouterr().err.splitlines() if "at their own size" in line]
    assert len(said) == 2 and "thin1': 1 x 90 pixels go through the network at their own size" in said[0] + said[1]


def sizes_of(shards):
    return {number: shards.image(number).shape[:2] for number in range(len(shards))}


@pytest.mark.parametrize("crf", ["false", "true"])
def test_segment_at_several_scales(run, thin, crf):
    options = [f"segment.crf={crf}", "segment.size=native", "segment.scales=[0.3,1,1.5]", "segment.flip=true"]
    masks = MaskFolder(segment_job.segment(run, "val", thin.folder, options), thin)
    assert {number: masks(number).shape for number in range(len(thin))} == sizes_of(thin)


@pytest.mark.parametrize(
    "views", [["cam.fuse=toco", "cam.pad=pad"], ["cam.fuse=toco", "cam.pad=floor"], ["cam.fuse=mean"]]
)
@pytest.mark.parametrize("window", ["null", "16"])
def test_infer_and_refine(run, thin, views, window):
    scales = ["cam.scales=[0.1,1]", "cam.flip=true", f"cam.window_px={window}"]
    infer_job.infer(run, "val", thin.folder, [*views, *scales])
    (folder,) = refine(run, ["val"], RefineConfig(chain=(Named(name="crf", gamma=0.5),), workers=1))
    masks = MaskFolder(folder, thin)
    assert {number: masks(number).shape for number in range(len(thin))} == sizes_of(thin)
    for shard in thin.index.shards:
        for _, scores in read_scores(thin, folder, shard.name, "refined"):
            assert 0 <= scores.maps["refined"].min() <= scores.maps["refined"].max() <= 1


def test_a_saturated_map_stays_in_its_range_at_any_size_and_a_root_of_it_is_a_number():
    rng = np.random.default_rng(0)
    for _ in range(200):
        size = tuple(rng.integers(1, 63, 2).tolist())
        scores = at_size(np.ones((2, *rng.integers(1, 9, 2)), dtype=np.float32), size)
        assert scores.max() <= 1 and np.isfinite(add_background(scores, 2.5)).all()
    over = np.full((1, 4, 5), 1.0000001, dtype=np.float32)
    marginals = dense_crf(np.zeros((4, 5, 3), dtype=np.uint8), over, gamma=2.5)
    assert np.isfinite(marginals).all() and marginals.min() > 0.5
    with pytest.raises(ValueError, match="gamma is 0; wanted above 0"):
        add_background(over, 0)
