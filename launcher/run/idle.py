"""Options that have no effect because of other options of a config.

They are refused if they would make the user misread the result. If another option just switches off their part, as in
an ablation or without validation, a line reports them. A term with weight 0 is off with all its options, as the
docstring of its method says."""

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from launcher.config.options import Named, options_model, options_of
from launcher.config.whole import Config
from launcher.errors import ConfigError
from launcher.processes.accelerator import process_count, uses_cpu
from wsss.losses.align import LOGIT_DISTANCES
from wsss.methods import METHODS
from wsss.methods.base import Method
from wsss.models import MODELS

TABLES: dict[str, Any] = {"model": MODELS, "partner": MODELS, "method": METHODS}
NOTHING: tuple[Any, ...] = (None, (), {})  # also says that an option is left out, whatever its default


class Rule(NamedTuple):
    """Options that have no effect if a condition on the config holds, and the reason in words."""

    options: tuple[str, ...]
    idle: Callable[[Config], bool]
    because: str


def of_method(name: str, *values: Any) -> Callable[[Config], bool]:
    """Whether the method has this option, with one of these values."""
    return lambda config: name in config.method.options and config.method.options[name] in values


def looks_at(views: str) -> Callable[[Config], bool]:
    return lambda config: METHODS[config.method.name].views == views


def is_never_recorded(config: Config) -> bool:
    return uses_cpu(config) or config.launch.zero != 0 or METHODS[config.method.name].phase is Method.phase


REFUSED = (
    Rule(("teacher",), lambda c: not METHODS[c.method.name].needs_teacher, "the method does not use one"),
    Rule(("data.min_crop",), looks_at("two"), "the method looks at two views, which are cropped by data.scale"),
    Rule(("data.scale",), looks_at("plain"), "the method looks at one view, which is cropped by data.min_crop"),
    Rule(("data.pixel_batch_size",), lambda c: c.data.pixel is None, "there is no data.pixel"),
    Rule(("method.still",), of_method("time_weight", 0), "method.time_weight is 0"),
    Rule(
        ("method.target", "method.metric", "method.standardise", "method.project", "method.project_dim"),
        of_method("level", *LOGIT_DISTANCES),
        "method.level compares class scores",
    ),
    Rule(("method.project_dim",), of_method("project", "none"), "method.project is none"),
    Rule(("method.classes", "method.present_only"), of_method("region_masks", False), "method.region_masks is false"),
    Rule(("model.other_texts",), lambda c: c.model.options.get("texts") == (), "there are no model.texts"),
    Rule(("cam.step_px",), lambda c: c.cam.window_px is None, "there is no cam.window_px"),
)
TOLD = (
    Rule(
        ("train.eval_every", "data.val_part", "evaluate.gallery", "evaluate.metrics"),
        lambda c: c.data.val is None,
        "no data.val",
    ),
    Rule(
        ("data.val_part",),
        lambda c: c.train.eval_every is None,
        "the only evaluation uses all images, since there is no train.eval_every",
    ),
    Rule(
        ("train.graph",), is_never_recorded, "steps are recorded only on GPUs, without ZeRO, and not for every method"
    ),
    Rule(("train.decay_all",), lambda c: c.train.weight_decay == 0, "train.weight_decay is 0"),
    Rule(("launch.max_restarts",), lambda c: process_count(c) == 1, "there is one process"),
    Rule(("launch.main_address",), lambda c: c.launch.machines == 1, "there is one machine"),
    Rule(("tracking.experiment",), lambda c: "mlflow" not in c.tracking.to, "no mlflow in tracking.to"),
    Rule(("method.walk_steps", "method.agree_from"), of_method("attended", 0), "method.attended is 0"),
    Rule(("method.attended", "method.agree_from"), of_method("walk_steps", 0), "method.walk_steps is 0"),
    Rule(("cam.layers",), lambda c: not {"grad", "layer"} & {*c.cam.kinds}, "no kind of cam.kinds reads layers"),
    Rule(("segment.mean_field", "segment.crf_classes"), lambda c: not c.segment.crf, "segment.crf is false"),
    Rule(
        ("segment.batch_size",),
        lambda c: c.segment.size == "native",
        "images of different sizes are processed one by one",
    ),
    Rule(
        ("segment.rule",), lambda c: len(c.segment.scales) == 1 and not c.segment.flip, "there is one view to segment"
    ),
    Rule(
        ("refine.cues",),
        lambda c: not {*c.refine.cues} <= {step.name for step in c.refine.chain},
        "it is for a refiner that is not in refine.chain",
    ),
    Rule(
        ("refine.bg_threshold",),
        lambda c: c.refine.bg_threshold is not None and c.refine.bg_threshold >= c.refine.threshold,
        "no score lies between it and refine.threshold",
    ),
)

NETWORK = ("model.", "partner.", "teacher", "data.image_size", "data.workers", "train.precision", "train.deterministic")
SPLITS = ("data.val", "data.tune", "data.train")
READS = {  # command on a trained run: options of its config, or beginnings of them, that it reads
    "infer": ("cam.", *SPLITS, *NETWORK, "launch."),
    "segment": ("segment.", *SPLITS, *NETWORK, "launch."),
    "segment --cams": ("segment.", "cam.", "evaluate.threshold", *SPLITS, *NETWORK, "launch."),
    "refine": ("refine.", "data.val", "data.tune", "launch."),
    "evaluate": (
        "evaluate.threshold",
        "evaluate.workers",
        "evaluate.metrics",
        "cam.kinds",
        "data.val",
        "data.tune",
        "launch.",
    ),
}


def refuse_overrides(command: str, overrides: Sequence[str]) -> None:
    """Raise ConfigError for overrides of a trained run that a command does not read, since what was trained does not
    change.

    Args:
        command: of READS.
    """
    for override in overrides:
        key = override.partition("=")[0]
        of_weights = key.endswith("weights") and key.startswith(("model.", "partner."))
        if of_weights or not f"{key}.".startswith(READS[command]):
            because = "uses the weights of the run" if of_weights else f"reads only {', '.join(READS[command])}"
            raise ConfigError(f"{override}: has no effect: `wsss {command}` {because}; leave it out")


def refuse_idle(config: Config, *sections: str) -> None:
    """Raise ConfigError, naming all of them, for options of REFUSED that are set and have no effect.

    Args:
        sections: that are looked at, such as `cam`; none = all.
    """
    found = [
        f"{option} has no effect: {rule.because}; leave it out ({option}={json.dumps(unset(config, option))})"
        for rule, option in find_idle(config, REFUSED, sections)
    ]
    if found:
        raise ConfigError("\n".join(found))


def name_idle(config: Config, *sections: str) -> str:
    """A line of the options of TOLD that are set and have no effect; "" if there are none. See refuse_idle."""
    found: dict[str, list[str]] = {}
    for rule, option in find_idle(config, TOLD, sections):
        found.setdefault(rule.because, []).append(option)
    said = "; ".join(f"{', '.join(options)} ({because})" for because, options in found.items())
    return f"no effect here: {said}" if said else ""


def name_unreached(config: Config) -> str:
    """A line of the parts of the method that would begin after the last step; "" if there are none."""
    options = options_of(config.method, METHODS)
    late = {
        name: step
        for name, step in options.items()
        if name.endswith("_from") and isinstance(step, int) and step >= config.train.steps > 0
    }
    said = ", ".join(f"method.{name} {step}" for name, step in late.items())
    return f"never reached, since the last step is {config.train.steps}: {said}" if said else ""


def find_idle(config: Config, rules: tuple[Rule, ...], sections: tuple[str, ...]) -> Iterator[tuple[Rule, str]]:
    """The rules that hold, with each of their options that is set."""
    for rule in rules:
        for option in rule.options:
            if (not sections or option.split(".")[0] in sections) and is_set(config, option) and rule.idle(config):
                yield rule, option


def is_set(config: Config, option: str) -> bool:
    """Whether an option is set to something other than nothing or its default."""
    section, _, name = option.partition(".")
    inside = getattr(config, section)
    if not name:
        return inside is not None
    if isinstance(inside, Named) and name not in options_model(TABLES[section][inside.name]).model_fields:
        return False
    value = options_of(inside, TABLES[section])[name] if isinstance(inside, Named) else getattr(inside, name)
    return value not in NOTHING and value != default_of(config, option)


def default_of(config: Config, option: str) -> Any:
    section, _, name = option.partition(".")
    inside = getattr(config, section)
    model = options_model(TABLES[section][inside.name]) if isinstance(inside, Named) else type(inside)
    return model.model_fields[name].get_default(call_default_factory=True)


def unset(config: Config, option: str) -> Any:
    """The value for an override that has the same effect as leaving the option out."""
    default = None if "." not in option else default_of(config, option)
    return [] if isinstance(default, tuple) and default and isinstance(default[0], str) else default
