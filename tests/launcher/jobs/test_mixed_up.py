"""Outputs of other settings, other weights and other folders are told apart, never mixed or counted as one."""

import json
import shutil
from hashlib import sha256

import pytest

from launcher.config.options import Named
from launcher.config.sections import RefineConfig
from launcher.errors import ConfigError, RunError
from launcher.evaluation.evaluate import evaluate
from launcher.evaluation.per_image import PER_IMAGE
from launcher.jobs import over_shards
from launcher.jobs import refine as refine_job
from launcher.jobs.infer import infer
from launcher.jobs.refine import refine
from launcher.run.steps import MODEL, STATE

NO_TUNE = ["data.tune=null"]


CRF = (Named(name="crf"),)


def settings(threshold=0.3, chain=CRF):
    return RefineConfig(cams=("grad",), chain=chain, threshold=threshold, workers=1)


def train_anew(run):
    """As if the run had been trained again, to weights that its checkpoint has under the same name."""
    (step,) = run.glob("step_*")
    data = bytearray((step / MODEL).read_bytes())
    data[-8] ^= 1
    (step / MODEL).write_bytes(data)
    state = json.loads((step / STATE).read_text())
    state["sha256"][MODEL] = sha256(data).hexdigest()
    (step / STATE).write_text(json.dumps(state))


def test_shards_that_nothing_describes_are_not_taken_for_those_of_other_settings(run):
    (masks,) = refine(run, ["val"], settings())
    (masks / "job.json").unlink()  # as where removing the folder was cut short
    with pytest.raises(RunError, match=r"grad\+crf/val: val-00000.tar is there, but no job.json says what"):
        refine(run, ["val"], settings(0.9))
    refine_job.output.open_output(masks, {}, shards=["other.tar"])  # a file that is none of its shards does no harm


def test_a_job_stops_where_another_one_begins_its_folder_anew_with_other_settings(run, monkeypatch):
    plain, begun = refine_job.refined_samples, []

    def late(wanted, task):
        if task.name == "val-00002.tar" and wanted.threshold == 0.3:
            monkeypatch.setattr(refine_job, "refined_samples", plain)
            begun.extend(refine(run, ["val"], settings(0.9), overwrite=True))
            (begun[0] / task.name).unlink()  # the other one has not come to it yet
        return plain(wanted, task)

    monkeypatch.setattr(refine_job, "try_chain", lambda *_: 0)
    monkeypatch.setattr(refine_job, "refined_samples", late)
    with pytest.raises(RunError, match="was removed, or restarted with other settings, while this job wrote"):
        refine(run, ["val"], settings())
    assert json.loads((begun[0] / "job.json").read_text())["threshold"] == 0.9
    assert not (begun[0] / "val-00002.tar").exists()


def test_cams_of_weights_that_were_trained_anew_are_told_from_the_old_ones(run, scenes):
    train_anew(run)
    with pytest.raises(RunError, match=r"cams/val: made with other settings \(weights: .*, now '"):
        infer(run, "val", scenes / "val")
    with pytest.raises(RunError, match="cams/val: made with other weights than step_0000002 has now; infer"):
        evaluate(run, NO_TUNE)


def test_each_folder_is_counted_once_by_a_name_of_its_own(run):
    shutil.copytree(run / "cams", run / "cams_old")
    (masks,) = refine(run, ["val"], settings(chain=()))
    assert masks.parent.name == "grad+threshold"
    assert list(evaluate(run, NO_TUNE)["sources"]) == ["grad", "class_map", "project", "grad+threshold"]
    assert len((run / PER_IMAGE).read_text().splitlines()) == 1 + 4 * 24
    masks.parent.rename(run / "masks/grad")
    with pytest.raises(RunError, match=r"cams/val and .*masks/grad/val: both would be called 'grad'; rename one"):
        evaluate(run, NO_TUNE)


@pytest.mark.parametrize("name", ["a/b", "../../x", "", " ", "a*"])
def test_a_name_that_leads_out_of_the_run_or_that_nobody_would_find_is_refused(run, scenes, name):
    for job in (
        lambda: infer(run, "val", scenes / "val", name=name),
        lambda: refine(run, ["val"], settings(), name=name),
        lambda: refine(run, ["val"], settings(), cams=name),
    ):
        with pytest.raises(ConfigError, match="wanted a name without /"):
            job()


def test_spaces_and_umlauts_name_a_set(run, scenes):
    infer(run, "val", scenes / "val", ["cam.kinds=[grad]"], "größer als 1")
    refine(run, ["val"], settings(), cams="größer als 1")
    sources = list(evaluate(run, NO_TUNE)["sources"])
    assert sources[3:] == ["grad@größer als 1", "grad@größer als 1+crf"]


def test_a_threshold_is_not_tuned_on_the_images_that_are_judged(run, scenes):
    shutil.rmtree(run / "cams/tune")
    infer(run, "tune", scenes / "val")
    grad = evaluate(run, [f"data.tune={scenes}/val"])["sources"]["grad"]
    assert grad["tuned"] is None and "shares 6 groups with data.val, first '" in grad["untuned"]


def test_a_shard_is_published_only_where_its_folder_is_what_it_was(tmp_path):
    with pytest.raises(RunError, match="was removed, or restarted"):
        over_shards.output.require_still(tmp_path / "gone", "0" * 64)
