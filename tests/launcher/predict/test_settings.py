"""What tells the predictions of two settings apart."""

import json

from support.predictions import settings

from launcher.predict.views import Scale


def test_settings_whose_masks_could_differ_are_told_apart(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    changes = [
        *({"kind": "grad"}, {"threshold": 0.6}, {"threshold": None}, {"gate": 0.6}, {"refine": "crf"}),
        *({"normalise": "clip"}, {"every_s": 1.0}, {"smooth_s": 1.0}, {"heat": True}),
        *({"ignore": tmp_path / "a"}, {"ignore": tmp_path / "b"}),
        *({"scale": Scale(*of)} for of in ((8, None), (4, (9, 9)), (4, None, 0.5), (4, None, None, "windows"))),
        {"scale": Scale(4, None, from_crops=True)},
    ]
    told = {json.dumps(settings(**change).identity()) for change in ({}, *changes)}
    assert len(told) == 1 + len(changes)
    assert settings(batch_size=7).identity() == settings().identity()
