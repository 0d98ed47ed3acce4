from functools import partial

import numpy as np
import pytest

from wsss.refine.chain import Step, run_chain


def grow(image_HW3, scores_nHW, *, by):
    return scores_nHW * by


def test_a_chain_runs_its_steps_in_order_each_with_its_own_cue():
    image, scores = np.zeros((2, 2, 3), dtype=np.uint8), np.full((1, 2, 2), 0.5, dtype=np.float32)
    steps = [Step("half", partial(grow, by=0.5), False), Step("add", lambda _, scores, cue: scores + cue, True)]
    assert run_chain(steps, image, scores, {"add": 0.25}).ravel().tolist() == [0.5] * 4
    assert run_chain([], image, scores, {}) is scores


def test_without_a_score_no_refiner_is_asked():
    def asked(*_):
        raise AssertionError

    image, none = np.zeros((2, 2, 3), dtype=np.uint8), np.zeros((0, 2, 2), dtype=np.float32)
    assert run_chain([Step("stack", asked, True)], image, none, {}).shape == (0, 2, 2)


def test_the_refiner_that_leaves_the_range_or_the_size_is_named():
    image, scores = np.zeros((2, 2, 3), dtype=np.uint8), np.ones((1, 2, 2), dtype=np.float32)
    scores[0, 0, 0] = 0.25
    steps = [Step("edge", lambda _, scores: (scores - 0.25) * (1.002 / 0.75) - 0.001, False)]  # from -0.001 to 1.001
    assert run_chain(steps, image, scores, {}).ravel().tolist() == [0, 1, 1, 1]
    for by, message in ((1.0015, "from 0.250375 to 1.0015"), (-0.5, "from -0.5 to -0.125"), (np.nan, "nan")):
        steps = [Step("fine", partial(grow, by=1.0), False), Step("par", partial(grow, by=by), False)]
        with pytest.raises(ValueError, match=f"refiner 'par' gave scores .*{message}.* wanted .0, 1."):
            run_chain(steps, image, scores, {})
    with pytest.raises(ValueError, match="from -0.5 to 0.25"):  # too low at one place alone
        run_chain([Step("low", lambda _, scores: 0.5 - scores, False)], image, scores, {})
    with pytest.raises(ValueError, match=r"refiner 'cut' made scores of shape \(1, 1, 2\) out of \(1, 2, 2\)"):
        run_chain([Step("cut", lambda _, scores: scores[:, :1], False)], image, scores, {})
