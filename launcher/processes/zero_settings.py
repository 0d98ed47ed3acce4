"""DeepSpeed's settings, made from our config in one place, and compared with those of its engine.

DeepSpeed has its own settings for things that our config says too, and silently uses its own if they differ (such as a
gradient clipping of 1 by default).
"""

import json
from typing import Any

from launcher.config.whole import Config
from launcher.errors import ConfigError
from launcher.files import find_shipped
from wsss.extras import is_installed

# {key of a DeepSpeed JSON: options of our config that say the same}
OURS = {
    "train_batch_size": "data.global_batch_size",
    "train_micro_batch_size_per_gpu": "data.global_batch_size, launch.processes and train.accumulate",
    "gradient_accumulation_steps": "train.accumulate",
    "gradient_clipping": "train.max_grad_norm",
    "bf16": "train.precision",
    "fp16": "train.precision",
    "torch_autocast": "train.precision",
    "optimizer": "train.lr and train.weight_decay",
    "scheduler": "train.warmup_steps and train.power",
}


def read_zero(config: Config) -> dict[str, Any] | None:
    """DeepSpeed's own settings from `launch.zero`; None = DDP.

    Raises:
        ConfigError: DeepSpeed is not installed, no such file, not a DeepSpeed JSON, or it sets what our config sets.
    """
    zero = config.launch.zero
    if zero and not is_installed("deepspeed"):
        raise ConfigError(
            "launch.zero needs the package 'deepspeed', which is not installed: pip install 'wsss[zero]' (Linux), or "
            "set launch.zero=0"
        )
    if isinstance(zero, int):
        return {"zero_optimization": {"stage": zero}} if zero else None
    try:
        settings = json.loads(find_shipped(zero).read_text())
        stage = settings["zero_optimization"]["stage"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"launch.zero: {zero} is no readable DeepSpeed JSON with zero_optimization.stage ({error!r}); "
            "give 0, 1, 2 or a file like configs/deepspeed/zero2.json"
        ) from error
    if stage not in (1, 2):
        raise ConfigError(f"launch.zero: {zero} asks for stage {stage!r}; wanted 1 or 2 (launch.zero=0 is DDP)")
    for key, place in OURS.items():
        if settings.get(key, "auto") != "auto":
            raise ConfigError(f"launch.zero: {zero} sets {key}; leave it out, since the run sets it from {place}")
    for key in ("offload_optimizer", "offload_param"):
        if settings["zero_optimization"].get(key, {}).get("device", "none") != "none":
            raise ConfigError(f"launch.zero: {zero} sets {key}, which checkpoints here cannot gather; leave it out")
    return {key: value for key, value in settings.items() if key not in OURS}


def settings_for(config: Config, processes: int) -> dict[str, Any] | None:
    """All settings of DeepSpeed for this run, with nothing left to its defaults; None = DDP."""
    zero = read_zero(config)
    if zero is None:
        return None
    if config.train.precision == "fp16":
        raise ConfigError(
            "launch.zero: float16 is not supported with DeepSpeed; set train.precision=bf16, or launch.zero=0"
        )
    accumulate, images = config.train.accumulate, config.data.global_batch_size
    if images % (processes * accumulate):
        raise ConfigError(
            f"data.global_batch_size is {images}, which cannot be divided evenly over {processes} processes with "
            f"train.accumulate {accumulate}"
        )
    autocast = {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}  # [] = gradients stay float32
    return {
        **zero,
        "train_batch_size": images,
        "train_micro_batch_size_per_gpu": images // (processes * accumulate),
        "gradient_accumulation_steps": accumulate,
        "gradient_clipping": config.train.max_grad_norm or 0.0,
        "torch_autocast": autocast if config.train.precision == "bf16" else {"enabled": False},
    }


def check_engine(engine: Any, wanted: dict[str, Any]) -> None:
    """Raise ConfigError if DeepSpeed's engine has other settings than those from `settings_for`."""
    got = {
        "stage": engine.zero_optimization_stage(),
        "train_batch_size": engine.train_batch_size(),
        "train_micro_batch_size_per_gpu": engine.train_micro_batch_size_per_gpu(),
        "gradient_accumulation_steps": engine.gradient_accumulation_steps(),
        "gradient_clipping": engine.gradient_clipping(),
        "autocast": engine.torch_autocast_enabled(),
        "half weights": engine.bfloat16_enabled() or engine.fp16_enabled(),
    }
    asked = {key: wanted[key] for key in got if key in wanted}
    asked["stage"] = wanted["zero_optimization"]["stage"]
    asked["autocast"], asked["half weights"] = wanted["torch_autocast"]["enabled"], False
    different = [f"{key}: wanted {asked[key]}, got {got[key]}" for key in got if got[key] != asked[key]]
    if different:
        raise ConfigError(f"DeepSpeed runs with other settings than this run's: {'; '.join(different)}")
