"""The protocol line of a metric: split, scales, flip, refiners, CRF, thresholds, seed, checkpoint.

It is read from what the job wrote in its folder, not from the config.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

COMPETING = {  # the classes that compete for a pixel
    "all": "maps of all classes",
    "present": "maps of the classes of the image label alone",
}
SIDES = {"resize": "sides resized", "pad": "sides padded", "floor": "sides cut off"}  # to multiples of the stride
UNSAID_OF_CUES = {"kind", "fingerprint", "weights", "templates"}  # too long for a line, or said elsewhere


def describe_scores(made_of: Mapping[str, Any], split: str, seed: int) -> str:
    """How CAMs were made and, if they were refined, by what.

    Args:
        made_of: job.json of a folder of `wsss infer` or `wsss refine`.
    """
    cam = made_of["cam"]
    size = f"image squashed to {made_of['image_size']} px"
    if cam["window_px"]:
        size = f"whole image through windows of {cam['window_px']} px"
    layers = f", layers {', '.join(map(str, cam['layers']))}" if list(cam["layers"]) != [-1] else ""
    fused = f"fuse {cam['fuse']}, {SIDES[cam['pad']]}"
    views = f"{size}, scales {join_numbers(cam['scales'])}{' + flip' if cam['flip'] else ''}, {fused}{layers}"
    how = f"{views}, {COMPETING[cam['classes']]}, scores resized to the image"
    if "chain" in made_of:
        how += f", {describe_chain(made_of)}"
    return f"{how}, {describe_origin(made_of, split, seed)}"


def describe_chain(made_of: Mapping[str, Any]) -> str:
    """The refiners in order, each with its given options and how its cues were made, and the thresholds of the stored
    masks."""
    steps = [describe_refiner(step, made_of["cues"].get(step["name"])) for step in made_of["chain"]]
    refined = f"refined by {', then '.join(steps)}" if steps else "not refined"
    masks = f"stored masks at >= {made_of['threshold']:g}"
    if made_of["bg_threshold"] is not None:
        masks += f", ignored from {made_of['bg_threshold']:g}"
    return f"{refined}, {masks}"


def describe_refiner(step: Mapping[str, Any], cues: Mapping[str, Any] | None) -> str:
    """A refiner of a chain: name (options)."""
    options = join_options(step, {"name"})
    if cues is not None and (of_cues := join_options(cues, UNSAID_OF_CUES)):
        options += f"{'; ' if options else ''}cues {of_cues}"
    return f"{step['name']} ({options or 'its defaults'})"


def describe_labels(
    made_of: Mapping[str, Any], extension: str, split: str, seed: int, left_out: Sequence[float] = ()
) -> str:
    """How label maps of `wsss segment` were made; `extension` is png for masks, KIND.png for those of CAMs.

    Args:
        left_out: for every image, the probability of the classes that a CRF of proposed classes ignores.
    """
    settings, squash = made_of["segment"], f"image squashed to {made_of['image_size']} px"
    if extension == "png":
        size = squash if settings["size"] == "squash" else "image at its own size"
        flips, scales = ("summed", "maxed") if settings["rule"] == "voc" else ("maxed", "summed")
        several = f" ({scales})" if len(settings["scales"]) > 1 else ""
        views = f"{size}, scales {join_numbers(settings['scales'])}{several}"
        views += f" + flip ({flips})" if settings["flip"] else ", no flip"
        how = f"{views}, argmax over all classes, {describe_crf(settings, left_out)}"
    else:
        rule = made_of["cam"]
        views = f"scales {join_numbers(rule['scales'])}{' + flip' if rule['flip'] else ''}"
        how = (
            f"CAMs of the classes of the image label, {squash}, {views}, fuse {rule['fuse']}, {SIDES[rule['pad']]}, "
            f"resized to the image, background at <= {made_of['cam_threshold']:g}, no CRF"
        )
    precision = {"ieee": "float32"}.get(made_of["precision"], made_of["precision"])
    return f"{how}, {precision}, {describe_origin(made_of, split, seed)}"


def describe_crf(settings: Mapping[str, Any], left_out: Sequence[float] = ()) -> str:
    """The CRF, with the probability mass that a CRF of proposed classes leaves out: the more, the further its masks are
    from those of all classes."""
    if not settings["crf"]:
        return "no CRF"
    said = f"CRF of {settings['crf_classes']} classes ({join_options(settings['mean_field'])})"
    if settings["crf_classes"] == "all":
        return said
    if not left_out:
        return f"{said}, left-out mass not recorded"
    mean = sum(left_out) / len(left_out)
    return f"{said}, left-out mass {100 * mean:.2f} % on average, at most {100 * max(left_out):.2f} % of an image"


def describe_origin(made_of: Mapping[str, Any], split: str, seed: int) -> str:
    decay = made_of["ema_decay"]
    averaged = "" if decay is None else f" (weights averaged, ema_decay {decay:g})"
    return f"split {split}, checkpoint {made_of['checkpoint']}{averaged}, training seed {seed}"


def join_options(options: Mapping[str, Any], without: Collection[str] = ()) -> str:
    """name value, name value."""
    return ", ".join(f"{name} {format_option(value)}" for name, value in options.items() if name not in without)


def format_option(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"({join_options(value)})"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(map(format_option, value)) + "]"
    return f"{value:g}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def join_numbers(numbers: Sequence[float]) -> str:
    return ", ".join(f"{number:g}" for number in numbers)
