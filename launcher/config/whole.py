"""The whole config, and checks across its sections: options with models and methods, jobs with inputs, methods with
data."""

import re

from pydantic import Field, field_validator, model_validator

from launcher.config.options import Named, Section, check_named, naming_place, options_of, refuse_huge
from launcher.config.sections import (
    CamConfig,
    DataConfig,
    EvaluateConfig,
    InRuns,
    LaunchConfig,
    RefineConfig,
    SegmentConfig,
    TrackingConfig,
    TrainConfig,
)


class Config(Section):
    name: str  # the run's folder below runs/; may have parts: demo/student
    data: DataConfig
    model: Named
    method: Named
    teacher: InRuns | None = None  # folder of a finished run, for methods that need a teacher
    partner: Named | None = None  # second network, for methods that train two
    train: TrainConfig
    launch: LaunchConfig = LaunchConfig()
    cam: CamConfig = CamConfig()
    refine: RefineConfig = RefineConfig()
    segment: SegmentConfig = SegmentConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    tracking: TrackingConfig = Field(default_factory=TrackingConfig)

    @field_validator("name")
    @classmethod
    def _safe_name(cls, name: str) -> str:
        if not re.fullmatch(r"[\w.\-]+(/[\w.\-]+)*", name) or ".." in name:
            raise ValueError(f"'{name}' must be made of letters, digits, '.', '_', '-', with '/' between parts")
        return name

    @model_validator(mode="after")
    def _goes_together(self) -> "Config":
        check_options(self)
        check_jobs(self)
        check_method(self)
        return self


def check_options(config: Config) -> None:
    """Raise ValueError for a network or a method that does not exist, or an option that it does not have."""
    from wsss.methods import METHODS
    from wsss.models import MODELS

    check_named("model", config.model, MODELS)
    for place, network in (("model", config.model), ("partner", config.partner)):
        refuse_huge(place, {} if network is None else network.options)
    check_named("method", config.method, METHODS)
    if config.partner is not None:
        check_named("partner", config.partner, MODELS)


def check_jobs(config: Config) -> None:
    """Raise ValueError for refiners, cues, a mean field or metrics that would make a job fail."""
    from wsss.metrics.base import METRICS
    from wsss.refine import REFINERS, check_options, takes_cue
    from wsss.refine.crf import check_mean_field

    for number, refiner in enumerate(config.refine.chain):
        check_named(f"refine.chain.{number}", refiner, REFINERS)
        with naming_place(f"refine.chain.{number}"):
            check_options(refiner.name, options_of(refiner, REFINERS))
        if takes_cue(refiner.name) and refiner.name not in config.refine.cues:
            raise ValueError(
                f"refine.cues: refiner '{refiner.name}' needs what `wsss cues` computes for it; give its folder"
            )
    for number, metric in enumerate(config.evaluate.metrics):
        check_named(f"evaluate.metrics.{number}", metric, METRICS)
        if metric.name in (other.name for other in config.evaluate.metrics[:number]):
            raise ValueError(f"evaluate.metrics names '{metric.name}' twice; leave one out")
    with naming_place("segment.mean_field"):
        check_mean_field(**config.segment.mean_field.model_dump(exclude={"by"}))


def check_method(config: Config) -> None:
    """Raise ValueError for a method without an input that it needs, or with one that it does not read."""
    from wsss.methods import METHODS

    name, method, data = config.method.name, METHODS[config.method.name], config.data
    if method.needs_teacher and config.teacher is None:
        raise ValueError(f"teacher: method '{name}' needs one; give the folder of a finished run")
    if method.needs_partner != (config.partner is not None):
        wants = "needs a second network there" if method.needs_partner else "trains one network; leave it out"
        raise ValueError(f"partner: method '{name}' {wants}")
    if (method.supervision == "mixed") != (data.pixel is not None):
        wants = "needs images with masks there" if method.supervision == "mixed" else "reads none; leave it out"
        raise ValueError(f"data.pixel: method '{name}' {wants}")
    if data.val is not None and not method.gives_maps:
        raise ValueError(f"data.val: method '{name}' gives no maps to evaluate; leave it out")
    if config.train.keep_best is not None and data.val is None:
        raise ValueError("train.keep_best: there is no data.val on which to find the best; give it, or leave this out")
    if data.pairs and config.method.options.get("shuffle_teacher"):
        raise ValueError(
            "method.shuffle_teacher: with data.pairs the next image is from the same clip; leave data.pairs out"
        )
    if data.masks is not None and method.supervision != "mask":
        raise ValueError(f"data.masks: method '{name}' learns from image labels; leave it out")
