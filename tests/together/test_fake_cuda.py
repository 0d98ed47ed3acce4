"""What a GPU would trip over, without a GPU: see support/fake_cuda.py."""

import itertools
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from packaging.version import Version
from support.fake_cuda import CUDA, Launches, Waits, fake_cuda, hollow, without_values
from support.methods import TOYS, build
from support.networks import tiny_pcm, tiny_toco, tiny_vit
from support.toys import SMALL

from launcher.bench.stage import Stage
from launcher.config.sections import CamConfig, TrainConfig
from launcher.jobs.infer import cams_of
from launcher.jobs.segment_images import maps_reader
from launcher.tracking.protocol import NoTracker
from launcher.training.average import Average
from launcher.training.skips import Skips
from launcher.training.trainer import Trainer
from wsss.maps.fusion import cams_of_present, fold_views
from wsss.maps.pseudo_label import cam_label
from wsss.maps.scales import scaled_views
from wsss.methods import MSEE, Classify, Distill
from wsss.methods.base import Frozen
from wsss.metrics.confusion import confusion_matrix
from wsss.optim import parameter_groups

if Version(torch.__version__) < Version("2.9"):
    pytest.skip("a convolution of torch 2.8 asks the real driver and ends the process", allow_module_level=True)
LAUNCHES = 3654  # before recording
LAST = {name: max(toy.steps.values()) for name, toy in TOYS.items()}  # a step with all losses
HELD_BY_OTHERS = ("toco", "cotrain", "classify")  # msee, distill and supervised take the same ways
STEPS = [(name, step, "bf16") for name, step in LAST.items() if name not in HELD_BY_OTHERS]
STEPS += [("distill", LAST["distill"], "fp16")]  # where an average asks which updates were left out


@pytest.mark.parametrize(("name", "step", "precision"), STEPS)
def test_a_step_of_the_trainer_runs_on_a_gpu_and_never_waits_for_it(tmp_path, name, step, precision):
    toy = TOYS[name]
    method, batch = build(name, 3, **toy.options).train(), as_loaded(toy.batch(4, 3))
    method.counts(batch)  # what it looks at once, on tensors of another kind
    average = Average(method, 0.9, torch.device("cpu"))
    with fake_cuda():
        trainer = make_trainer(without_values(method), precision, tmp_path)
        without_values(average.method)
        trainer.update.average = average
        trainer.step = step
        batches = itertools.repeat({**hollow(batch), "key": ["a"] * 4})
        trainer.train_step(batches)  # what is made once: a teacher moves
        with Waits() as waits:
            trainer.train_step(batches)
        assert {value.dtype for value in trainer.update.window.sums.values()} == {torch.float32}
        assert {value.device for value in trainer.update.window.sums.values()} == {CUDA}
    assert not waits.found


def as_loaded(batch: dict) -> dict:
    """A batch as a loader gives it: images of bytes."""
    inside = {name: as_loaded(value) for name, value in batch.items() if isinstance(value, dict)}
    return {**batch, **inside, "image": (batch["image"] * 255).to(torch.uint8)}


def make_trainer(method, precision: str, run: Path) -> Trainer:
    accelerator = Accelerator()
    return Trainer(
        config=TrainConfig(steps=100, lr=1e-3, max_grad_norm=1.0, accumulate=2, log_every=10, precision=precision),
        run=run,
        resume_from=None,
        accelerator=accelerator,
        method=method,
        optimizer=torch.optim.AdamW(parameter_groups(method, 0.01), lr=1e-3, fused=True),
        batches_from=lambda step: iter(()),
        evaluate=None,
        tracker=NoTracker(),
        global_batch_size=8,
        skips=Skips(run, 0, accelerator),
    )


@pytest.mark.parametrize(
    ("method", "kinds"),
    [
        (lambda: Classify(tiny_vit(2)), ("grad", "layer", "class_map", "attention")),
        (lambda: Distill(tiny_vit(), Frozen(tiny_pcm())), ("grad", "project")),
        (lambda: Classify(tiny_pcm()), ("grad", "class_map", "no_pcm")),
    ],
)
def test_cams_are_made_on_a_gpu_without_a_wait(method, kinds):
    method = method()
    with fake_cuda():
        without_values(method)
        if isinstance(method, Distill):
            method.teacher.on(CUDA)
        with Waits() as waits:
            config = CamConfig(kinds=kinds, scales=(0.5, 1.0), flip=True)
            cams, probs = cams_of(method, torch.empty(2, 3, 32, 32, device=CUDA), config)
            frame = torch.empty(1, 3, 64, 96, device=CUDA)
            cams_of(method, frame, CamConfig(kinds=kinds, window_px=32, batch_size=4))
        assert {cam.device for cam in cams.values()} == {CUDA} and probs.device == CUDA
    assert not waits.found


@pytest.mark.parametrize("precision", ["ieee", "bf16"])
def test_masks_are_made_and_counted_on_a_gpu_without_a_wait(precision):
    method = MSEE(tiny_toco(), **SMALL)
    with fake_cuda():
        without_values(method).eval()
        read = maps_reader(method.student, precision)
        present = torch.empty(2, 2, dtype=torch.int64, device=CUDA)
        truth = torch.empty(30, 41, dtype=torch.uint8, device=CUDA)
        image = torch.empty(2, 3, 32, 32, device=CUDA)
        with Waits() as waits:
            views = list(scaled_views(read, image, stride=8, scales=(1.0, 0.5), flip=True))
            cams = cams_of_present(views, ("cam", "aux_cam"), present, (32, 32), "toco")
            for cam in cams.values():
                confusion_matrix(truth, cam_label(cam[:1], present[:1], truth.shape, 0.5), 4)
            logits = [view.at_one_layer("seg") for view in views]
            fold_views(logits, (30, 41), flips="sum", scales="max").argmax(dim=1)
    assert not waits.found


@pytest.mark.parametrize(
    ("what", "plant"),
    [
        ("copy from the host", lambda x: x + torch.arange(3.0).to(x)),
        ("copy from the host", lambda x: x + torch.tensor([1.0, 2, 3], device=x.device)),
        ("copy to the host", lambda x: x.cpu()),
        ("index from the host", lambda x: x[torch.tensor([0, 1])]),
        ("item()", lambda x: x.sum().item()),
        ("nonzero", lambda x: x.nonzero()),
        ("index by a mask", lambda x: x[x > 0]),
    ],
)
def test_a_planted_wait_is_seen(what, plant):
    with fake_cuda():
        x = torch.empty(3, device=CUDA)
        with Waits() as waits, suppress(Exception):  # those that need a value raise as well
            plant(x)
    assert what in {found for found, _ in waits.found}


def test_a_planted_tensor_of_the_host_is_refused():
    with fake_cuda(), pytest.raises(RuntimeError, match="same device"):
        torch.empty(3, device=CUDA) + torch.empty(3)


def test_gradients_without_the_engine_have_the_shapes_and_types_of_their_parameters():
    toy = TOYS["msee"]
    method, real, batch = build("msee", 3, **toy.options), build("msee", 3, **toy.options), toy.batch(4, 3)
    real(batch, 20)["loss"].backward()
    with fake_cuda():
        without_values(method)
        moved = {
            name: value.to(CUDA, non_blocking=True) for name, value in hollow(batch).items() if torch.is_tensor(value)
        }
        method(moved, 20)["loss"].backward()
        found = {n: (p.grad.shape, p.grad.dtype) for n, p in method.named_parameters() if p.grad is not None}
    assert found == {n: (p.grad.shape, p.grad.dtype) for n, p in real.named_parameters() if p.grad is not None}


def test_a_step_of_msee_launches_no_more_than_it_did():
    """At twelve blocks, as ViT-B has. An H100's host needs about 30 us for each; a graph (train.graph) none."""
    stage = Stage(torch.device("cpu"), smoke=True)
    method, batch = stage.method("msee", 2, 64)
    with fake_cuda():
        without_values(method)
        moved = {name: x.to(CUDA, non_blocking=True) for name, x in hollow(batch).items() if torch.is_tensor(x)}
        with Launches() as launches, torch.autocast("cuda", torch.bfloat16):
            method(moved, 20)["loss"].backward()
    assert launches.found.total() <= 1.02 * LAUNCHES, launches.found.most_common(12)
    assert launches.found.total() >= 0.9 * LAUNCHES, "fewer: write the new number down"
