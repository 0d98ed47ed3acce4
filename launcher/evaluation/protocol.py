"""The protocol line of a figure: split, scales, flip, CRF, thresholds, seed, checkpoint."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from launcher.jobs import output as jobs
from launcher.jobs.infer import DEFAULT_PAD
from launcher.jobs.scores import REFINED
from wsss.maps.fusion import TOCO


def made_of(folder: Path) -> dict[str, Any]:
    return jobs.read_made_of(folder) or {}


def protocol(cams_made_of: dict[str, Any], seed: int) -> str:
    """How the scores came about, in words: from what the CAM folder says of itself, not from what a config wants."""
    cam = cams_made_of["cam"]
    scales = ", ".join(f"{scale:g}" for scale in cam["scales"])
    size = f"image squashed to {cams_made_of['image_size']} px"
    if cam.get("window_px"):
        size = f"whole image through windows of {cam['window_px']} px"
    layers = f", layers {', '.join(map(str, cam['layers']))}" if list(cam["layers"]) != [-1] else ""
    fuse = cam.get("fuse", "mean")
    fused = f"fuse {fuse}, pad {cam.get('pad', DEFAULT_PAD[fuse])}"
    views = f"{size}, scales {scales}{' + flip' if cam['flip'] else ''}, {fused}{layers}, classes {cam['classes']}"
    return f"{views}, scores resized to the image, training seed {seed}"


def sources_of(run: Path, split: str) -> dict[str, tuple[Path, str]]:
    """{name: (folder of score shards, kind of score)} of all that a run has inferred and refined.

    A name is KIND of the run's own CAMs, KIND@SET of a further set, and either with +CHAIN once refined.
    """
    sources = {}
    for cams in sorted(run.glob(f"cams*/{split}")):
        _, at, name = cams.parent.name.partition("@")
        for kind in made_of(cams).get("cam", {}).get("kinds", []):
            sources[f"{kind}{at}{name}"] = (cams, kind)
    for folder in sorted((run / "masks").glob(f"*/{split}")):
        sources[folder.parent.name] = (folder, REFINED)
    return sources


def segment_protocol(made_of: dict[str, Any], extension: str, split: str, seed: int) -> str:
    """How the masks came about, in words, from what their folder says of itself."""
    of, squash = made_of["segment"], f"image squashed to {made_of['image_size']} px"
    if extension == "png":
        size = squash if of["size"] == "squash" else "image at its own size"
        flips, scales = ("summed", "maxed") if of["rule"] == "voc" else ("maxed", "summed")
        views = f"{size}, scales {listed(of['scales'])}{f' ({scales})' if len(of['scales']) > 1 else ''}"
        views += f" + flip ({flips})" if of["flip"] else ", no flip"
        how = f"{views}, argmax over all classes, {crf_line(of)}"
    else:
        rule = made_of.get("cam") or asdict(TOCO)
        views = f"scales {listed(rule['scales'])}{' + flip' if rule['flip'] else ''}"
        how = (
            f"CAMs of the classes of the image label, {squash}, {views}, fuse {rule['fuse']}, pad {rule['pad']}, "
            f"resized to the image, background at <= {made_of['cam_threshold']:g}, no CRF"
        )
    precision = "float32" if made_of["precision"] == "no" else made_of["precision"]
    return f"{how}, {precision}, split {split}, checkpoint {made_of['checkpoint']}, training seed {seed}"


def crf_line(of: dict[str, Any]) -> str:
    if not of["crf"]:
        return "no CRF"
    options = ", ".join(f"{name} {value:g}" for name, value in of["mean_field"].items())
    return f"CRF of {of['crf_classes']} classes ({options})"


def listed(scales: list[float]) -> str:
    return ", ".join(f"{scale:g}" for scale in scales)
