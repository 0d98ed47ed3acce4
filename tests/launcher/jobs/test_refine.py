import subprocess
import sys
from pathlib import Path

from support.places import ROOT

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


def test_processes_that_refine_or_count_import_no_networks():
    """Each of them would take two seconds more to begin."""
    heavy = "{'timm', 'torchvision', 'accelerate', 'mlflow'}"
    code = f"import sys, launcher.jobs.refine, launcher.evaluation.count; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
