import numpy as np
import pytest

from launcher.config.options import Named
from launcher.config.sections import MeanFieldConfig, RefineConfig, SegmentConfig
from launcher.errors import RunError, naming, report_user_errors
from launcher.jobs import crf_sums
from launcher.jobs.crf_pool import crf_label
from launcher.jobs.crf_sums import settle_chain, settle_segment
from launcher.jobs.refine import refine, resolve_chain
from wsss.extras import MissingPackage
from wsss.refine import crf


@pytest.fixture
def bare(monkeypatch):
    monkeypatch.setattr(crf, "is_installed", lambda name: False)


@pytest.fixture
def furnished(monkeypatch):
    monkeypatch.setattr(crf, "is_installed", lambda name: True)


def sums_of(settings):
    return [step.options.get("by") for step in settings.chain]


def test_the_crfs_of_a_chain_are_settled_and_no_other_refiner(furnished):
    chain = (Named(name="walk"), Named(name="crf", gamma=2), Named(name="crf", by="exact"))
    settled = settle_chain(RefineConfig(chain=chain))
    assert sums_of(settled) == [None, "lattice", "exact"] and "by" not in settled.chain[0].options
    assert settled.chain[1].options["gamma"] == 2
    assert resolve_chain(settled)[1].refine.keywords["by"] == "lattice"


def test_without_pydensecrf_the_sum_is_exact_and_its_price_is_told(bare, capsys):
    assert sums_of(settle_chain(RefineConfig())) == ["exact"]
    assert "pydensecrf is not installed: the CRF sums over all pairs of pixels" in capsys.readouterr().err
    assert sums_of(settle_chain(RefineConfig(chain=(Named(name="crf", by="exact"),)))) == ["exact"]
    assert capsys.readouterr().err == ""  # it was asked for


def test_segments_crf_is_exact_on_a_gpu_in_the_process_that_has_it(furnished):
    on_gpu, on_cpu = (settle_segment(SegmentConfig(workers=3), device) for device in ("cuda", "cpu"))
    assert (on_gpu.mean_field.by, on_gpu.workers) == ("exact", 0)
    assert (on_cpu.mean_field.by, on_cpu.workers) == ("lattice", 3)
    asked = SegmentConfig(workers=3, mean_field=MeanFieldConfig(by="lattice"))
    assert settle_segment(asked, "cuda") == asked
    assert settle_segment(SegmentConfig(crf=False), "cuda") == SegmentConfig(crf=False)


def test_a_lattice_that_cannot_be_ends_a_job_with_what_to_install(bare, capsys):
    with pytest.raises(MissingPackage):
        settle_chain(RefineConfig(chain=(Named(name="crf", by="lattice"),)))
    with pytest.raises(SystemExit) as end, report_user_errors(), naming("an image"):
        crf.mean_field(
            np.zeros((2, 2, 3), np.uint8), np.full((2, 2, 2), 0.5), **MeanFieldConfig(by="lattice").model_dump()
        )
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: by: lattice needs the package 'pydensecrf'") and said.count("\n") == 1


def test_an_image_whose_lattice_does_not_fit_is_named_before_the_process_ends(run, furnished, monkeypatch):
    monkeypatch.setattr(crf_sums, "free_memory", lambda: 700_000)
    said = "val-00000.tar: sample 'val-.*': MemoryError: the CRF of 32 x 32 pixels and 2 classes takes up to 0.0 GB"
    with pytest.raises(RunError, match=said):
        refine(run, ["val"], RefineConfig(chain=(Named(name="crf"),), workers=1))
    crf_sums.require_memory("exact", (32, 32), 2)
    crf_sums.require_memory("lattice", (30, 30), 2)  # 900 * (600 + 2 * 80) bytes
    image_HW3, probs_nHW = np.zeros((32, 32, 3), dtype=np.uint8), np.full((2, 32, 32), 0.5, dtype=np.float32)
    with pytest.raises(MemoryError, match="run fewer processes .* or leave the CRF out"):
        crf_label(image_HW3, probs_nHW, (0, 1), SegmentConfig(mean_field=MeanFieldConfig(by="lattice")))
