import numpy as np
from wsss_prototypes.metric import HitRate


def counted(*images, share=0.5):
    metric = HitRate(("cat", "dog"), share=share)
    for prediction, truth in images:
        metric.update(np.array([prediction], np.uint8), np.array([truth], np.uint8))
    return metric


def test_the_share_of_shown_classes_by_hand():
    # the cat is found in 2 of 3 pixels, the dog in none; what is ignored counts nowhere
    image = ([1, 1, 0, 1, 0], [1, 1, 1, 2, 255])
    assert counted(image).compute() == 1 / 2 and counted(image, share=0.7).compute() == 0
    assert counted(([1], [0])).compute() is None


def test_two_processes_count_as_one():
    first, second = counted(([1], [1])), counted(([0, 2], [1, 2]))
    first.merge(second)
    assert first.compute() == counted(([1], [1]), ([0, 2], [1, 2])).compute() == 2 / 3
