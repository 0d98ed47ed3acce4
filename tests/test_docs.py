"""What the pages say exists: decisions that the code cites, commands, configs and files that the pages name."""

import ast
import re
import shlex
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from support.networks import tiny_toco, two_view_batch
from support.places import ROOT
from support.toys import SMALL

from launcher.__main__ import app
from wsss.methods.msee import MSEE

UsageError: Any = typer.BadParameter.__base__  # of the click that this Typer uses, which may be its own

DECISION = re.compile(r"\bD-\d{2,3}\b")
PARAGRAPH = re.compile(r"^\*\*(D-\d{2,3}) .+\.\*\* ", re.MULTILINE)
ROW = re.compile(r"^\| (D-\d{2,3}) \| .+ \|$", re.MULTILINE)
SPECIFICATION = re.compile(r"\bspec\b(?!:)|\bspecification [A-Z]\d", re.IGNORECASE)  # a Kubernetes file has a `spec:`
CITING = ("launcher", "wsss", "shards", "tests", "configs", "docs")


def texts(*folders: str) -> dict[str, str]:
    """{path from the root: text} of code, configs and pages in these folders, and of the pages at the root."""
    patterns = [f"{folder}/**/*.{ending}" for folder in folders for ending in ("py", "md", "yaml")]
    inside = [path for pattern in patterns for path in ROOT.glob(pattern)]
    return {str(path.relative_to(ROOT)): path.read_text() for path in sorted([*inside, *ROOT.glob("*.md")])}


def decisions() -> str:
    return (ROOT / "docs" / "decisions.md").read_text()


def test_every_decision_has_one_number_and_stands_in_the_index():
    numbers = PARAGRAPH.findall(decisions())
    assert numbers == [f"D-{number:02}" for number in range(1, len(numbers) + 1)]
    assert ROW.findall(decisions()) == numbers


def test_decisions_are_short_lines():
    assert [line for line in decisions().splitlines() if len(line) > 140] == []


def test_every_decision_that_is_cited_exists():
    known = set(PARAGRAPH.findall(decisions()))
    cited = {path: set(DECISION.findall(text)) for path, text in texts(*CITING).items()}
    assert sum(map(len, cited.values())) > 60
    assert {path: missing for path, ids in cited.items() if (missing := ids - known)} == {}


def test_nothing_cites_a_specification_that_is_not_in_the_tree():
    found = Counter(path for path, text in texts(*CITING).items() if SPECIFICATION.search(text))
    found.pop("tests/test_docs.py", None)
    assert dict(found) == {}


README = ROOT / "README.md"
# Not docs/experiments.md: it names commands and files of the commits at which its figures were measured.
PAGES = sorted(
    {
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/*.md"),
        *ROOT.glob("configs/*/data.md"),
        ROOT / "tests" / "golden" / "README.md",
    }
    - {ROOT / "docs" / "experiments.md"}
)
BLOCK = re.compile(r"```(\w*)\n(.*?)```", re.DOTALL)
SPAN = re.compile(r"`(wsss [^`]+)`")
LINK = re.compile(r"\]\((?!\w+:)([^)#\s]+)(?:#[\w-]+)?\)")
PLACE = re.compile(r"(?<![\w/.~-])(?:configs|tests|docs|launcher|wsss|shards)/[\w./{},-]*\w/?")


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of a page in a language."""
    return [body for of_language, body in BLOCK.findall(page) if of_language == language]


def command_lines(page: str) -> Iterator[list[str]]:
    """The arguments of every `wsss` line in the fenced blocks of a page, without what follows in the shell."""
    for block in blocks(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            for part in line.split("&&"):
                if part.strip().startswith("wsss "):
                    words = shlex.split(part, comments=True)
                    yield words[1 : words.index(">") if ">" in words else None]


def command_of(words: list[str]) -> tuple[Any, list[str]]:
    """The command that these words begin with, or the group where they do not say which; and the words after it."""
    command: Any = typer.main.get_command(app)
    while words and re.match("[a-z]", words[0]) and hasattr(command, "commands"):
        if words[0] not in command.commands:
            raise UsageError(f"no such command: {words[0]}")
        command, words = command.commands[words[0]], words[1:]
    return command, words


def parse(arguments: list[str]) -> None:
    """Read a line as the `wsss` command would, without running it.

    Raises:
        UsageError: no such command or option, or one is missing.
    """
    command, words = command_of(arguments)
    command.make_context("wsss", words)


def names_a_command(span: str) -> bool:
    """Whether a `wsss ...` in running text, such as `wsss study run NAME`, is a command and has the named options."""
    try:
        command, words = command_of(re.sub(r"[\[\]]", "", span).split()[1:])
    except UsageError:
        return False
    options = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    return {word for word in words if word.startswith("--")} <= options | {"--help"}


def expanded(place: str) -> list[str]:
    """configs/{a,b}.yaml -> configs/a.yaml, configs/b.yaml"""
    braces = re.search(r"\{([^}]*)\}", place)
    if not braces:
        return [place]
    return [one for choice in braces[1].split(",") for one in expanded(place.replace(braces[0], choice, 1))]


def id_of(page):
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=id_of)
def test_every_command_of_a_page_exists_with_its_options(page):
    for arguments in command_lines(page.read_text()):
        try:
            parse(arguments)
        except UsageError as error:
            pytest.fail(f"{id_of(page)}: wsss {shlex.join(arguments)}: {error.format_message()}")
    assert [span for span in SPAN.findall(page.read_text()) if not names_a_command(span)] == []


def test_there_are_commands_to_check_and_a_wrong_one_is_found():
    assert sum(len(list(command_lines(page.read_text()))) for page in PAGES) > 50
    for wrong in ("wsss trian configs/demo/teacher.yaml", "wsss train", "wsss infer runs/demo --nmae x"):
        with pytest.raises(UsageError):
            parse(shlex.split(wrong)[1:])
    assert not names_a_command("wsss study rnu NAME")
    assert not names_a_command("wsss replay RUN --stpe N")


@pytest.mark.parametrize("page", PAGES, ids=id_of)
def test_every_place_that_a_page_names_is_there(page):
    places = [one for named in PLACE.findall(page.read_text()) for one in expanded(named)]
    assert [place for place in places if not (ROOT / place).exists()] == []
    assert [link for link in LINK.findall(page.read_text()) if not (page.parent / link).exists()] == []


def test_the_readme_is_short():
    assert len(README.read_text().split()) < 1500


def test_the_python_of_the_readme_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)).save("frame.jpg")
    (code,) = blocks(README.read_text(), "python")
    names = {}
    exec(code, names)
    assert names["mask_HW"].shape == (224, 224)
    assert names["mask_HW"].dtype == bool
    assert 0 <= names["cam_1HW"].min() < names["cam_1HW"].max() <= 1


def test_the_python_of_the_page_on_it_runs(capsys):
    names: dict = {}
    for code in blocks((ROOT / "docs" / "library.md").read_text(), "python"):
        exec(code, names)
    assert names["loss"].isfinite() and all(p.grad is not None for p in names["decoder"].parameters())
    assert names["along_colours"].shape == (2, 4, 64, 64) and names["walked"].shape == (2, 4, 8, 8)
    assert names["confusion"].sum() == (names["label"] != 255).sum() and names["mask"].shape == (64, 64)
    said, _ = capsys.readouterr().out.split("\n(")
    assert 0 <= float(said.split()[0]) <= 1


def test_the_loss_of_contributing_trains_on_top_of_msee():
    names: dict = {}
    (code,) = blocks((ROOT / "CONTRIBUTING.md").read_text(), "python")
    exec(code, names)
    options = {**SMALL, "crop_px": 24, "seg_from": 0}
    without = MSEE(tiny_toco(3), **options)
    method = names["Level"](without.student, level_from=1, **options)
    method.load_state_dict(without.state_dict())
    before, after, plain = (one(two_view_batch(), step) for one, step in ((method, 0), (method, 1), (without, 1)))
    assert "level_loss" not in before and 0 < after["level_share"] <= 1
    torch.testing.assert_close(after["loss"], plain["loss"] + 0.1 * after["level_loss"])
    after["level_loss"].backward()
    assert method.student.backbone.patch_embed.proj.weight.grad.any()


LISTED = re.compile(r"^((?:launcher|wsss|shards)/\S+\.py)  +\S", re.MULTILINE)


def holds_code(path: Path) -> bool:
    """Whether there is more in a file than a sentence about its folder."""
    return len(ast.parse(path.read_text()).body) > 1


def test_every_file_of_the_packages_stands_once_in_the_list_of_the_house():
    listed = Counter(LISTED.findall((ROOT / "docs" / "house.md").read_text()))
    files = [path for package in ("launcher", "wsss", "shards") for path in (ROOT / package).rglob("*.py")]
    there = {str(path.relative_to(ROOT)) for path in files if path.name != "__init__.py" or holds_code(path)}
    assert sorted(there - set(listed)) == [], "files that docs/house.md does not list: add a line for each"
    assert sorted(set(listed) - there) == [], "docs/house.md lists files that are not there"
    assert [path for path, times in listed.items() if times > 1] == []


def test_the_order_of_the_rooms_names_each_of_them():
    page = (ROOT / "docs" / "house.md").read_text()
    (order,) = [block for block in blocks(page, "") if block.startswith("launcher   ")]
    lines = re.sub(r"\n +> ", " > ", order).splitlines()
    named = {words[0]: {*words[1:]} for words in (re.split(r"[ ,>]+", line) for line in lines)}
    for package in ("launcher", "wsss", "shards"):
        there = {path.stem for path in (ROOT / package).iterdir() if path.name != "py.typed"}
        assert named[package] == there - {"__init__", "__pycache__"}


RUNS = sorted(
    {*ROOT.glob("configs/*/*.yaml")} - {*ROOT.glob("configs/accelerate/*"), *ROOT.glob("configs/kubernetes/*")}
)


def test_every_config_begins_with_paper_command_and_cost():
    heads = {id_of(path): re.split(r"^(?:name|title):", path.read_text(), flags=re.MULTILINE)[0] for path in RUNS}
    assert len(heads) > 40
    wanted = [re.compile(rf"^# {word}: +\S", re.MULTILINE) for word in ("Paper", "Run", "Cost")]
    assert [path for path, head in heads.items() if not all(line.search(head) for line in wanted)] == []
    named = [(path, span) for path, head in heads.items() for span in re.findall(r"wsss [a-z][^;,(\n]*", head)]
    assert [(path, span) for path, span in named if not names_a_command(span)] == []
