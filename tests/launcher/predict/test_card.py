"""The folder of `wsss export --hub`: weights and card."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

import wsss
from launcher.__main__ import main
from launcher.config.options import Named
from launcher.errors import ConfigError, RunError
from launcher.evaluation.evaluate import evaluate
from launcher.predict import card
from launcher.predict.card import shortly, write_folder
from launcher.predict.export import export
from launcher.predict.facts import without_places
from launcher.run.build import build_network
from launcher.run.folder import Run
from launcher.run.start import read_start


def front_and_text(folder):
    _, front, text = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(front), text


def test_a_folder_for_a_hub_has_a_card_of_run_and_evaluation_and_predicts(run, monkeypatch, capsys):
    report = evaluate(run)
    monkeypatch.setattr(sys, "argv", ["wsss", "export", str(run), "--out", "hub/plumes", "--hub", "me/plumes"])
    with pytest.raises(SystemExit) as end:
        main()
    said = capsys.readouterr().out.splitlines()
    assert end.value.code == 0 and said[-1] == "read hub/plumes/README.md, then: hf upload me/plumes hub/plumes"
    front, text = front_and_text(Path("hub/plumes"))
    assert (front["library_name"], front["license"], front["pipeline_tag"]) == ("wsss", "other", "image-segmentation")
    headline = report["headline"]
    value = report["sources"][headline["source"]][headline["choice"]]["per_image_iou"]
    (result,) = front["model-index"][0]["results"]
    assert {"type": "per_image_iou", "name": "per-image IoU", "value": round(100 * value, 2)} in result["metrics"]
    assert [metric["type"] for metric in result["metrics"]] == ["per_image_iou", "false_alarm_area"]
    assert result["dataset"]["name"] == "24 images of val" and front["license_name"] == "see-below"
    assert "24 images of .../val, metrics in percent" in text
    for published in Path("hub/plumes").iterdir():  # the card, and what the weights say of themselves
        assert str(Path(report["dataset"]["folder"]).parent).encode() not in published.read_bytes()
    about = Run(run).about
    for fact in ("| classes | smoke |", "| method | distill |", about["git_commit"], about["dataset_fingerprint"]):
        assert fact in text
    assert "git clone https://huggingface.co/me/plumes plumes\n" in text
    assert shortly("[0.48500001430511475, 0.5]") == "0.485, 0.5"
    assert "metrics in percent" in text and "## Licence\n\nthe weights began random" in text
    image = np.random.default_rng(0).integers(0, 256, (40, 40, 3)).astype(np.uint8)
    masks = [wsss.load(place, gate=0.0).predict(image).mask for place in (run, "hub/plumes")]
    assert np.array_equal(*masks)
    named = Run(run).config.model.model_copy(update={"weights": "hub/plumes"})
    start = read_start(Named(**{**named.model_dump(), "weights": "hub/plumes"}))
    assert start is not None and start.classes == ("smoke",)
    assert build_network(Named(**{**named.model_dump(), "weights": "hub/plumes"}), Run(run).class_set).origin


def test_a_licence_that_a_hub_knows_is_its_front_matter(run):
    write_folder(run, Path("hub"), "me/plumes", None, licence="cc-by-nc-4.0")
    front, text = front_and_text(Path("hub"))
    assert front["license"] == "cc-by-nc-4.0" and "license_name" not in front and "model-index" not in front
    assert "The run was not evaluated" in text
    with pytest.raises(RunError, match="hub: already holds hub/model.safetensors; choose another folder"):
        write_folder(run, Path("hub"), "me/plumes", "torch", kind="project")


def test_a_card_says_what_the_network_is_and_takes_and_how_it_was_made(run, monkeypatch):
    about = json.loads((run / "run.json").read_text())
    made = {"command": "wsss train /home/me/own.yaml", "git_commit": "c0ffee", "packages": {"torch": "2.9"}}
    (run / "run.json").write_text(json.dumps(about | made))
    written = export(run, Path("student.safetensors"), licence="that of /data/w/deit.pth")
    monkeypatch.setattr(card, "read_state", lambda _: {"ema_decay": 0.999})
    facts = {**written.facts, "mean": "[0.4]", "std": "[0.25]", "threshold": "0.0"}
    text = card.make_card(run, "me/plumes", written._replace(facts=facts))
    rows = dict(line[2:-2].split(" | ", 1) for line in text.splitlines() if line.startswith("| ") and line != "| | |")
    gate = "0.5 (default: below this probability of a class its map means nothing)"
    assert rows.pop("input").endswith("; trained at 32 px") and rows.pop("code").endswith(", commit c0ffee")
    assert rows.pop("data") == f"smoke, fingerprint {about['dataset_fingerprint']}"
    assert rows == {
        **{"network": "name vit, timm_name vit_tiny_patch16_224", "method": "distill", "classes": "smoke"},
        **{"normalisation": "mean 0.4, standard deviation 0.25", "map": "grad, unless `--kind` names another"},
        "threshold": "0.0 (evaluate.threshold of its config: no threshold was tuned for grad)",
        **{"gate": gate, "checkpoint": "step_0000002 of runs/student, averaged by 0.999", "packages": "torch 2.9"},
        "command": "`wsss train .../own.yaml`",
    }
    assert text.endswith("## Licence\n\nthat of .../deit.pth\n")


def test_a_metric_that_does_not_exist_is_none_of_a_hubs():
    at = {"per_image_iou": None, "false_alarm_area": 0.5, "pooled_iou": 0.4}
    evaluation = {"headline": {"source": "cam", "choice": "fixed"}, "sources": {"cam": {"fixed": at}}}
    (result,) = card.index_of("me/plumes", {**evaluation, "dataset": {"images": 2, "folder": "data/val"}})["results"]
    assert result["metrics"] == [{"type": "false_alarm_area", "name": "false-alarm area", "value": 50.0}]


def test_a_folder_is_written_again_over_its_own_model(run):
    for licence in ("mit", "cc0-1.0"):
        write_folder(run, Path("hub"), "me/plumes", None, licence=licence)
    assert front_and_text(Path("hub"))[0]["license"] == "cc0-1.0"


def test_a_name_or_a_place_that_does_not_fit_is_told(run):
    with pytest.raises(ConfigError, match="--hub plumes: wanted OWNER/NAME"):
        write_folder(run, Path("hub"), "plumes", None)
    Path("hub").write_text("")
    with pytest.raises(RunError, match="hub: is a file; wanted a folder"):
        write_folder(run, Path("hub"), "me/plumes", None)


def test_a_card_does_not_say_where_things_lay():
    command = (
        "wsss train /home/me/own.yaml 'model={name: vit, weights: /data/w/deit.pth}' data.train=s3://b/t/train a=x/y"
    )
    said = "wsss train .../own.yaml 'model={name: vit, weights: .../deit.pth}' data.train=s3://b/t/train a=x/y"
    assert without_places(command) == said
    assert without_places('{"train": "/home/my own/val", "of": "m/val"}') == '{"train": ".../val", "of": "m/val"}'
