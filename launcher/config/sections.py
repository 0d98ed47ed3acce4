"""The sections of a run's YAML: one frozen model for each; no inheritance or interpolation; unknown keys are errors.

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
    """A stage of DeepSpeed's ZeRO, or the path of a DeepSpeed JSON."""
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
InRuns = Annotated[Path, AfterValidator(place_run)]  # runs/... is where WSSS_RUNS says
Folder = Annotated[Place, PlainValidator(place_of)]  # of shards: a path, or a URL that fsspec knows
Masks = Annotated[Place, PlainValidator(place_masks)]  # the same; those of a run are where its outputs are


class DataConfig(Section):
    train: Folder  # label-only shards: a folder, or a URL such as s3://bucket/train
    val: Folder | None = None  # shards that metrics are reported on; with masks also those of CAMs and masks
    tune: Folder | None = None  # shards without groups of train and val: thresholds are chosen on it
    val_part: PositiveInt | None = None  # number of val images that evaluations before the last one use; null = all
    image_size: Side = 224  # side of the network's square input, in pixels
    global_batch_size: PositiveInt = 16  # images per optimizer update, over all processes
    min_crop: Share = 1.0  # for methods of one view: random crops keep at least this share of each side; 1 = no crops
    flip: Share = 0.5  # probability of a horizontal flip
    scale: tuple[Scale, Scale] = (0.5, 2.0)  # for methods of two views: range of the image's scale before the crop
    masks: Masks | None = None  # mask shards of data.train from `wsss refine`, for methods that learn from masks
    pixel: Folder | None = None  # a few shards with masks besides data.train, for methods that mix both
    pixel_batch_size: PositiveInt = 2  # images with masks per optimizer update, over all processes
    may_lack_classes: bool = False  # train even if some class has no image, to try parts of a data set
    pairs: PositiveInt | None = None  # batches of pairs of frames of a clip, at most so far apart; null = no pairs
    max_skipped: Annotated[int, Field(ge=0)] = 0  # damaged samples to replace by neighbours, at most
    workers: Annotated[int, Field(ge=0, le=1024)] = 2  # loader processes per training process

    @model_validator(mode="after")
    def _whole_pairs(self) -> "DataConfig":
        if self.pairs and self.max_skipped:
            raise ValueError(
                "pairs: a damaged frame would be replaced by a frame of another clip; set max_skipped to 0"
            )
        return self


class TrainConfig(Section):
    steps: Annotated[int, Field(ge=0)]  # optimizer updates; 0 saves the untrained model, as a control
    lr: Annotated[float, Field(gt=0)] = 1e-4  # peak learning rate
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    power: Annotated[float, Field(ge=0)] = 0.0  # power of the polynomial decay of the rate; 0 = constant
    new_lr_factor: Annotated[float, Field(gt=0)] = 1.0  # multiplies lr for layers without initial weights
    head_lr_factor: Annotated[float, Field(gt=0)] | None = None  # of the classifier; null = new_lr_factor
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0  # factor of lr from each layer to the one before
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    decay_all: bool = False  # decay norms, biases and tokens too, as ToCo does
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None  # of the average of the weights; null = no average
    max_grad_norm: Annotated[float, Field(gt=0)] | None = None  # clip the norm of the gradient; null = off
    accumulate: PositiveInt = 1  # micro-batches per update
    precision: Precision = "ieee"  # ieee: float32; tf32: products in TF32; bf16, fp16: networks in half precision
    graph: bool = False  # run each kind of step as one CUDA graph; on GPUs, without ZeRO and joined BatchNorm
    deterministic: bool = False  # on GPUs: bit-equal repeats, but slower; CPUs repeat bit-equal anyway
    sync_norm: bool = True  # BatchNorm over the images of all processes; GPUs only, torch does not support CPUs
    seed: Annotated[int, Field(ge=0, lt=2**64)] = 0
    log_every: PositiveInt = 10  # steps
    eval_every: PositiveInt | None = None  # steps; null = at the end only
    save_every: PositiveInt | None = None  # steps; null = at the end only
    keep: PositiveInt = 2  # number of newest checkpoints to keep
    keep_best: str | None = None  # metric such as val/seg/miou: the checkpoint with the highest value is kept too

    @model_validator(mode="after")
    def _possible(self) -> "TrainConfig":
        if self.steps and self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps ({self.warmup_steps}) must be smaller than steps ({self.steps})")
        return self


class LaunchConfig(Section):
    """What `wsss train` starts; the run checks that it got it."""

    processes: PositiveInt | None = None  # over all machines; null = one per GPU, or one without GPUs
    device: Literal["auto", "cpu", "cuda"] = "auto"
    max_restarts: Annotated[int, Field(ge=0)] = 0  # of all processes if one dies; needs two processes or more
    zero: Zero = 0  # DeepSpeed ZeRO stage, or a DeepSpeed JSON; 0 = no ZeRO
    machines: PositiveInt = 1  # machines that train this run together; each starts its share of the processes
    machine_rank: Annotated[int, Field(ge=0)] = 0  # number of this machine; machine 0 is at main_address
    main_address: str | None = None  # host name or IP of machine 0, as the others reach it; null = one machine
    port: Annotated[int, Field(ge=0, le=65535)] = 0  # port on machine 0; 0 = any free one, with one machine only

    @model_validator(mode="after")
    def _machines(self) -> "LaunchConfig":
        if self.machine_rank >= self.machines:
            raise ValueError(
                f"machine_rank is {self.machine_rank} of {self.machines} machines; wanted 0 to {self.machines - 1}"
            )
        if self.machines > 1 and (not self.main_address or self.port == 0):
            raise ValueError("several machines need main_address and a port that is free on machine 0, such as 29500")
        if self.processes is not None and self.processes % self.machines:
            raise ValueError(
                f"processes is {self.processes}, which counts those of all machines; wanted a multiple of "
                f"{self.machines}"
            )
        return self


class CamConfig(Section):
    kinds: tuple[str, ...] = ("grad", "class_map")  # kinds of CAM; the first one is shown in galleries
    layers: tuple[int, ...] = (-1,)  # layers of Grad-CAM and LayerCAM: indices of blocks or stages; several are fused
    scales: tuple[Scale, ...] = (1.0,)
    flip: bool = False
    fuse: Literal["mean", "toco"] | None = None  # of views; null = mean in infer, toco in evaluations of masks
    pad: Literal["resize", "pad", "floor"] | None = None  # of sides to the patch; null = resize; toco: pad
    window_px: Side | None = None  # side of sliding windows over whole frames; null = squash frames to data.image_size
    step_px: Side | None = None  # distance between neighbouring windows; null = half a window
    classes: Literal["all", "present"] = "all"  # all classes, or present: only those in the image label
    batch_size: PositiveInt = 16

    @model_validator(mode="after")
    def _not_empty(self) -> "CamConfig":
        for name in ("kinds", "layers", "scales"):
            if not getattr(self, name):
                raise ValueError(f"{name} is empty; wanted at least one")
        return self


class RefineConfig(Section):
    cams: tuple[str, ...] | None = None  # kinds to refine; null = all of cam.kinds
    chain: tuple[Named, ...] = (Named(name="crf"),)  # refiners in order; [] = only the threshold
    cues: dict[str, Folder] = Field(
        default={}
    )  # refiner -> folder of its cues from `wsss cues`, with one folder per split inside
    threshold: Share = 0.3  # scores from here on become mask
    bg_threshold: Share | None = None  # scores between this and the threshold become 255 = ignore; null = none
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
    flip: bool = False  # also use the mirrored image
    rule: Literal["voc", "coco"] = "voc"  # voc: sum over flips, max over scales; coco: max over flips, sum over scales
    crf: bool = True
    mean_field: MeanFieldConfig = MeanFieldConfig()
    crf_classes: Literal["all", "proposed"] = "all"  # proposed: faster, only likely classes, see crf.py
    batch_size: PositiveInt = 16  # images, where they are squashed to one size
    workers: Annotated[int, Field(ge=0, le=1024)] | None = None  # CRF processes per rank; 0 = none; null = its cores

    @model_validator(mode="after")
    def _not_empty(self) -> "SegmentConfig":
        if not self.scales:
            raise ValueError("scales is empty; wanted at least one")
        return self


class EvaluateConfig(Section):
    threshold: Share = 0.3  # the fixed threshold, shown next to the tuned one in every table
    gallery: Annotated[int, Field(ge=0, le=1024)] = 8  # fixed validation images drawn at each evaluation
    workers: Workers | None = None  # processes of `wsss evaluate`; null = one per core, or one for few images
    metrics: tuple[Named, ...] = ()  # metrics of installed packages, computed beside ours


Sink = Literal["mlflow", "tensorboard"]


def default_sinks() -> tuple[Sink, ...]:
    """MLflow if it is installed: a plain install trains without it and keeps metrics in the run's folder."""
    return ("mlflow",) if is_installed("mlflow") else ()


class TrackingConfig(Section):
    to: tuple[Sink, ...] = Field(default_factory=default_sinks)  # [] = only the run's folder
    experiment: str | None = None  # MLflow experiment; null = the folder in the run's name (one per study), or wsss
    model: str | None = None  # MLflow's registry: a finished run's student becomes its next version; null = none

    @model_validator(mode="after")
    def _model_has_a_place(self) -> "TrackingConfig":
        if self.model is not None and (not self.model.strip() or set(self.model) & set("/:")):
            raise ValueError(f"model is '{self.model}'; MLflow takes a name without '/' and ':', such as smoke_student")
        if self.model is not None and "mlflow" not in self.to:
            raise ValueError("model: only MLflow keeps models; add mlflow to tracking.to or leave it out")
        return self
