"""ZeRO-1 and 2 against DDP, on two CPU processes: the same losses, and checkpoints that belong to none of them."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from support.places import ROOT
from support.tiny import VIT
from support.together import together, trained

from launcher.config.file import load_config, to_yaml
from launcher.errors import ConfigError, RunError
from launcher.predict.export import export
from launcher.processes.zero import ZeroOptimizer
from launcher.processes.zero_settings import check_engine, read_zero, settings_for
from launcher.run.folder import ABOUT, CONFIG, Run

pytest.importorskip("deepspeed")  # which is for Linux
JSONS = sorted((ROOT / "configs/deepspeed").glob("*.json"))
FOUR_STEPS = ["data.val=null", "train.steps=4", "train.log_every=1", "train.save_every=2", "launch.processes=2"]


@pytest.fixture
def distill(in_tmp, finished_runs, tiny_yaml):
    """A YAML for `distill` in a folder that has the teacher it wants."""
    (in_tmp / "runs").mkdir()
    (in_tmp / "runs/teacher").symlink_to(finished_runs / "runs/teacher")
    return tiny_yaml("distill")


def five_digits(values):
    return pytest.approx(values, rel=1e-5)


def test_every_stage_trains_as_ddp_to_five_digits(distill):
    zeros = ["0", "1", "2"]
    runs = [[*FOUR_STEPS, f"launch.zero={zero}", f"name=z{zero}"] for zero in zeros]
    hard = ["train.accumulate=2", "train.max_grad_norm=0.05", "train.precision=bf16"]
    runs += [[*FOUR_STEPS, *hard, f"launch.zero={zero}", f"name=hard{zero}"] for zero in ("0", "2")]
    ddp, *others, hard_ddp, hard_zero = together(2, trained, distill, runs)[0]
    assert len(ddp["losses"]) == 4 and ddp["losses"][3] != pytest.approx(ddp["losses"][0], rel=1e-3)
    for run, other in zip(runs[1:], others, strict=False):
        assert other["losses"] == five_digits(ddp["losses"]), run
        assert other["norms"] == five_digits(ddp["norms"]), run
        assert other["sum"] == five_digits(ddp["sum"]), run
    assert max(hard_ddp["norms"]) > 0.05  # else nothing was clipped
    assert hard_zero["losses"] == pytest.approx(hard_ddp["losses"], rel=1e-3)  # bf16
    assert hard_zero["norms"] == pytest.approx(hard_ddp["norms"], rel=2e-2)


def test_a_checkpoint_of_any_stage_and_number_of_processes_goes_on_under_any_other(distill):
    """DDP -> ZeRO-2 -> ZeRO-1 on two processes -> DDP on one, a step each, beside a run that nobody stopped."""

    def until(step, zero, processes, name):
        overrides = [*FOUR_STEPS, "train.save_every=1", f"train.steps={step}", f"launch.zero={zero}"]
        overrides += ["train.ema_decay=0.5", "train.keep=4"]
        return [*overrides, f"launch.processes={processes}", f"name={name}"]

    two = together(
        *(2, trained, distill),
        [until(4, 0, 2, "whole"), until(1, 0, 2, "moved"), until(2, 2, 2, "moved"), until(3, 1, 2, "moved")],
    )[0]
    (one,) = together(1, trained, distill, [until(4, 0, 1, "moved")])
    assert all(len(facts["losses"]) == 1 for facts in [*two[1:], *one])
    assert [facts["losses"][0] for facts in [*two[1:], *one]] == pytest.approx(two[0]["losses"], rel=1e-4)
    assert one[0]["sum"] == pytest.approx(two[0]["sum"], rel=1e-4)
    last = [load_file(f"runs/{name}/step_0000003/model.safetensors") for name in ("whole", "moved")]  # DDP's, ZeRO's
    assert {name: tensor.shape for name, tensor in last[0].items()} == {n: t.shape for n, t in last[1].items()}
    assert not any("teacher" in name for name in last[1])  # it was never prepared
    weights = [load_file(f"runs/{name}/step_0000003/trained.safetensors") for name in ("whole", "moved")]
    for name, average in last[0].items():
        torch.testing.assert_close(last[1][name], average, atol=2e-5, rtol=1e-3)
        torch.testing.assert_close(weights[1][name], weights[0][name], atol=2e-5, rtol=1e-3)
    assert any(not torch.equal(average, weights[0][name]) for name, average in last[0].items())


def test_two_networks_that_train_each_other_are_one_module_in_one_engine(in_tmp, tiny_yaml):
    """Through two engines with one joint loss, the second network would silently not train."""
    networks = ["method.name=cotrain", f"model={VIT}", f"partner={VIT.replace('depth: 2', 'depth: 1')}"]
    runs = [[*FOUR_STEPS, *networks, f"launch.zero={zero}", f"name=co{zero}"] for zero in (0, 2)]
    ddp, *others = together(2, trained, tiny_yaml("classify"), runs)[0]
    for other in others:
        assert other["losses"] == five_digits(ddp["losses"])
        assert other["sum"] == five_digits(ddp["sum"])
    first, last = (load_file(f"runs/co2/step_000000{step}/model.safetensors") for step in (2, 4))
    for network in ("student.", "partner."):
        assert any((first[name] != last[name]).any() for name in first if name.startswith(network))


def test_a_loss_that_is_not_finite_on_one_rank_stops_all_before_the_update(distill):
    runs = [[*FOUR_STEPS, "train.save_every=1", f"launch.zero={zero}", f"name=n{zero}", "nan@2"] for zero in (1, 2)]
    for first, second in zip(*together(2, trained, distill, runs), strict=True):
        assert "step 3" in first["error"] and "step_0000002" in first["error"]
        assert "rank 1:" in first["error"] and "rank 0:" not in first["error"]
        assert "step 3" in second["error"]


@pytest.mark.parametrize("path", JSONS, ids=lambda path: path.name)
def test_a_shipped_json_is_of_the_stage_in_its_name(tiny_config, path):
    assert len(JSONS) == 2
    zero = read_zero(tiny_config("classify", f"launch.zero={path}"))
    assert zero["zero_optimization"]["stage"] == int(path.stem[-1])


def test_deepspeed_is_left_nothing_to_choose(tiny_config):
    config = tiny_config("classify", "launch.zero=2", "train.accumulate=2", "train.precision=bf16")
    settings = settings_for(config, 2)
    assert settings["gradient_clipping"] == 0.0  # unsaid, it would be 1
    assert settings["train_batch_size"] == 8 and settings["train_micro_batch_size_per_gpu"] == 2
    assert settings["gradient_accumulation_steps"] == 2 and settings["torch_autocast"]["dtype"] == "bfloat16"
    assert settings_for(tiny_config("classify"), 2) is None
    with pytest.raises(ConfigError, match="cannot be divided evenly over 3 processes with train.accumulate 1"):
        settings_for(tiny_config("classify", "launch.zero=2"), 3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            '{"zero_optimization": {"stage": 2}, "gradient_clipping": 1.0}',
            "gradient_clipping; .* from train.max_grad_norm",
        ),
        ('{"zero_optimization": {"stage": 2}, "bf16": {"enabled": true}}', "sets bf16; .* from train.precision"),
        ('{"zero_optimization": {"stage": 0}}', "asks for stage 0; wanted 1 or 2"),
        ('{"zero_optimization": {"stage": 3}}', "asks for stage 3; wanted 1 or 2"),
        ('{"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}', "sets offload_optimizer"),
        ("{}", "no readable DeepSpeed JSON"),
        ("not JSON", "no readable DeepSpeed JSON"),
        (None, "no readable DeepSpeed JSON"),
    ],
)
def test_a_json_that_says_what_the_run_says_is_refused(tiny_config, tmp_path, content, message):
    path = tmp_path / "mine.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        read_zero(tiny_config("classify", f"launch.zero={path}"))


class Engine:
    """A DeepSpeed engine with the settings of `settings_for`, but for some."""

    def __init__(self, settings, **others):
        zero = {"zero_optimization_stage": settings["zero_optimization"]["stage"], "torch_autocast_enabled": False}
        plain = {key: settings[key] for key in ("train_batch_size", "train_micro_batch_size_per_gpu")}
        plain |= {key: settings[key] for key in ("gradient_accumulation_steps", "gradient_clipping")}
        for name, value in {**zero, **plain, "bfloat16_enabled": False, "fp16_enabled": False, **others}.items():
            setattr(self, name, lambda value=value: value)


@pytest.mark.parametrize(
    "other",
    [{"gradient_clipping": 1.0}, {"zero_optimization_stage": 1}, {"bfloat16_enabled": True}, {"train_batch_size": 4}],
)
def test_an_engine_with_other_settings_is_refused(tiny_config, other):
    settings = settings_for(tiny_config("classify", "launch.zero=2"), 2)
    check_engine(Engine(settings), settings)
    with pytest.raises(ConfigError, match="DeepSpeed runs with other settings .*: wanted .*, got"):
        check_engine(Engine(settings, **other), settings)


def test_an_optimizer_state_of_other_parameters_is_refused():
    optimizer = ZeroOptimizer(None, [[1, 2], [3]])
    with pytest.raises(RunError, match=r"groups of \[3\] parameters, this run of \[2, 1\]"):
        optimizer.load_state_dict({"param_groups": [{"params": [0, 1, 2]}], "state": {}})


def test_a_run_of_a_cluster_is_read_on_one_machine_without_deepspeed(tiny_config, tmp_path):
    """CAMs and masks of a run trained with ZeRO on 2 machines: no engine, and the processes of this machine."""
    places = ["launch.machines=2", "launch.machine_rank=1", "launch.main_address=a", "launch.port=1"]
    trained_as = tiny_config("classify", "launch.zero=2", "launch.processes=16", *places)
    (tmp_path / CONFIG).write_text(to_yaml(trained_as))
    (tmp_path / ABOUT).write_text("{}")
    assert Run(tmp_path).config.launch == tiny_config("classify").launch
    assert Run(tmp_path, ["launch.processes=4"]).config.launch.processes == 4
    (tmp_path / CONFIG).write_text(to_yaml(tiny_config("classify", "launch.zero=2", "launch.processes=3")))
    assert Run(tmp_path).config.launch == tiny_config("classify").launch  # as many as there are GPUs here


def test_the_student_is_exported_as_one_plain_file(run, tmp_path):
    out = export(run, tmp_path / "out/student.safetensors").path
    whole = load_file(run / "step_0000002/model.safetensors")
    student = load_file(out)
    assert student and all((whole[f"student.{name}"] == tensor).all() for name, tensor in student.items())
    assert len(student) == sum(name.startswith("student.") for name in whole) < len(whole)
    with safe_open(out, "pt") as file:
        facts = file.metadata()
    assert facts["checkpoint"] == "step_0000002" and json.loads(facts["classes"]) == ["smoke"]
    assert json.loads(facts["model"])["name"] == load_config(run / "config.yaml").model.name


def test_a_file_that_cannot_be_exported_is_told(run, tmp_path):
    (tmp_path / "folder.safetensors").mkdir()
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "folder.safetensors", tmp_path / "file/student.safetensors"):
        with pytest.raises(RunError, match=f"{out}: cannot be written"):
            export(run, out)
    assert not list(tmp_path.glob(".*tmp"))
