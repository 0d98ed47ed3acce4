"""One YAML describes the whole run (whole.py): one frozen model per section; no inheritance or interpolation; unknown
keys fail.

The options of a model, a method or a refiner are not here: see options.py.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, PlainValidator, model_validator

from launcher.config.options import Named, Section
from launcher.files import place_masks, place_run, require_here
from shards.remote import Place, place_of
from wsss.extras import is_installed


def check_zero(value: object) -> int | Path:
    """A stage of DeepSpeed's ZeRO, or a JSON of DeepSpeed."""
    if type(value) is int and 0 <= value <= 2:
        return value
    if isinstance(value, str | Path) and str(value):
        return require_here(Path(value))
    raise ValueError(f"got {value!r}; wanted 0, 1, 2 or a DeepSpeed JSON such as configs/deepspeed/zero2.json")


Precision = Literal["ieee", "tf32", "bf16", "fp16"]  # see processes.precision
Share = Annotated[float, Field(ge=0, le=1)]
PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
Side = Annotated[int, Field(gt=0, le=16_384)]  # pixels (D-180)
Scale = Annotated[float, Field(gt=0, le=8)]  # of an image's sides
Workers = Annotated[int, Field(gt=0, le=1024)]  # processes of a machine
Zero = Annotated[int | Path, PlainValidator(check_zero)]
InRuns = Annotated[Path, AfterValidator(place_run)]  # runs/... lies where WSSS_RUNS says
Folder = Annotated[Place, PlainValidator(place_of)]  # of shards: a path, or a URL that fsspec knows
Masks = Annotated[Place, PlainValidator(place_masks)]  # the same; those of a run lie where its outputs do


class DataConfig(Section):
    train: Folder  # label-only shards: a folder, or a URL such as s3://bucket/train
    val: Folder | None = None  # folder of shards: what figures are reported on; of maps if it holds masks
    tune: Folder | None = (
        None  # folder of pixel shards, groups disjoint from train and val: where thresholds are chosen
    )
    val_part: PositiveInt | None = None  # images of val that evaluations before the last one count; null = all
    image_size: Side = 224  # side of the square view, in pixels
    global_batch_size: PositiveInt = 16  # images per optimizer update, over all processes
    min_crop: Share = 1.0  # random crop keeps at least this share of each side, in methods of one view; 1 = none
    flip: Share = 0.5  # probability of a horizontal flip
    scale: tuple[Scale, Scale] = (0.5, 2.0)  # of the image before the crop, in methods that look at two views
    masks: Masks | None = None  # mask shards of data.train, made by `wsss refine`: targets of methods that learn masks
    pixel: Folder | None = None  # folder of a few pixel shards next to data.train, for methods that mix supervision
    pixel_batch_size: PositiveInt = 2  # images with masks per optimizer update, over all processes
    may_lack_classes: bool = False  # train although some class has no image: parts of a data set, to try things
    pairs: PositiveInt | None = (
        None  # batches of pairs: two frames of a clip, at most so many frames apart; null = none
    )
    max_skipped: Annotated[int, Field(ge=0)] = 0  # damaged training samples replaced by their neighbours; 0 = error
    workers: Annotated[int, Field(ge=0, le=1024)] = 2  # loader processes per training process

    @model_validator(mode="after")
    def _whole_pairs(self) -> "DataConfig":
        if self.pairs and self.max_skipped:
            raise ValueError("pairs: a damaged frame's replacement is of another clip; set max_skipped to 0")
        return self


class TrainConfig(Section):
    steps: Annotated[int, Field(ge=0)]  # optimizer updates; 0 saves the untrained model, a control
    lr: Annotated[float, Field(gt=0)] = 1e-4  # peak learning rate
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    power: Annotated[float, Field(ge=0)] = 0.0  # of the polynomial decay; 0 = constant
    new_lr_factor: Annotated[float, Field(gt=0)] = 1.0  # of the rate of layers without initial weights
    head_lr_factor: Annotated[float, Field(gt=0)] | None = None  # of the classifier's; null = new_lr_factor
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0  # of the rate, from a layer of a backbone to the one before
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    decay_all: bool = False  # decay norms, biases and tokens too, as ToCo does
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = (
        None  # of an average of the weights, which is read; null = none
    )
    max_grad_norm: Annotated[float, Field(gt=0)] | None = None  # clip the gradient's length; null = off
    accumulate: PositiveInt = 1  # micro-batches per update
    precision: Precision = "ieee"  # ieee: float32; tf32: its products in TF32; bf16, fp16: networks in half
    graph: bool = False  # record each kind of step as one CUDA graph; on GPUs, without ZeRO and joined BatchNorm
    deterministic: bool = False  # on GPUs bit-equal repeats, for more time; CPUs have them anyway
    sync_norm: bool = True  # BatchNorm over the images of all processes; GPUs only, torch has none for CPUs
    seed: Annotated[int, Field(ge=0, lt=2**64)] = 0
    log_every: PositiveInt = 10  # steps
    eval_every: PositiveInt | None = None  # steps; null = at the end only
    save_every: PositiveInt | None = None  # steps; null = at the end only
    keep: PositiveInt = 2  # newest checkpoints that stay
    keep_best: str | None = None  # figure of evaluation, as val/seg/miou: the highest one's checkpoint stays too

    @model_validator(mode="after")
    def _possible(self) -> "TrainConfig":
        if self.steps and self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps ({self.warmup_steps}) must be smaller than steps ({self.steps})")
        return self


class LaunchConfig(Section):
    """What `wsss train` starts and what the run asserts that it got."""

    processes: PositiveInt | None = None  # data-parallel processes of all machines; null = one per GPU, or one
    device: Literal["auto", "cpu", "cuda"] = "auto"
    max_restarts: Annotated[int, Field(ge=0)] = 0  # of all processes after one died; needs two processes or more
    zero: Zero = 0  # DeepSpeed ZeRO stage, or a DeepSpeed JSON; 0 = nothing shared out
    machines: PositiveInt = 1  # that train this run together; each starts its own share of the processes
    machine_rank: Annotated[int, Field(ge=0)] = 0  # of this machine; 0 is the one at main_address
    main_address: str | None = None  # host name or IP of machine 0, as the others reach it; null = one machine
    port: Annotated[int, Field(ge=0, le=65535)] = 0  # on machine 0; 0 = any free one, on one machine only

    @model_validator(mode="after")
    def _machines(self) -> "LaunchConfig":
        if self.machine_rank >= self.machines:
            raise ValueError(
                f"machine_rank is {self.machine_rank} of {self.machines} machines; wanted 0 and up to one less"
            )
        if self.machines > 1 and (not self.main_address or self.port == 0):
            raise ValueError("several machines need main_address and a port that is free on machine 0, such as 29500")
        if self.processes is not None and self.processes % self.machines:
            raise ValueError(
                f"processes is {self.processes}, the number over all machines; wanted a multiple of {self.machines}"
            )
        return self


class CamConfig(Section):
    kinds: tuple[str, ...] = ("grad", "class_map")  # what is read; the first is shown in galleries
    layers: tuple[int, ...] = (-1,)  # of Grad-CAM and LayerCAM: block or stage numbers as in a list; several are fused
    scales: tuple[Scale, ...] = (1.0,)
    flip: bool = False
    fuse: Literal["mean", "toco"] | None = None  # views to one CAM; null = mean in infer, TOCO where masks are judged
    pad: Literal["resize", "pad", "floor"] | None = None  # sides to multiples of the patch; null = resize; toco: pad
    window_px: Side | None = None  # null = squash to data.image_size; else see frames whole, through windows
    step_px: Side | None = None  # distance of neighbouring windows; null = half a window
    classes: Literal["all", "present"] = "all"  # all: also without labels; present: those of the image label
    batch_size: PositiveInt = 16

    @model_validator(mode="after")
    def _not_empty(self) -> "CamConfig":
        for name in ("kinds", "layers", "scales"):
            if not getattr(self, name):
                raise ValueError(f"{name} is empty; wanted at least one")
        return self


class RefineConfig(Section):
    cams: tuple[str, ...] | None = None  # kinds to refine; null = all of cam.kinds
    chain: tuple[Named, ...] = (Named(name="crf"),)  # refiners in order; [] = threshold alone
    cues: dict[str, Folder] = Field(
        default={}
    )  # refiner -> folder of what `wsss cues` computed for it, one folder per split inside
    threshold: Share = 0.3  # of the final mask
    bg_threshold: Share | None = None  # scores from here to the threshold become 255 = ignore; null = nothing does
    workers: Workers | None = None  # processes; null = one per core


class MeanFieldConfig(Section):
    """Arguments of wsss.refine.crf.mean_field. Defaults: ToCo's for segmentation (D-55; golden `toco_seg`)."""

    iterations: PositiveInt = 10
    gaussian_sxy: PositiveFloat = 1.0
    gaussian_weight: PositiveFloat = 1.0
    bilateral_sxy: PositiveFloat = 121.0
    bilateral_srgb: PositiveFloat = 5.0
    bilateral_weight: PositiveFloat = 4.0
    by: Literal["lattice", "exact"] | None = None  # null = exact on GPUs and where pydensecrf is not installed


class SegmentConfig(Section):
    """How `wsss segment` turns a network's segmentation logits into masks. Defaults: M-SEE's Tables 1 and 2 on VOC."""

    size: Literal["squash", "native"] = "native"  # squash: to data.image_size; native: padded to the network's stride
    scales: tuple[Scale, ...] = (1.0,)
    flip: bool = False  # also the mirrored image
    rule: Literal["voc", "coco"] = "voc"  # voc: flips summed, scales maxed; coco: flips maxed, scales summed
    crf: bool = True
    mean_field: MeanFieldConfig = MeanFieldConfig()
    crf_classes: Literal["all", "proposed"] = "all"  # proposed: faster, those that the model gives a chance; see crf.py
    batch_size: PositiveInt = 16  # images, where they are squashed to one size
    workers: Annotated[int, Field(ge=0, le=1024)] | None = None  # CRF processes per rank; 0 = none; null = its cores

    @model_validator(mode="after")
    def _not_empty(self) -> "SegmentConfig":
        if not self.scales:
            raise ValueError("scales is empty; wanted at least one")
        return self


class EvaluateConfig(Section):
    threshold: Share = 0.3  # the fixed threshold that every table shows next to the tuned one
    gallery: Annotated[int, Field(ge=0, le=1024)] = 8  # fixed validation images drawn at each evaluation
    workers: Workers | None = None  # processes of `wsss evaluate`; null = one per core, or one for few images
    metrics: tuple[Named, ...] = ()  # of installed packages, counted beside ours


Sink = Literal["mlflow", "tensorboard"]


def default_sinks() -> tuple[Sink, ...]:
    """MLflow where it is installed: a plain install trains without it, and keeps figures in the run's folder."""
    return ("mlflow",) if is_installed("mlflow") else ()


class TrackingConfig(Section):
    to: tuple[Sink, ...] = Field(default_factory=default_sinks)  # [] = the run's folder alone
    experiment: str | None = None  # of MLflow; null = the folder in the run's name, so one per study, else wsss
    model: str | None = None  # in MLflow's registry: a finished run's student becomes its next version; null = none

    @model_validator(mode="after")
    def _model_has_a_place(self) -> "TrackingConfig":
        if self.model is not None and (not self.model.strip() or set(self.model) & set("/:")):
            raise ValueError(f"model is '{self.model}'; MLflow takes a name without '/' and ':', such as smoke_student")
        if self.model is not None and "mlflow" not in self.to:
            raise ValueError("model: only MLflow keeps models; add mlflow to tracking.to or leave it out")
        return self
