from pathlib import Path

from launcher.config.options import Named
from launcher.config.sections import RefineConfig
from launcher.jobs.refine import resolve_chain
from wsss.refine.crf import dense_crf


def test_a_chain_is_resolved_with_the_defaults_and_knows_who_takes_a_cue():
    settings = RefineConfig(chain=(Named(name="crf", gamma=2), Named(name="walk")), cues={"walk": Path("x")})
    crf, walk = resolve_chain(settings)
    assert (crf.name, crf.takes_cue, walk.takes_cue) == ("crf", False, True)
    assert crf.refine.func is dense_crf and crf.refine.keywords["gamma"] == 2.0
    assert crf.refine.keywords["iterations"] == 5
