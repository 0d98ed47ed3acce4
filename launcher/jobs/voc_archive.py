"""The archive that the PASCAL VOC evaluation server takes, from the masks of `wsss segment`.

    results/VOC2012/Segmentation/comp6_test_cls/ID.png     palette PNG of the image's own size, class ids 0..20

comp6: trained on other data than VOC's own segmentation set (ImageNet weights, SBD labels).
Source: PASCAL VOC 2012 devkit, "Best practice" and results format.
"""

import io
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from launcher.errors import RunError
from launcher.files import appearing, typed
from launcher.jobs import output as jobs
from launcher.jobs.label_maps import read_label_maps
from launcher.jobs.segment import segments_folder
from launcher.progress import Progress
from shards.folder import ShardFolder
from shards.image_bytes import encode_mask
from shards.pixels import voc_colours
from shards.remote import join, name_of, parent_of

INSIDE = "results/VOC2012/Segmentation/comp6_test_cls"
# fmt: off
VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)
# fmt: on
IMAGE_ID = re.compile(r"\d{4}_\d{6}")  # as VOC 2012 names its images


def pack_voc(run: Path, *, name: str | None = None, split: str = "test", out: Path | None = None) -> tuple[Path, int]:
    """Write the archive, reopen it and check every file against the image shards.

    Args:
        name: of the set of masks; None = the run's own.
        out: None = RUN/voc2012_SET_SPLIT.tar.gz.

    Returns:
        The archive and its number of images.

    Raises:
        RunError: no masks of this split or not all, other classes than VOC's, keys that are no VOC image ids, ids above
            20 in a mask, or an archive that does not hold what it should.
    """
    folder = join(segments_folder(run, name), split)
    made_of = jobs.read_made_of(folder)
    if made_of is None:
        raise RunError(
            f"{folder}: no masks here; run `{typed('segment', run, '--split', split)} --shards FOLDER` first"
        )
    shards = jobs.open_images_of(folder, made_of)
    if shards.index.fingerprint != made_of["fingerprint"]:
        raise RunError(f"{shards.folder}: these are no longer the images that {folder} was made of; segment them again")
    if shards.index.classes != VOC_CLASSES:
        raise RunError(f"{shards.folder}: has the classes {shards.index.classes}; the server wants VOC's 20, in order")
    strange = [key for key in shards.keys if not IMAGE_ID.fullmatch(key)]
    if strange:
        raise RunError(
            f"{shards.folder}: {len(strange)} keys are not VOC image ids such as 2008_000001, first '{strange[0]}'"
        )
    jobs.require_all(folder, [shard.name for shard in shards.index.shards])
    out = out or run / f"voc2012_{name_of(parent_of(folder))}_{split}.tar.gz"
    with appearing(out) as temporary:
        with tarfile.open(temporary, "w:gz") as archive, Progress(len(shards), "pack", "image") as progress:
            for shard in shards.index.shards:
                for number, label_HW in read_label_maps(shards, folder, shard.name, "png"):
                    add_file(archive, f"{INSIDE}/{shards.keys[number]}.png", encode_mask(label_HW))
                    progress.advance()
        check_archive(temporary, shards)
    return out, len(shards)


def add_file(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(data), 0o644
    archive.addfile(info, io.BytesIO(data))


def check_archive(path: Path, shards: ShardFolder) -> None:
    """Reopen an archive and look at every file: names, PNG mode, palette, size, class ids.

    Raises:
        RunError: lists what is wrong.
    """
    wanted = {f"{INSIDE}/{key}.png": number for number, key in enumerate(shards.keys)}
    seen, problems = set(), []
    with tarfile.open(path) as archive:
        for info in archive:
            if info.name not in wanted or info.name in seen:
                problems.append(f"{info.name}: {'twice' if info.name in seen else 'not wanted'}")
                continue
            seen.add(info.name)
            reader = archive.extractfile(info)
            height, width = shards.about(wanted[info.name])["size"]
            problems += [f"{info.name}: {p}" for p in png_problems(reader.read() if reader else b"", (height, width))]
    gone = sorted(set(wanted) - seen)
    problems += [f"{name}: missing" for name in gone]
    if problems:
        listed = "\n  ".join(problems[:10])
        raise RunError(f"{path}: {len(problems)} of {len(wanted)} files are not what the server accepts:\n  {listed}")


def png_problems(data: bytes, size: tuple[int, int]) -> Iterator[str]:
    """What is wrong with one result file, in words."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            file_format, mode, palette, label_HW = image.format, image.mode, image.getpalette(), np.asarray(image)
    except (OSError, SyntaxError) as error:
        yield f"does not decode ({error})"
        return
    if (file_format, mode) != ("PNG", "P"):
        yield f"is {file_format} of mode {mode}; wanted a PNG of mode P"
    elif palette is None or palette != voc_colours().flatten()[: len(palette)].tolist() or len(palette) < 3 * 21:
        yield "has a palette other than VOC's"
    if label_HW.shape[:2] != size:
        yield f"is {label_HW.shape[:2]}, but the image is {size} (height, width)"
    if label_HW.max() > len(VOC_CLASSES):
        yield f"holds class id {label_HW.max()}; wanted 0..{len(VOC_CLASSES)}"
