"""Every table of the smoke paper is a study; each row runs at toy size: a step, CAMs, masks and figures."""

import csv
import json
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from support.pages import read_page
from support.places import ROOT

from launcher.config.file import load_config
from launcher.errors import ConfigError, RunError
from launcher.evaluation.class_sums import CLASS_SUMS
from launcher.evaluation.formats import DASH
from launcher.evaluation.headline import read_headline
from launcher.evaluation.per_image import read_ious
from launcher.run.folder import Run
from launcher.studies import beside, figures
from launcher.studies.beside import find_known, list_rows
from launcher.studies.figures import find_interval, tabulate_study
from launcher.studies.numbers import list_numbers
from launcher.studies.page import (
    explain_figures,
    format_cell,
    format_gap,
    format_study,
    list_columns,
    name_by_seed,
    write_study_report,
)
from launcher.studies.plan import check, row_commands, run_of
from launcher.studies.run import run_study
from launcher.studies.slurm import slurm_script
from launcher.studies.table import Segments, load_study

NAMES = sorted(path.stem for path in (ROOT / "configs/studies").glob("smoke_*.yaml"))

DATASET = {"fingerprint": "images", "classes": ["smoke"]}


@pytest.fixture
def in_checkout(in_tmp, monkeypatch):
    """An empty folder with the shipped configs in it."""
    (in_tmp / "configs").symlink_to(ROOT / "configs")
    return in_tmp


def test_there_is_a_study_for_every_table_of_the_paper():
    tables = ["1", "2", "3", "4a", "4b", "5", "6", "7", "8", "9", "10", "11a", "11b", "11c"]
    wanted = {f"smoke_table_4_{table}" for table in tables}
    assert wanted | {"smoke_controls"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_studys_trainings_load_with_their_overrides(name, in_checkout):
    study = load_study(name)
    check(study)
    assert study.title and study.protocol and study.rows


def test_a_wrong_override_of_a_study_is_told_as_the_studys(in_checkout):
    study = load_study("voc_mini")
    name, training = next(iter(study.trainings.items()))
    wrong = training.model_copy(update={"overrides": ("train.stpes=3",)})
    with pytest.raises(ConfigError, match=f"trainings.{name}: override 'train.stpes=3' of configs/.*: unknown key"):
        check(study.model_copy(update={"trainings": {name: wrong}}))


def test_a_row_of_a_map_that_nothing_makes_is_told_before_the_first_training(in_checkout):
    study = load_study("voc_mini")
    both_cam = study.row("both_cam")  # of `wsss segment`, whose label maps a row without `segments` cannot read
    for row, message in (
        (
            both_cam.model_copy(update={"segments": None}),
            "kind 'cam': its training 'msee' has the maps class_map, aux_m",
        ),
        (both_cam.model_copy(update={"kind": "grad"}), "kind 'grad': label maps are seg, cam, aux_cam"),
    ):
        with pytest.raises(ConfigError, match=f"row 'both_cam': {message}"):
            check(study.model_copy(update={"rows": (both_cam, row), "control": None}))
    row = both_cam.model_copy(update={"segments": None, "kind": "grad"})
    check(study.model_copy(update={"rows": (row,), "control": None}), ["cam.kinds=[grad]"])


def test_the_papers_figures_are_those_of_the_tables():
    # one row of each table, read from the paper's text
    wanted = {
        ("smoke_table_4_1", "vit"): 13.18, ("smoke_table_4_2", "setr"): 68.27, ("smoke_table_4_3", "transcam"): 15.02,
        ("smoke_table_4_4a", "cam_fusion"): 46.91, ("smoke_table_4_4b", "crf_sam"): 52.93,
        ("smoke_table_4_5", "worse_4_1"): 46.90, ("smoke_table_4_6", "scale_2.0"): 42.60,
        ("smoke_table_4_7", "co_training_l2_global"): 0.27, ("smoke_table_4_8", "global_co_training"): 45.93,
        ("smoke_table_4_9", "spatial_map"): 48.19, ("smoke_table_4_10", "lambda_1.5"): 41.90,
        ("smoke_table_4_11a", "points_16"): 50.50, ("smoke_table_4_11b", "or"): 35.97,
        ("smoke_table_4_11c", "gamma_2"): 33.47,
    }  # fmt: skip
    for (name, row), figure in wanted.items():
        assert load_study(str(ROOT / f"configs/studies/{name}.yaml")).row(row).paper == figure


TINY = """
title: A tiny study
folder: tiny
protocol: none
seeds: [0, 1]
control: lambda_0
trainings:
  teacher: {config: classify.yaml, seeds: [0], overrides: [train.steps=1]}
  lambda_0: {config: distill.yaml, teacher: teacher, overrides: [method.align_weight=0, train.steps=1]}
  lambda_1: {config: distill.yaml, teacher: teacher, overrides: [train.steps=1]}
rows:
  - {name: lambda_0, run: lambda_0}
  - {name: lambda_1, paper: 47.37, run: lambda_1, kind: project}
  - {name: scales, run: lambda_1, kind: project, cams: {name: ms, overrides: ["cam.scales=[1,2]"]}}
  - {name: oracle, run: lambda_1, kind: project, figure: oracle_per_image_iou}
  - {name: crf, run: lambda_1, kind: project, masks: {name: crf2, overrides: ["refine.chain=[{name: crf, gamma: 2}]"]}}
"""


@pytest.fixture
def tiny(in_tmp, tiny_yaml):
    tiny_yaml("classify"), tiny_yaml("distill")
    path = in_tmp / "tiny.yaml"
    path.write_text(TINY)
    return load_study(str(path))


def here(command):
    """Run a `wsss` command in this process."""
    from launcher.__main__ import app
    from launcher.training.run import train

    if command[0] == "train":
        train(load_config(Path(command[1]), command[2:]))
    else:
        app(command, standalone_mode=False)


def test_a_row_is_the_commands_that_make_it(tiny):
    run, teacher = "runs/tiny/lambda_1_seed1", "runs/tiny/teacher_seed0"
    crf = ["--name", "crf2", "refine.cams=[project]", "refine.chain=[{name: crf, gamma: 2}]"]
    assert row_commands(tiny, tiny.row("crf"), 1) == [
        ["train", "classify.yaml", "name=tiny/teacher_seed0", "train.seed=0", "train.steps=1"],
        ["train", "distill.yaml", "name=tiny/lambda_1_seed1", "train.seed=1", f"teacher={teacher}", "train.steps=1"],
        ["infer", run, "--split", "val"],
        ["refine", run, "--split", "val", *crf],
        ["infer", run, "--split", "tune"],
        ["refine", run, "--split", "tune", *crf],
        ["evaluate", run],
    ]


def test_a_study_runs_once_what_its_rows_share_and_lays_the_paper_beside_it(tiny):
    done = []
    run_study(tiny, execute=lambda command: (done.append(command), here(command)))
    assert [c[0] for c in done].count("train") == 1 + 2 + 2  # one teacher, and two seeds of two students
    assert [c[0] for c in done].count("evaluate") == 4 and len(set(map(tuple, done))) == len(done)
    rows = {row["name"]: row for row in tabulate_study(tiny)}
    assert all(row["seeds"] == [0, 1] for row in rows.values())
    ours = [
        json.loads((run_of(tiny, "lambda_1", seed) / "evaluation.json").read_text())["sources"]["project"]
        for seed in (0, 1)
    ]
    expected = 0.5 * sum(figures["fixed"]["per_image_iou"] for figures in ours)
    assert rows["lambda_1"]["fixed"]["mean"] == pytest.approx(expected)
    low, high = rows["lambda_1"]["fixed"]["interval"]
    assert low <= rows["lambda_1"]["fixed"]["mean"] <= high
    gap, low, high = rows["lambda_1"]["fixed"]["difference"]
    assert gap == pytest.approx(rows["lambda_1"]["fixed"]["mean"] - rows["lambda_0"]["fixed"]["mean"], abs=1e-4)
    assert low <= gap <= high
    oracle = rows["oracle"]["fixed"]  # a figure of another kind: not compared, and no threshold changes it
    assert oracle["difference"] is None and oracle["mean"] >= rows["lambda_1"]["fixed"]["mean"]
    assert oracle["by_seed"] == {} and rows["lambda_1"]["fixed"]["by_seed"] == {}
    pooled = [row.model_copy(update={"figure": "pooled_iou"}) for row in tiny.rows if row.name != "oracle"]
    of_pooled = tiny.model_copy(update={"rows": tuple(pooled)})
    found = {row["name"]: row["fixed"] for row in tabulate_study(of_pooled)}
    figures_of = {
        name: [
            json.loads((run_of(tiny, name, seed) / "evaluation.json").read_text())["sources"][tiny.row(name).source][
                "fixed"
            ]
            for seed in (0, 1)
        ]
        for name in ("lambda_1", "lambda_0")
    }
    gaps = [one["pooled_iou"] - other["pooled_iou"] for one, other in zip(*figures_of.values(), strict=True)]
    assert found["lambda_1"]["by_seed"] == pytest.approx(dict(enumerate(gaps))) and found["lambda_0"]["by_seed"] == {}
    assert "Difference to lambda_0, mean (seed by seed): " in format_study("tiny", of_pooled)
    assert "seed by seed" not in format_study("tiny", tiny)
    page = write_study_report("tiny", tiny)
    named = write_study_report("my/tiny.yaml", tiny)  # a study of one's own is reported by its path
    assert named == page and "wsss study report my/tiny.yaml" in named.read_text()
    with page.with_suffix(".csv").open(newline="") as file:
        written = {(line["row"], line["threshold"], line["seed"]): line for line in csv.DictReader(file)}
    assert float(written["lambda_1", "fixed", "mean"]["value"]) == pytest.approx(expected)
    assert float(written["lambda_1", "fixed", "1"]["value"]) == ours[1]["fixed"]["per_image_iou"]
    assert ("oracle", "tuned", "mean") not in written and ("scales", "tuned", "0") in written
    text = page.read_text()
    assert 'href="tiny.csv"' in text and "with every seed: <a" in text
    assert "47.37" in text and "scales 1, 2" in text and "project+crf2" in format_study("tiny", tiny)
    (forest,) = read_page(page, beside=("tiny.csv",)).all("svg")
    assert (
        forest["aria-label"].startswith("Tuned − control (lambda_0): lambda_1 ")
        and "oracle" not in forest["aria-label"]
    )
    (protocol,) = rows["lambda_1"]["protocols"]
    assert "training seed" not in protocol and "Means over runs that differ" not in text + format_study("tiny", tiny)
    assert text.count(protocol) == 1 and "<b>lambda_0, lambda_1, oracle</b>" in text  # once, with its rows

    headline = read_headline(Run(run_of(tiny, "lambda_1", 1)))
    list_rows.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(beside, "studies", lambda: {"tiny": Path("tiny.yaml")})
        patch.setattr(beside, "load_study", lambda name: tiny)
        assert find_known(headline).control.folder == run_of(tiny, "lambda_0", 1)
        assert find_known(headline).paper is None  # the row reads another kind of map
        assert find_known(replace(headline, source="project")).paper == pytest.approx(0.4737)
    list_rows.cache_clear()

    path = run_of(tiny, "lambda_1", 1) / "evaluation.json"
    report = json.loads(path.read_text())
    report["sources"]["project"]["fixed"]["threshold"] = 0.5
    path.write_text(json.dumps(report))
    of_seeds = [f"{protocol}, fixed threshold {at} (training seed {seed})" for at, seed in ((0.3, 0), (0.5, 1))]
    said = f"lambda_1: {' | '.join(of_seeds)}"
    for shown in (format_study("tiny", tiny), write_study_report("tiny", tiny).read_text()):
        assert f"Means over runs that differ in their protocol: {said}" in shown
    assert "other images than the control" not in format_study("tiny", tiny)
    report["dataset"]["fingerprint"] = "another"
    path.write_text(json.dumps(report))
    with pytest.raises(
        RunError, match="row 'lambda_1': its runs were evaluated on different images .*_seed1 on .* another"
    ):
        format_study("tiny", tiny)
    other = run_of(tiny, "lambda_1", 0) / "evaluation.json"
    other.write_text(json.dumps({**json.loads(other.read_text()), "dataset": report["dataset"]}))
    said = "Evaluated on other images than the control lambda_0, so not compared with it: lambda_1"
    for shown in (format_study("tiny", tiny), write_study_report("tiny", tiny).read_text()):
        assert said in shown
    assert {row["name"]: row["tuned"]["difference"] for row in tabulate_study(tiny)}["lambda_1"] is None

    shutil.rmtree(run_of(tiny, "lambda_1", 1))  # a copy of one seed is no other seed
    shutil.copytree(run_of(tiny, "lambda_1", 0), run_of(tiny, "lambda_1", 1))
    wrong = "lambda_1_seed1: was trained as tiny/lambda_1_seed0, train.seed 0; wanted tiny/lambda_1_seed1, train.seed 1"
    with pytest.raises(RunError, match=wrong):
        write_study_report("tiny", tiny)


def test_a_table_has_the_columns_of_which_a_row_says_something(in_checkout):
    nothing = {"mean": None, "deviation": None, "interval": None, "groups": None, "seeds": 0}
    nothing |= {"false_alarm_area": None, "difference": None}
    of_masks = {
        "paper": None,
        "note": "",
        "commits": ["abc"],
        "seeds": [0],
        "fixed": {**nothing, "mean": 0.5},
        "compared": "fixed",
    }
    of_masks |= {"tuned": nothing, "source": "segments@squash"}
    masks = load_study("voc_mini")  # all its rows are label maps
    classes = masks.model_copy(update={"rows": (*masks.rows, masks.rows[0].model_copy(update={"segments": None}))})

    def headings(study, row):
        return [column.heading for column in list_columns(study, [{"name": "a", **of_masks}, {"name": "b", **row}])]

    assert headings(masks, of_masks) == ["row", "scores", "seeds", "mIoU", "commit"]
    gap = {"mean": 0.5, "difference": (0.1, 0.0, 0.2)}
    with_gap = {**of_masks, "fixed": {**nothing, **gap}}
    assert headings(masks, with_gap) == ["row", "scores", "seeds", "mIoU", "− control", "commit"]
    tuned = {"tuned": {**nothing, **gap}, "paper": 0.4, "note": "n", "compared": "tuned"}
    assert headings(classes, {**of_masks, **tuned}) == [
        *("row", "scores", "paper", "seeds", "fixed threshold", "tuned threshold", "tuned − control", "note", "commit")
    ]
    alarms = {"fixed": {**nothing, "false_alarm_area": 0.0}}
    assert headings(classes, {**of_masks, **alarms})[3:] == ["fixed threshold", "false alarms", "commit"]


def test_a_run_is_evaluated_once_as_soon_as_its_rows_are_made(tiny):
    done = []
    run_study(tiny, execute=done.append)
    evaluated = [n for n, command in enumerate(done) if command[0] == "evaluate"]
    for at in evaluated:
        run = done[at][1]
        assert [n for n, command in enumerate(done) if command[1] == run and command[0] != "train"][-1] == at
    trained = [n for n, command in enumerate(done) if command[:2] == ["train", "distill.yaml"]]
    assert len(evaluated) == 4 and max(evaluated[:2]) < trained[2]  # lambda_0, before lambda_1 is trained


def test_differences_are_told_with_their_signs_and_figures_with_their_meaning(tiny):
    tuned = {"difference": (0.1, -0.02, 0.2), "groups": 8}
    assert format_gap({"tuned": tuned}, "tuned") == "+10.0 [-2.0, +20.0] of 8 groups"
    nothing = {"by_seed": {}, "false_alarm_area": None}
    rows = [
        {"name": "a", "fixed": {**nothing, "by_seed": {0: 0.9}}, "tuned": {**nothing, "by_seed": {1: -0.02, 0: 0.04}}},
        {"name": "b", "fixed": {**nothing, "by_seed": {0: 0.01}}, "tuned": nothing},
    ]
    said = "Difference to c, mean (seed by seed): a +1.0 (+4.0, -2.0); b +1.0 (+1.0)"
    assert name_by_seed(rows, "c") == said
    assert list(explain_figures(tiny, rows)) == ["per-image IoU", "oracle"]
    rows[1]["tuned"] = {**nothing, "false_alarm_area": 0.0}
    assert list(explain_figures(tiny, rows)) == ["per-image IoU", "oracle", "false-alarm area"]


def test_a_seed_that_the_page_would_not_show_is_refused(tiny):
    with pytest.raises(ConfigError, match="--seed 7: the study has the seeds 0, 1"):
        run_study(tiny, seeds=[0, 7], execute=print)
    with pytest.raises(ConfigError, match="--seed 7"):
        slurm_script("tiny", tiny, [], [7], [])


def submitted(script: str, folder: Path, *options: str) -> list[tuple[list[str], list[list[str]]]]:
    """What a script submits: of each sbatch its options, and the commands of its array's tasks."""
    for name, does in {
        "sbatch": 'n=$(ls -d job*.sh 2>/dev/null | wc -l); echo "$@" > "job$n.txt"; cat > "job$n.sh"; echo "7$n"',
        "wsss": 'printf "%s\\n" "$@"',
    }.items():
        (folder / name).write_text(f"#!/bin/bash\n{does}\n")
        (folder / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}

    def bash(*command: str, **more: str) -> str:
        return subprocess.run(
            ["bash", *command], cwd=folder, env={**environment, **more}, check=True, capture_output=True, text=True
        ).stdout

    (folder / "study.sh").write_text(script)
    bash("study.sh", *options)
    jobs = []
    for job in sorted(folder.glob("job*.sh")):
        given = job.with_suffix(".txt").read_text().split()
        last = next(int(one.partition("0-")[2]) for one in given if one.startswith("--array=0-"))
        runs = [bash(job.name, SLURM_ARRAY_TASK_ID=str(n)).splitlines() for n in range(last + 1)]
        jobs.append((given, runs))
    return jobs


def test_slurm_runs_the_rows_of_a_training_in_one_task_after_what_it_builds_on(tiny, tmp_path):
    script = slurm_script("tiny", tiny, [], [], ["train.lr=1e-3", "train.note='a b'"])
    (given, teachers), (given_next, students) = submitted(script, tmp_path, "--partition=gpu")
    start = ["study", "run", "tiny", "train.lr=1e-3", "train.note='a b'"]
    assert teachers == [[*start, "--training=teacher", "--seed=0"]]  # of one seed, which serves both
    assert len(students) == 4
    assert [*start, "--row=lambda_1", "--row=scales", "--row=oracle", "--row=crf", "--seed=1"] in students
    assert "--partition=gpu" in given and "--partition=gpu" in given_next
    assert "--dependency=afterok:70" in given_next and not any("afterok" in one for one in given)
    ran: list[list[str]] = []
    run_study(tiny, trainings=["teacher"], seeds=[0], execute=ran.append)
    assert [one[0] for one in ran] == ["train"] and "name=tiny/teacher_seed0" in ran[0]
    (tmp_path / "asked").mkdir()
    asked = submitted(slurm_script("tiny", tiny, ["crf"], [1], []), tmp_path / "asked")
    assert [tasks for _, tasks in asked] == [
        [["study", "run", "tiny", "--training=teacher", "--seed=1"]],
        [["study", "run", "tiny", "--row=crf", "--seed=1"]],
    ]
    with pytest.raises(ConfigError, match="there is no training 'x'; there are teacher, lambda_0"):
        run_study(tiny, trainings=["x"], execute=print)


def test_a_study_that_names_what_is_not_there_is_refused(in_tmp, monkeypatch):
    path = in_tmp / "wrong.yaml"
    path.write_text(TINY.replace("control: lambda_0", "control: lambda_9"))
    with pytest.raises(ConfigError, match="control: there is no row 'lambda_9'"):
        load_study(str(path))
    path.write_text(TINY.replace("name: lambda_1, paper", "name: lambda_0, paper"))
    with pytest.raises(ConfigError, match=r"two rows have the same name: \['lambda_0'\]"):
        load_study(str(path))
    path.write_text(TINY.replace("teacher: teacher,", "teacher: t,"))
    with pytest.raises(ConfigError, match="training 'lambda_0': there is no training 't'"):
        load_study(str(path))
    path.write_text(TINY.replace("run: lambda_0}", "run: lambda_7}"))
    with pytest.raises(ConfigError, match="row 'lambda_0': there is no training 'lambda_7'"):
        load_study(str(path))
    path.write_text(TINY.replace("figure: oracle_per_image_iou", "figure: per_image_oiu"))
    with pytest.raises(ConfigError, match="there is no metric 'per_image_oiu'; nearest are per_image_iou"):
        load_study(str(path))
    with pytest.raises(ConfigError, match="there is no study 'smoke'; there are .*smoke_table_4_10"):
        load_study("smoke")
    with pytest.raises(ConfigError, match="there is no row 'x'"):
        load_study(str(ROOT / "configs/studies/smoke_table_4_10.yaml")).row("x")


def test_what_is_not_done_is_no_figure(tiny):
    assert all(row["fixed"]["mean"] is None for row in tabulate_study(tiny))


def test_seeds_without_a_figure_are_told_and_images_without_truth_are_left_out(tiny, monkeypatch):
    cell = {"mean": 0.5, "seeds": 1, "deviation": None, "interval": None, "groups": None}
    assert format_cell({"seeds": [0, 1], "tuned": cell}, "tuned") == "50.0 (1 of 2 seeds)"
    assert format_cell({"seeds": [0], "tuned": cell}, "tuned") == "50.0"
    assert format_cell({"seeds": [0], "tuned": {**cell, "mean": None, "seeds": 0}}, "tuned") == DASH
    row = tiny.row("lambda_1")
    folder = run_of(tiny, row.run, 0)
    folder.mkdir(parents=True)
    lines = ["source,key,group,truth_area,iou_fixed", "project,a,g,0.5,0.25", "project,b,g,0.0,", "project,c,g,,"]
    (folder / "per_image.csv").write_text("\n".join(lines))
    assert read_ious(folder, row.source, "fixed") == {"a": ("g", 0.25)}
    of_masks = row.model_copy(update={"figure": "miou"})
    ends = [[None, None], [0.2, 0.4]]
    found = {n: {"sources": {row.source: {"fixed": {"miou_interval": ends[n]}}}} for n in (0, 1)}
    assert find_interval(tiny, of_masks, found, "fixed") == pytest.approx((0.2, 0.4))
    assert find_interval(tiny, of_masks, {0: found[0]}, "fixed") is None


def test_the_figures_of_rows_are_those_by_hand(tiny, monkeypatch):
    ious = {  # of images a and b in each of two seeds
        "lambda_0": ((0.2, 0.4), (0.4, 0.6)),
        "lambda_1": ((0.5, 0.7), (0.7, 0.7)),
    }
    for name, of_seeds in ious.items():
        row = tiny.row(name)
        for seed, (a, b) in enumerate(of_seeds):
            folder = run_of(tiny, row.run, seed)
            folder.mkdir(parents=True)
            lines = [f"{row.source},{key},{key},0.5,{iou}" for key, iou in (("a", a), ("b", b))]
            (folder / "per_image.csv").write_text("\n".join(["source,key,group,truth_area,iou_fixed", *lines]))
            fixed = {"per_image_iou": (a + b) / 2, "false_alarm_area": 0.1 + 0.2 * seed, "miou": 0.5}
            fixed |= {"miou_interval": [0.2 + 0.2 * seed, 0.4 + 0.1 * seed], "miou_groups": 7 - 2 * seed}
            source = {"protocol": "p", "fixed": fixed, "tuned": {"per_image_iou": 0.25} if seed else None}
            source |= {"oracle_per_image_iou": 0.8}
            (folder / "evaluation.json").write_text(json.dumps({"dataset": DATASET, "sources": {row.source: source}}))
    monkeypatch.setattr(figures, "require_own_run", lambda *arguments: None)
    monkeypatch.setattr(figures, "Run", lambda folder: SimpleNamespace(about={"git_commit": f"{folder.name[-1]:x<40}"}))
    control, row = tiny.row("lambda_0"), tiny.row("lambda_1")
    found = figures.tabulate_row(tiny, row, control)
    assert (
        found["protocols"] == ["p"]
        and found["paper"] == pytest.approx(0.4737)
        and found["commits"] == ["0xxxxxxxxx", "1xxxxxxxxx"]
    )
    fixed = found["fixed"]
    assert fixed["mean"] == pytest.approx(0.65) and fixed["deviation"] == pytest.approx(0.05 * 2**0.5)
    assert fixed["false_alarm_area"] == pytest.approx(0.2) and (fixed["seeds"], fixed["groups"]) == (2, 2)
    assert fixed["interval"] == pytest.approx((0.6, 0.7))  # of one image alone, each drawn twice
    assert fixed["difference"] == pytest.approx((0.25, 0.2, 0.3)) and not found["apart"]  # a: 0.6 - 0.3, b: 0.7 - 0.5
    tuned = {"mean": 0.25, "seeds": 1, "deviation": None, "false_alarm_area": None}
    tuned |= {"interval": None, "groups": None, "difference": None, "by_seed": {}}
    assert found["tuned"] == {**tuned, "of_seed": {1: {"value": 0.25, "at": None, "alarms": None, "classes": {}}}}
    assert figures.tabulate_row(tiny, control, control)["fixed"]["difference"] is None
    of_masks = figures.tabulate_row(tiny, row.model_copy(update={"figure": "miou"}), control)["fixed"]
    assert of_masks["interval"] == pytest.approx((0.3, 0.45)) and of_masks["groups"] == 5
    nothing = tiny.row("scales")  # which no run has evaluated
    apart = [figures.tabulate_row(tiny, *pair)["apart"] for pair in ((nothing, control), (row, nothing))]
    assert apart == [False, False] and figures.tabulate_row(tiny, nothing, control)["fixed"]["groups"] is None
    oracle = figures.tabulate_row(tiny, tiny.row("oracle"), None)
    assert (oracle["fixed"]["mean"], oracle["tuned"]["mean"]) == (0.8, None)
    of_masks = [one.model_copy(update={"figure": "miou"}) for one in (row, control)]
    assert figures.tabulate_row(tiny, *of_masks)["fixed"]["by_seed"] == {0: 0, 1: 0}
    hit = {control.name: 4, row.name: 9}
    for one, seed in ((one, seed) for one in (row, control) for seed in (0, 1)):
        sums_G3C = np.array([[[9, hit[one.name]], [9, 9], [9, hit[one.name]]]] * 2)
        np.savez(run_of(tiny, one.run, seed) / CLASS_SUMS, groups=["a", "b"], **{f"fixed {one.source}": sums_G3C})
    with_sums = figures.tabulate_row(tiny, *of_masks)
    assert with_sums["fixed"]["difference"] == pytest.approx((5 / 18, 5 / 18, 5 / 18))
    assert with_sums["tuned"]["difference"] is None
    (run_of(tiny, row.run, 1) / CLASS_SUMS).unlink()  # of an evaluation from before there were any
    assert figures.tabulate_row(tiny, *of_masks)["fixed"]["difference"] is None
    (run_of(tiny, control.run, 0) / "evaluation.json").rename("aside.json")
    assert figures.tabulate_row(tiny, *of_masks)["fixed"]["by_seed"] == {1: 0}
    Path("aside.json").rename(run_of(tiny, control.run, 0) / "evaluation.json")
    shutil.rmtree(run_of(tiny, row.run, 1))
    fewer = figures.tabulate_row(tiny, row, control)
    assert fewer["fixed"]["difference"] == pytest.approx((0.3, 0.3, 0.3)) and fewer["seeds"] == [0]  # of seed 0 alone


def test_a_map_at_its_tuned_threshold_is_compared_with_a_control_of_label_maps(tiny, monkeypatch):
    control = tiny.row("lambda_0").model_copy(update={"figure": "miou", "segments": Segments(name="s"), "kind": "seg"})
    row = tiny.row("lambda_1").model_copy(update={"figure": "miou"})
    for one, choice, hit in ((control, "fixed", 4), (row, "fixed", 2), (row, "tuned", 9)):
        for seed in (0, 1):
            folder = run_of(tiny, one.run, seed)
            folder.mkdir(parents=True, exist_ok=True)
            path, value = folder / "evaluation.json", (1 + hit / (18 - hit)) / 2
            source = {"protocol": "p", "fixed": {}, "tuned": None}
            source = json.loads(path.read_text())["sources"][one.source] if path.is_file() else source
            path.write_text(
                json.dumps({"dataset": DATASET, "sources": {one.source: {**source, choice: {"miou": value}}}})
            )
            sums_path, sums_G3C = folder / CLASS_SUMS, np.array([[[9, hit], [9, 9], [9, 9]]] * 2)
            held = dict(np.load(sums_path)) if sums_path.is_file() else {}
            np.savez(sums_path, **{**held, "groups": ["a", "b"], f"{choice} {one.source}": sums_G3C})
    monkeypatch.setattr(figures, "require_own_run", lambda *arguments: None)
    monkeypatch.setattr(figures, "Run", lambda folder: SimpleNamespace(about={"git_commit": "c"}))
    found, of_control = (figures.tabulate_row(tiny, one, control) for one in (row, control))
    gap = (1 - 4 / 14) / 2
    assert found["compared"] == "tuned" and found["tuned"]["difference"] == pytest.approx((gap, gap, gap))
    assert found["tuned"]["by_seed"] == pytest.approx({0: gap, 1: gap}) and found["fixed"]["difference"][0] < 0
    assert of_control["compared"] == "fixed" and of_control["tuned"]["difference"] is None
    of_masks = row.model_copy(update={"segments": Segments(name="s"), "run": "lambda_0", "name": "the same"})
    same = figures.tabulate_row(tiny, of_masks.model_copy(update={"kind": "seg"}), control)
    assert same["fixed"]["difference"] == (0, 0, 0) and same["tuned"]["difference"] is None
    headings = [column.heading for column in list_columns(tiny, [of_control, found])]
    assert "tuned − control" in headings and "− control" in [c.heading for c in list_columns(tiny, [of_control, same])]


def test_the_numbers_of_a_table_are_there_for_a_papers_own(tiny):
    nothing = {"mean": None, "deviation": None, "interval": None, "difference": None, "by_seed": {}, "of_seed": {}}
    nothing |= {"false_alarm_area": 0.2}
    head = {"source": "seg", "figure": "miou", "paper": 0.75, "tuned": nothing}
    of_seed = {
        0: {"value": 0.5, "at": 0.3, "alarms": 0.2, "classes": {"cat": 0.4, "dog": None}},
        1: {"value": 0.7, "at": 0.4, "alarms": None, "classes": {"cat": 0.6, "dog": 0.1}},
    }
    fixed = {**nothing, "mean": 0.6, "deviation": 0.14, "interval": (0.5, 0.7), "by_seed": {0: 0.1, 1: -0.3}}
    paired = {**fixed, "by_seed": {}, "difference": (0.2, 0.1, 0.3), "of_seed": {0: of_seed[0]}}
    rows = [{"name": "a", **head, "fixed": {**fixed, "of_seed": of_seed}}, {"name": "b", **head, "fixed": paired}]
    mean, first, second, of_b, _ = list_numbers([*rows, {"name": "not yet run", **head, "fixed": nothing}])
    assert list(mean) == [
        *("row", "source", "metric", "threshold", "seed", "at", "value", "deviation", "low", "high", "difference"),
        *("difference_low", "difference_high", "false_alarm_area", "paper", "IoU cat", "IoU dog"),
    ]
    assert [*mean.values()][:5] == ["a", "seg", "miou", "fixed", "mean"]
    assert [*mean.values()][5:] == [None, 0.6, 0.14, 0.5, 0.7, pytest.approx(-0.1), None, None, 0.2, 0.75, 0.5, 0.1]
    of_first = {**dict.fromkeys(mean), "row": "a", "source": "seg", "metric": "miou", "threshold": "fixed", "seed": 0}
    assert first == {**of_first, "at": 0.3, "value": 0.5, "difference": 0.1, "false_alarm_area": 0.2, "IoU cat": 0.4}
    assert (second["seed"], second["IoU dog"], second["difference"]) == (1, 0.1, -0.3)
    assert [of_b[name] for name in ("difference", "difference_low", "difference_high")] == [0.2, 0.1, 0.3]


def test_a_training_of_one_seed_counts_once(tiny, monkeypatch):
    row = tiny.row("lambda_1").model_copy(update={"run": "teacher"})
    source = {"protocol": "p", "fixed": {"per_image_iou": 0.5}, "tuned": None}
    evaluation = {"dataset": DATASET, "sources": {row.source: source}}
    monkeypatch.setattr(figures, "read_evaluation", lambda *arguments: evaluation)
    monkeypatch.setattr(figures, "require_own_run", lambda *arguments: None)
    monkeypatch.setattr(figures, "Run", lambda folder: SimpleNamespace(about={"git_commit": "c"}))
    found = figures.tabulate_row(tiny, row, None)
    assert found["seeds"] == [0] and found["fixed"]["mean"] == 0.5 and found["fixed"]["deviation"] is None
