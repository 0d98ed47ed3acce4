import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from support.networks import tiny_vit

import wsss
from launcher.errors import ConfigError, RunError, report_user_errors
from launcher.files import RUNS
from launcher.processes.accelerator import make_accelerator
from launcher.processes.signals import Stopped
from launcher.run.lock import only_writer
from launcher.run.steps import checkpoints
from launcher.tracking.protocol import NoTracker
from launcher.tracking.tracker import read_metrics
from launcher.training import gradients
from launcher.training.gradients import SharedGradient, clip_gradients, poison_gradient, seed_step
from launcher.training.inputs import Inputs
from launcher.training.run import train
from launcher.training.skips import Skips
from launcher.training.trainer import Trainer
from shards.batches.batch import to_device
from shards.batches.waiting import watch
from shards.folder import ShardFolder
from wsss.methods.classify import Classify
from wsss.optim import parameter_groups


def digest(method):
    state = method.state_dict()
    return hashlib.sha256(b"".join(state[name].numpy().tobytes() for name in sorted(state))).hexdigest()


def test_a_run_leaves_checkpoints_metrics_config_and_facts(in_tmp, tiny_config):
    train(tiny_config("classify"))
    run = RUNS / "teacher"
    names = {".lock", "config.yaml", "run.json", "metrics.jsonl", "tracking", "images", "step_0000002", "step_0000004"}
    assert names | {"train.log"} == {p.name for p in run.iterdir()}
    lines = read_metrics(run)
    assert [line["step"] for line in lines if "train/loss" in line] == [2, 4]
    assert all(line["train/images_per_s"] > 0 for line in lines if "train/loss" in line)
    last = [line for line in lines if "val/average_precision" in line][-1]
    assert {"val/class_map/per_image_iou", "val/class_map/false_alarm_area", "val/class_map/chimney_area"} <= set(last)
    about = json.loads((run / "run.json").read_text())
    assert about["packages"]["wsss"] == wsss.__version__
    assert about["classes"] == ["smoke"] and about["packages"]["torch"] == torch.__version__.split("+")[0]


def test_training_lowers_the_loss(in_tmp, tiny_config):
    train(tiny_config("classify", "train.steps=60", "train.lr=1e-2", "train.log_every=10", "train.eval_every=60"))
    losses = [line["train/loss"] for line in read_metrics(RUNS / "teacher") if "train/loss" in line]
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("method", ["classify", "distill"])
def test_a_run_that_was_cut_off_ends_bit_equal_to_one_that_was_not(in_tmp, tiny_config, method, monkeypatch):
    if method == "distill":
        train(tiny_config("classify"))
    whole = digest(train(tiny_config(method, "train.steps=6", "name=whole")))

    steps = []
    plain_step = Trainer.train_step

    def cut_off(self, batches):
        steps.append(self.step)
        if len(steps) == 6:  # after step 5, whose checkpoint is step 4
            raise KeyboardInterrupt
        plain_step(self, batches)

    config = tiny_config(method, "train.steps=6", "name=cut")
    monkeypatch.setattr(Trainer, "train_step", cut_off)
    with pytest.raises(KeyboardInterrupt):
        train(config)
    assert sorted(p.name for p in (RUNS / "cut").glob("step_*")) == ["step_0000002", "step_0000004"]
    resumed = digest(train(config))
    assert steps == [0, 1, 2, 3, 4, 5, 4, 5]
    assert resumed == whole
    logged = [line["step"] for line in read_metrics(RUNS / "cut") if "train/loss" in line]
    assert logged == [2, 4, 6]  # no step twice


def at_step(monkeypatch, step, act):
    """Do something before a step (0-based) is trained, once."""
    plain_step, done = Trainer.train_step, []

    def acting(self, batches):
        if self.step == step and not done:
            done.append(step)
            act()
        plain_step(self, batches)

    monkeypatch.setattr(Trainer, "train_step", acting)


@pytest.mark.parametrize("method", ["classify", "msee"])
def test_sigterm_ends_in_a_checkpoint_after_the_step_and_the_rest_follows_bit_equal(
    in_tmp, tiny_config, method, monkeypatch
):
    settings = ["train.steps=6", "train.save_every=4", "train.keep=9", "train.log_every=1", "train.eval_every=3"]
    config = {
        name: tiny_config("classify", *settings, f"name={name}", *(MSEE if method == "msee" else []))
        for name in ("whole", "cut")
    }
    whole = digest(train(config["whole"]))
    assert [path.name for path in checkpoints(RUNS / "whole")] == ["step_0000004", "step_0000006"]
    at_step(monkeypatch, 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Stopped, match="stopped after step 3 as requested; run the same command to resume"):
        train(config["cut"])
    assert [path.name for path in (RUNS / "cut").glob("step_*")] == ["step_0000003"]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert digest(train(config["cut"])) == whole
    logged = [without_clock(read_metrics(RUNS / name)) for name in ("whole", "cut")]
    assert logged[0] == logged[1]  # losses, and the evaluation of step 3, which the stop had put off


MSEE = [
    "model={name: toco, timm_name: vit_tiny_patch16_224, decoder_dim: 8, dilation: 1, "
    "timm_options: {img_size: 32, patch_size: 8, embed_dim: 16, depth: 3, num_heads: 2}}",
    "method={name: msee, crop_px: 16, crop_num: 2, projection_dim: 8, projection_out: 6, bottleneck: 4, "
    "par_iterations: 2, par_dilations: [1, 2], seg_from: 3, msee_from: 4, group_size: 2}",
]


def without_clock(lines):
    """{(step, figure): value} of what does not depend on the time that it took."""
    clock = {"step", "time", "train/images_per_s", "train/save_s", "val/seconds"}
    named = ((line["step"], name, value) for line in lines for name, value in line.items())
    return {(step, name): value for step, name, value in named if name not in clock and not name.startswith("system/")}


@pytest.mark.parametrize("dies_in", ["run_evaluation", "record_figures"])  # before it, and after its line was logged
def test_an_evaluation_that_was_killed_is_made_up_for(in_tmp, tiny_config, monkeypatch, dies_in):
    config = tiny_config("classify", "train.steps=4", "train.eval_every=2")
    whole = train(config.model_copy(update={"name": "whole"}))
    plain = getattr(Trainer, dies_in)

    def dies(self, *arguments):
        if self.step == 4:
            raise KeyboardInterrupt
        plain(self, *arguments)

    monkeypatch.setattr(Trainer, dies_in, dies)
    with pytest.raises(KeyboardInterrupt):
        train(config)
    monkeypatch.setattr(Trainer, dies_in, plain)
    assert digest(train(config)) == digest(whole)
    assert without_clock(read_metrics(RUNS / "teacher")) == without_clock(read_metrics(RUNS / "whole"))
    assert [line["step"] for line in read_metrics(RUNS / "teacher") if "val/average_precision" in line] == [2, 4]
    lines = len(read_metrics(RUNS / "teacher"))
    train(config)
    assert len(read_metrics(RUNS / "teacher")) == lines  # nothing was left to make up for


def test_a_damaged_checkpoint_costs_steps_and_nothing_else(in_tmp, tiny_config, capsys):
    settings = ["train.steps=6", "train.log_every=1"]
    whole = digest(train(tiny_config("classify", *settings, "name=whole")))
    assert digest(train(tiny_config("classify", *settings))) == whole
    path = RUNS / "teacher/step_0000006/optimizer.pt"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert digest(train(tiny_config("classify", *settings))) == whole
    assert "moved to step_0000006.damaged" in capsys.readouterr().out
    assert without_clock(read_metrics(RUNS / "teacher")) == without_clock(read_metrics(RUNS / "whole"))


def test_the_best_checkpoint_of_a_run_stays(in_tmp, tiny_config, monkeypatch):
    figures = iter([0.9, 0.2, 0.3])
    figure = "val/class_map/pooled_iou"
    monkeypatch.setattr("launcher.training.run.make_validator", lambda *_: lambda step: {figure: next(figures)})
    keep = ["train.keep=1", "train.eval_every=2", "train.save_every=null", f"train.keep_best={figure}"]
    train(tiny_config("classify", "train.steps=6", *keep))
    assert sorted(path.name for path in (RUNS / "teacher").glob("step_*")) == ["step_0000002", "step_0000006"]


@pytest.mark.parametrize("share", ["data.global_batch_size=1", "train.accumulate=8"])
def test_a_control_that_would_be_the_treatment_is_refused_before_the_first_step(run, tiny_config, share):
    overrides = ["name=control", "method.shuffle_teacher=true", share]
    with pytest.raises(ConfigError, match="shuffle_teacher: a process has one image at a time"):
        train(tiny_config("distill", *overrides))
    assert not list((RUNS / "control").glob("step_*")) and not (RUNS / "control/config.yaml").exists()


def test_a_step_at_which_the_figure_does_not_exist_is_not_the_best(in_tmp, tiny_config, monkeypatch):
    figures, figure = iter([None, 0.2, None]), "val/class_map/precision"
    monkeypatch.setattr("launcher.training.run.make_validator", lambda *_: lambda step: {figure: next(figures)})
    keep = ["train.keep=1", "train.eval_every=2", "train.save_every=null", f"train.keep_best={figure}"]
    train(tiny_config("classify", "train.steps=6", *keep))
    assert sorted(path.name for path in (RUNS / "teacher").glob("step_*")) == ["step_0000004", "step_0000006"]


@pytest.mark.parametrize(
    ("figure", "said"),
    [
        ("val/miou", "evaluation gives no metric 'val/miou'; nearest are .*val/class_map/pooled_iou"),
        ("val/class_map/per_image_oiu", "nearest are val/class_map/per_image_iou, "),
        ("val/grad/pooled_iou", "nearest are val/class_map/pooled_iou"),  # no kind of cam.kinds
        ("val/class_map/false_alarm_area", "for which lower is better"),
        ("val/class_map/chimney_area", "for which lower is better"),
    ],
)
def test_a_best_of_a_figure_that_will_not_be_there_is_refused_before_the_first_step(in_tmp, tiny_config, figure, said):
    with pytest.raises(ConfigError, match=f"train.keep_best.*{said}"):
        train(tiny_config("classify", "train.steps=2", f"train.keep_best={figure}"))
    assert not (RUNS / "teacher").exists()


def test_a_best_of_a_figure_that_evaluation_could_not_give_is_reported(in_tmp, tiny_config, monkeypatch):
    figure = "val/class_map/per_image_iou"
    monkeypatch.setattr("launcher.training.run.make_validator", lambda *_: lambda step: {"val/accuracy": 0.5})
    with pytest.raises(RunError, match=f"keep_best: evaluation gave no metric '{figure}'; it gave val/accuracy"):
        train(tiny_config("classify", "train.steps=2", f"train.keep_best={figure}"))
    assert (RUNS / "teacher/step_0000002").is_dir()


def test_a_second_training_in_the_same_folder_is_refused(in_tmp, tiny_config, monkeypatch):
    (RUNS / "teacher").mkdir(parents=True)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(RUNS / "teacher")], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "held\n"
    try:
        with (
            pytest.raises(RunError, match=rf"is being trained by process {holder.pid} on"),
            only_writer(RUNS / "teacher", wait_s=0.3),
        ):
            pass
    finally:
        holder.kill()
        holder.communicate()
    with only_writer(RUNS / "teacher", wait_s=10):
        pass


HOLD = """
import sys
from pathlib import Path
from launcher.run.lock import only_writer
with only_writer(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_finished_run_is_not_trained_again(in_tmp, tiny_config, capsys):
    first = digest(train(tiny_config("classify")))
    assert digest(train(tiny_config("classify"))) == first
    said = capsys.readouterr().out
    assert "all 4 steps are already done" in said and "damaged samples" not in said


def test_other_settings_in_the_same_folder_are_refused(in_tmp, tiny_config):
    train(tiny_config("classify", "train.steps=2"))
    with pytest.raises(RunError, match=r"begun with other settings \(train.lr: 0.001 -> 0.1\)"):
        train(tiny_config("classify", "train.steps=2", "train.lr=0.1"))
    train(tiny_config("classify", "train.steps=2", "train.log_every=1", "evaluate.gallery=2"))


def test_a_student_does_not_go_on_with_another_teacher(in_tmp, tiny_config):
    train(tiny_config("classify"))
    train(tiny_config("distill"))
    train(tiny_config("distill"))  # the same one
    (RUNS / "teacher/step_0000004/optimizer.pt").unlink()  # not complete: the one before would be taken
    with pytest.raises(RunError, match=r"teacher: step_0000004, sha256 \w+ -> step_0000002, sha256 \w+"):
        train(tiny_config("distill"))


def test_other_data_under_the_same_name_are_refused(in_tmp, tiny_config):
    train(tiny_config("classify", "train.steps=0"))
    path = RUNS / "teacher/run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "dataset_fingerprint": "0" * 16}))
    with pytest.raises(RunError, match="dataset fingerprint: 0000000000000000 -> "):
        train(tiny_config("classify", "train.steps=0"))


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_does_not_decode_stops_the_run_and_is_named(in_tmp, tiny_config, scenes, workers, capsys):
    folder = shutil.copytree(scenes / "train", in_tmp / "broken")
    shards = ShardFolder(folder)
    for number, (offset, size) in enumerate(shards.index.shards[4].members["jpg"]):
        path = folder / shards.index.shards[4].name
        data = bytearray(path.read_bytes())
        data[offset : offset + size] = bytes(size)
        path.write_bytes(data)
        assert number < 4
    with pytest.raises(SystemExit) as end, report_user_errors():
        train(tiny_config("classify", "train.steps=20", "data.train=broken", f"data.workers={workers}"))
    said = capsys.readouterr().err
    assert end.value.code == 2
    assert re.search(r"^error: broken/train-00004.tar: sample 'train-\d+': image does not decode", said, re.M)
    assert "Traceback" not in said


def test_sigterm_while_no_batch_comes_ends_the_run_with_its_last_checkpoint(in_tmp, tiny_config, monkeypatch):
    """As where the store is away: there is no step after which it could stop."""
    monkeypatch.setattr("launcher.processes.signals.PATIENCE_S", 0.3)
    real = Inputs.batches_from

    def stalls(self, step, **ranks):
        batches = real(self, step, **ranks)
        yield from (next(batches) for _ in range(3))
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(100)

    monkeypatch.setattr(Inputs, "batches_from", lambda self, step, **ranks: watch(stalls(self, step, **ranks), 480.0))
    with pytest.raises(Stopped, match="waiting for a batch that did not arrive after step 3"):
        train(tiny_config("classify", "train.steps=20"))
    run = RUNS / "teacher"
    assert [path.name for path in checkpoints(run)] == ["step_0000002"]
    assert json.loads((run / "tracking/wanted.json").read_text())["status"] == "KILLED"


def test_zero_steps_save_and_evaluate_the_untrained_model(in_tmp, tiny_config):
    train(tiny_config("classify", "train.steps=0"))
    assert (RUNS / "teacher/step_0000000/state.json").is_file()
    assert any("val/average_precision" in line for line in read_metrics(RUNS / "teacher"))


def test_gradient_accumulation_gives_the_update_of_the_whole_batch(in_tmp, tiny_config):
    # A ViT has no batch statistics, so the only difference is the order of float additions.
    vit = ["method.name=classify", "teacher=null", "train.steps=2", "cam.kinds=[class_map]", "data.flip=0"]
    once = train(tiny_config("distill", *vit, "name=a")).state_dict()
    twice = train(tiny_config("distill", *vit, "name=b", "train.accumulate=4")).state_dict()
    for name, tensor in once.items():
        torch.testing.assert_close(tensor, twice[name], atol=2e-4, rtol=1e-3)
    assert any(not torch.equal(tensor, twice[name]) for name, tensor in once.items())


class Breaks(Classify):
    """Its loss stops being finite at a step, in value or only in gradient."""

    def __init__(self, how):
        super().__init__(tiny_vit())
        self.how = how

    def forward(self, batch, step):
        losses = super().forward(batch, step)
        if step == 3:
            bad = losses["loss"].detach() * float("nan") if self.how == "value" else losses["loss"].sub(
                losses["loss"].detach()
            ).abs().sqrt()  # fmt: skip
            losses["loss"] = losses["loss"] + bad
        return losses


@pytest.mark.parametrize("how", ["value", "gradient"])
def test_a_loss_or_gradient_that_is_not_finite_stops_the_run_before_the_update(in_tmp, tiny_config, how):
    config = tiny_config("classify", "train.steps=8", "train.save_every=2")
    inputs = Inputs(config)
    method = Breaks(how)
    before_step_3 = {}

    class Watch(Trainer):
        def train_step(self, batches):
            if self.step == 3:
                before_step_3.update({n: t.clone() for n, t in self.update.plain_method.state_dict().items()})
            super().train_step(batches)

    accelerator = make_accelerator(config, processes=None)
    trainer = Watch(
        config=config.train,
        run=RUNS / "breaks",
        resume_from=None,
        accelerator=accelerator,
        method=method,
        optimizer=torch.optim.AdamW(parameter_groups(method, 0.01), fused=True),
        batches_from=inputs.batches_from,
        evaluate=None,
        tracker=NoTracker(),
        global_batch_size=8,
        skips=Skips(RUNS / "breaks", 0, accelerator),
    )
    with pytest.raises(
        RunError, match="non-finite loss or gradient at step 4; .*last good checkpoint: .*step_0000002"
    ) as e:
        trainer.fit()
    keys = next(inputs.batches_from(3))["key"]
    assert f"samples {', '.join(keys)}" in str(e.value)
    assert "wsss replay runs/breaks --step 4" in str(e.value)
    assert ("rank 0: loss nan, cls_loss 0." in str(e.value)) == (how == "value")
    assert all(torch.equal(tensor, method.state_dict()[name]) for name, tensor in before_step_3.items())
    assert sorted(p.name for p in (RUNS / "breaks").iterdir()) == ["step_0000002"]


def test_a_loss_that_is_not_finite_makes_every_gradient_nan():
    weight = torch.ones(2, requires_grad=True)
    poison_gradient(weight.sum() + torch.tensor(float("inf"))).backward()
    assert torch.isnan(weight.grad).all()
    weight.grad = None
    poison_gradient(weight.sum()).backward()
    assert weight.grad.tolist() == [1.0, 1.0]


@pytest.mark.parametrize(("max_norm", "left"), [(None, [3.0, 4.0]), (10.0, [3.0, 4.0]), (2.5, [1.5, 2.0])])
def test_a_gradient_is_clipped_by_the_length_of_all_of_it(max_norm, left):
    weights = [torch.nn.Parameter(torch.zeros(1)) for _ in range(3)]
    weights[0].grad, weights[1].grad = torch.tensor([3.0]), torch.tensor([4.0])  # nothing reads the third
    assert clip_gradients(torch.optim.AdamW(weights), weights, max_norm).item() == 5
    assert [weight.grad.item() for weight in weights[:2]] == pytest.approx(left)


def test_the_gradient_of_two_ranks_is_the_mean_of_theirs_by_hand(monkeypatch):
    weights = [torch.nn.Parameter(torch.zeros(1, 2)), torch.nn.Parameter(torch.zeros(1))]
    shared = SharedGradient(weights)
    (weights[0] @ torch.tensor([4.0, 6.0]) + 8 * weights[1]).sum().backward()  # the other rank has 2, 2, 2
    monkeypatch.setattr(gradients, "rank_count", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda mine: mine.add_(torch.tensor([2.0, 2.0, 2.0]) / 2))
    shared.average()
    assert [weight.grad.tolist() for weight in weights] == [[[3.0, 4.0]], [5.0]]


def test_images_become_floats_in_zero_to_one_on_the_device():
    batch = to_device({"image": torch.tensor([[0, 51, 255]], dtype=torch.uint8), "key": ["a"]}, torch.device("cpu"))
    assert batch["image"].tolist() == [pytest.approx([0.0, 0.2, 1.0])] and batch["key"] == ["a"]


def test_randomness_of_a_step_is_keyed_by_seed_step_and_rank():
    def draw(*key):
        seed_step(*key)
        return torch.rand(1).item()

    assert draw(0, 5, 0) == draw(0, 5, 0)
    assert len({draw(0, 5, 0), draw(0, 6, 0), draw(0, 5, 1), draw(1, 5, 0)}) == 4
    assert np.isfinite(draw(0, 0, 0))


@pytest.mark.parametrize(
    ("overrides", "advice"),
    [
        ([], r"train\.accumulate=2 \(the same batch in smaller parts\), or train\.precision=bf16; or"),
        (["train.precision=bf16", "train.graph=true"], r"smaller parts\), or train\.graph=false"),
    ],
)
def test_a_gpu_whose_memory_ends_is_told_with_what_to_do(in_tmp, tiny_config, monkeypatch, overrides, advice):
    def full(self, batch, step):
        if step == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nmore")
        return losses(self, batch, step)

    losses = Classify.forward
    monkeypatch.setattr(Classify, "forward", full)
    with pytest.raises(RunError, match=r"step 3: the GPU ran out of memory \(CUDA out of memory\. .*" + advice):
        train(tiny_config("classify", *overrides))
    assert json.loads((RUNS / "teacher/failure.json").read_text())["step"] == 2
