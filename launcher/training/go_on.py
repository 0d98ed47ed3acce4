"""Continuing a run: more steps of the same run (extend), or a new run from another one's checkpoint (fork)."""

import json
import shutil
from pathlib import Path

import yaml

from launcher.config.file import read_content
from launcher.config.options import Named
from launcher.config.whole import Config
from launcher.errors import ConfigError, RunError
from launcher.files import RUNS, publish, read_json, sync_to_disk, typed, write_whole
from launcher.run import steps
from launcher.run.build import build_method, drop_weights
from launcher.run.checkpoint import load_method
from launcher.run.folder import ABOUT, CONFIG, Run, is_run, run_folder
from launcher.run.lock import only_writer
from launcher.run.start import weights_options
from launcher.training.inputs import Inputs
from launcher.training.update import rate_of

# What an optimizer's state brings of its own.
OF_OPTIMIZER = ("weight_decay", "decay_all", "new_lr_factor", "head_lr_factor", "layer_decay")
# What a network's options besides its weights say of what it begins with; a checkpoint has all of that.
OF_BEGINNING = ("timm_name", "encoder", "second", "texts", "other_texts")
FORKED = ("parent", "extended")  # what run.json says of a run's past, which every start keeps


def require_own_name(given: Path, config: Config) -> None:
    """Raise RunError if `given` is a run whose config would train in another folder. That happens with a copied run:
    its config.yaml still has the name that the run began with."""
    folder = run_folder(config)
    if is_run(given) and given.resolve() != folder.resolve():
        here = RUNS.resolve()
        name = given.resolve().relative_to(here) if given.resolve().is_relative_to(here) else "NAME"
        raise RunError(
            f"{given}: its {CONFIG} says name: {config.name}, so it would continue in {folder}; to continue in this "
            f"folder give name={name}" + (f", once it lies at {RUNS / 'NAME'}" if name == "NAME" else "")
        )


def extend_run(config: Config, *, write: bool = True) -> str:
    """Extend a run to config.train.steps steps; returns a line about it. Refused unless the result equals a run that
    had this number of steps from the beginning.

    Args:
        write: record it in the run's config.yaml and run.json; False = only check.

    Raises:
        RunError: there is no such run, it is being trained, has as many steps, its learning rate depends on their
            number, or it was begun with other settings.
    """
    folder = run_folder(config)
    run = Run(folder)
    before, after = run.config.train.steps, config.train.steps
    if after <= before:
        raise RunError(
            f"--extend {after}: {run} has {before} steps; give more, or continue to these with "
            f"`{typed('train', folder)}`"
        )
    if run.config.train.power:
        raise RunError(
            f"--extend {after}: the learning rate of {run} depends on train.steps (train.power "
            f"{run.config.train.power:g}), so its {before} steps are not the first ones of {after}. --fork NAME "
            f"train.steps={after} starts a new run from its checkpoint, at the rate that {after} steps have there"
        )
    Inputs(as_begun(config)).check()  # before anything is written: other settings are refused, the run stays as it is
    at = steps.step_number(steps.newest_complete(folder))
    if write:
        with only_writer(folder, wait_s=0.0):
            about, content = read_json(folder / ABOUT), read_content(folder / CONFIG)
            about["extended"] = [*about.get("extended", []), {"from": before, "to": after, "at": at}]
            content["train"]["steps"] = after
            write_whole(folder / ABOUT, json.dumps(about, indent=1))
            write_whole(folder / CONFIG, yaml.safe_dump(content, sort_keys=False))
    return f"{folder}: {before} -> {after} steps, at a learning rate that does not depend on them"


def as_begun(config: Config) -> Config:
    """The config with the number of steps that its run had before it is extended."""
    steps_of_run = Run(run_folder(config)).config.train.steps
    return config.model_copy(update={"train": config.train.model_copy(update={"steps": steps_of_run})})


def fork_run(parent: Path, config: Config, *, write: bool = True) -> str:
    """Start the run of `config` from the newest checkpoint of another run, with its optimizer state and its step;
    returns a line about it. run.json records the parent.

    Args:
        write: copy the checkpoint; False = only check.

    Raises:
        RunError: no such run, no intact checkpoint, a run of the new name exists, no step is left, or the checkpoint
            does not fit this config.
        ConfigError: an option that the checkpoint's weights or the optimizer's state would overrule.
    """
    run, folder = Run(parent), run_folder(config)
    checkpoint = run.checkpoint()
    steps.refuse_damaged(checkpoint)
    step = steps.step_number(checkpoint)
    if is_run(folder) or steps.checkpoints(folder):
        raise RunError(f"--fork: {folder} exists; continue it with `{typed('train', folder)}`, or give another name")
    if config.train.steps <= step:
        raise RunError(
            f"--fork: {checkpoint} already has {step} steps, and train.steps is {config.train.steps}: give more"
        )
    for name in OF_OPTIMIZER:
        then, now = getattr(run.config.train, name), getattr(config.train, name)
        if then != now:
            raise ConfigError(
                f"--fork: train.{name} {then} -> {now} would not take effect: the optimizer's state keeps the old "
                f"value; start from the weights alone: model.weights={parent}"
            )
    if (classes := Inputs(config).class_set.classes) != run.class_set.classes:
        raise RunError(
            f"--fork: {parent} was trained on the classes {', '.join(run.class_set.classes)}, but data.train has "
            f"{', '.join(classes)}; start from the weights alone: model.weights={parent}"
        )
    of_config = config.model_copy(update={"model": drop_weights(config.model)})
    load_method(build_method(of_config, run.class_set), checkpoint)
    for section in ("model", "partner"):
        refuse_other_beginning(section, getattr(run.config, section), getattr(config, section), parent)
    if write:
        with only_writer(folder, wait_s=0.0):
            sha256 = steps.read_state(checkpoint).get("sha256", {}).get(steps.MODEL)
            about = {"run": str(parent), "step": step, "sha256": sha256}
            write_whole(folder / ABOUT, json.dumps({"parent": about}, indent=1))
            copy_checkpoint(checkpoint, folder)
    before, after = rate_of(run.config.train, step), rate_of(config.train, step)  # of the first step after it
    return f"{folder}: continues after step {step} of {parent}; learning rate there {before:.2e}, from here {after:.2e}"


def refuse_other_beginning(section: str, then: Named | None, now: Named | None, parent: Path) -> None:
    """Raise ConfigError if a network of a fork is given initial weights other than its parent's checkpoint.

    Args:
        section: of the config.
        then: the network of the parent.
        now: that of the fork.
    """
    if then is None or now is None:  # a method without a partner has no such weights in its checkpoint
        return
    for option in dict.fromkeys([*weights_options(then), *weights_options(now), *OF_BEGINNING]):
        before, after = then.options.get(option), now.options.get(option)
        if before != after:
            raise ConfigError(
                f"--fork: {section}.{option} {before} -> {after} would not take effect: the checkpoint of {parent} has "
                "all weights; leave it as it was, or start a run without --fork"
            )


def refuse_lost_beginning(folder: Path, step: int) -> None:
    """Raise RunError if a run is a fork and has no checkpoint left from which this step can be computed: from step 0 it
    would be a different run.

    Args:
        step: 1-based.
    """
    about = read_json(folder / ABOUT) if (folder / ABOUT).is_file() else {}
    if (parent := about.get("parent")) is not None:
        raise RunError(
            f"{folder}: was forked after step {parent['step']} of {parent['run']}, and has no checkpoint left from "
            f"which step {step} can be computed: `{typed('replay', parent['run'])}` repeats the steps of its "
            "parent, from which you can fork again"
        )


def copy_checkpoint(checkpoint: Path, folder: Path) -> None:
    """Copy a checkpoint without its figures.json, which belongs to the other run."""
    temporary = folder / f".{checkpoint.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(checkpoint, temporary, ignore=shutil.ignore_patterns(steps.FIGURES))
    for path in temporary.iterdir():
        sync_to_disk(path)
    publish(temporary, folder / checkpoint.name)
