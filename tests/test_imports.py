"""Three rooms and one direction: launcher imports wsss and shards; these import neither each other nor launcher."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FORBIDDEN = {"wsss": {"launcher", "shards"}, "shards": {"launcher", "wsss"}}


def imported_rooms(source: str) -> set[str]:
    """First parts of all names that a module imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("room", FORBIDDEN)
def test_no_room_imports_against_the_direction(room):
    files = sorted((ROOT / room).rglob("*.py"))
    assert files
    crossed = {str(path): imported_rooms(path.read_text()) & FORBIDDEN[room] for path in files}
    assert not {path: rooms for path, rooms in crossed.items() if rooms}


@pytest.mark.parametrize(
    "line", ["import launcher.train", "from shards.index import Index", "def f():\n    from launcher import jobs"]
)
def test_a_planted_import_is_found(line):
    assert imported_rooms(line) & FORBIDDEN["wsss"]
