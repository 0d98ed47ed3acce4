"""A chain of refiners, one after another. Each must return scores in [0, 1] of the same size."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

TOLERANCE = 1e-3  # float16 has no finer step near 1


@dataclass(frozen=True)
class Step:
    """A refiner with its options.

    Attributes:
        name: of the refiner.
        refine: (image, scores[, cue]) -> scores.
        takes_cue: whether there is a cue.
    """

    name: str
    refine: Callable[..., np.ndarray]
    takes_cue: bool


def run_chain(
    chain: Sequence[Step], image_HW3: np.ndarray, scores_nHW: np.ndarray, cues: Mapping[str, Any]
) -> np.ndarray:
    """Scores after every step of the chain, (n, H, W) float32 in [0, 1]. Without any score (n = 0: the image shows no
    class) no refiner is asked.

    Args:
        cues: by name of the refiner, for the steps that take one.

    Raises:
        ValueError: a refiner refused its input, or gave scores of another size or outside [0, 1]; names it.
    """
    if not len(scores_nHW):
        return scores_nHW
    for step in chain:
        cue = (cues[step.name],) if step.takes_cue else ()
        refined_nHW = step.refine(image_HW3, scores_nHW, *cue)
        if refined_nHW.shape != scores_nHW.shape:
            raise ValueError(
                f"refiner '{step.name}' made scores of shape {refined_nHW.shape} out of {scores_nHW.shape}; wanted the "
                "same shape"
            )
        if not (refined_nHW.min() >= -TOLERANCE and refined_nHW.max() <= 1 + TOLERANCE):
            low, high = float(refined_nHW.min()), float(refined_nHW.max())
            raise ValueError(
                f"refiner '{step.name}' gave scores from {low:g} to {high:g}; wanted [0, 1] and no NaN: divide or clip "
                "them in the refiner"
            )
        scores_nHW = refined_nHW.clip(0, 1)
    return scores_nHW
