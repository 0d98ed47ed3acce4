"""How much maps flicker where nothing moves, with and without smoothing, as `wsss predict` makes them of a clip.

Run:  python docs/experiments/flicker.py CLIPS RUN[:KIND[:GATE]] [RUN[:KIND[:GATE]] ...]
      CLIPS: pixel shards whose samples know their frames, or a clip; KIND and GATE, else as `wsss predict` has them

A map is normalised over its clip and put to 0 where the class is below the gate. Of frames that follow each other, in
percent:
  probability  mean |change| of the class
  still    mean |change of the score| over the tokens where nothing moves (wsss.losses.still), and over those that move
  flips    share of the still tokens that change sides of the threshold
  IoU      of the mask at the tuned threshold, on frames with smoke, where there are masks
Rows are the run by itself and smoothed over so many frames. Brackets: 95 % bootstrap over clips. Written besides, for
paired differences of runs: flicker.json, {run: {smoothing: {figure: {clip: mean}}}}.

Shapes: T frames of a clip, h x w tokens, H x W pixels.
"""

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from launcher.predict.defaults import settle
from launcher.predict.model import load_model
from launcher.predict.parts import Seen, smoothed
from launcher.predict.settings import Wishes, look_as
from shards.folder import ShardFolder
from shards.sources.video import timed_frames
from wsss.losses.still import still_tokens
from wsss.metrics.counts import bootstrap_interval
from wsss.tensors import resize

STILL = 0.02  # as method.still
WINDOWS = (0, 4, 8)  # frames that are averaged with weights falling to 0 at half of it; 4: 1/4, 1/2, 1/4


class Clip(NamedTuple):
    images: list[np.ndarray]
    masks: list[np.ndarray] | None


def clips_of(place: Path) -> dict[str, Clip]:
    if place.is_file():
        return {place.name: Clip([frame.image for frame in timed_frames(place) if frame.image is not None], None)}
    shards, numbers = ShardFolder(place, "pixel"), defaultdict(list)
    for number, frame in enumerate(shards.frames):
        if frame is not None:
            numbers[frame.clip].append((frame.number, number))
    return {
        clip: Clip([shards.image(n) for _, n in sorted(found)], [shards.mask(n) for _, n in sorted(found)])
        for clip, found in numbers.items()
    }


def figures_of(clip: Clip, score_Thw: Tensor, threshold: float) -> dict[str, float]:
    """The figures of one clip; NaN where there is nothing to count."""
    image_T3HW = torch.from_numpy(np.stack(clip.images)).permute(0, 3, 1, 2) / 255
    still_Phw = still_tokens(image_T3HW[:-1], image_T3HW[1:], score_Thw.shape[1:], STILL)
    change_Phw = (score_Thw[1:] - score_Thw[:-1]).abs()
    shown_Thw = score_Thw >= threshold
    flips_Phw = (shown_Thw[1:] != shown_Thw[:-1]).float()
    found = {
        "still": change_Phw[still_Phw].mean(),
        "moving": change_Phw[~still_Phw].mean(),
        "flips": flips_Phw[still_Phw].mean(),
        "still tokens": still_Phw.float().mean(),
    }
    if clip.masks is not None:
        ious = []
        for score_hw, mask_HW in zip(score_Thw, clip.masks, strict=True):
            truth = torch.from_numpy(mask_HW) == 1
            mask = resize(score_hw[None, None], truth.shape)[0, 0] >= threshold
            ious += [(mask & truth).sum() / (mask | truth).sum()] if truth.any() else []
        found["IoU"] = torch.stack(ious).mean() if ious else torch.tensor(torch.nan)
    return {name: 100 * float(value) for name, value in found.items()}


def main(place: str, *runs: str) -> None:
    clips = clips_of(Path(place))
    print(f"{place}: {len(clips)} clips, {sum(len(clip.images) for clip in clips.values())} frames")
    written = {}
    for named in runs:
        run, kind, gate = [*named.split(":"), "", ""][:3]
        model = load_model(Path(run), "cpu")
        settings = settle(model, Wishes(kind=kind or None, gate=float(gate) if gate else None))
        threshold = max(settings.threshold or 0.5, 1e-6)
        by_window: dict[int, dict[str, dict[str, float]]] = {n: defaultdict(dict) for n in WINDOWS}
        for name, clip in clips.items():
            looked = look_as(settings, model, clip.images)
            strongest = max(float(each.strength[0]) for each in looked) or 1.0
            gated = [
                each._replace(cam=each.cam * each.strength[0] / strongest * (each.probs[0] >= settings.gate))
                for each in looked
            ]
            for window in WINDOWS:
                seen = [*smoothed((Seen(n, float(n), each) for n, each in enumerate(gated)), window)]
                score_Thw = torch.from_numpy(np.stack([each.looked.cam[0] for each in seen]).astype(np.float32))
                prob_T = torch.from_numpy(np.stack([each.looked.probs[0] for each in seen]))
                by_window[window]["probability"][name] = 100 * float((prob_T[1:] - prob_T[:-1]).abs().mean())
                for figure, value in figures_of(clip, score_Thw, threshold).items():
                    by_window[window][figure][name] = value
        print(f"{named}: {settings.kind}, threshold {threshold:.2f}, gate {settings.gate:.2f}")
        for window, figures in by_window.items():
            words = "  ".join(f"{figure} {words_of(values)}" for figure, values in figures.items())
            print(f"  over {window} frames: {words}" if window else f"  by itself: {words}")
        written[named] = by_window
    Path("flicker.json").write_text(json.dumps(written))


def words_of(values: dict[str, float]) -> str:
    known = {clip: value for clip, value in values.items() if not np.isnan(value)}
    if not known:
        return "-"
    low, high = bootstrap_interval(np.array([*known.values()]), [*known]) if len(known) > 1 else (np.nan, np.nan)
    return f"{np.mean([*known.values()]):.2f}" + (f" [{low:.2f}, {high:.2f}]" if len(known) > 1 else "")


if __name__ == "__main__":
    main(*sys.argv[1:])
