"""What the pages say exists: decisions that the code cites, commands, configs and files that the pages name."""

import re
from collections import Counter

from support.places import ROOT

DECISION = re.compile(r"\bD-\d{2}\b")
PARAGRAPH = re.compile(r"^\*\*(D-\d{2}) .+\.\*\* ", re.MULTILINE)
ROW = re.compile(r"^\| (D-\d{2}) \| .+ \|$", re.MULTILINE)
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
