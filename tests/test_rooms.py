"""One direction: launcher imports wsss and shards, which know nobody; in each, a room imports only rooms below it."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.places import ROOT

MAY_IMPORT = {"launcher": {"launcher", "wsss", "shards"}, "wsss": {"wsss"}, "shards": {"shards"}}
# From the roof down; what stands in one line stands side by side, and neither imports the other.
FLOORS = {
    "launcher": [
        "__main__ train",
        "commands",
        "plan",
        "bench studies doctor",
        "training",
        "predict",
        "evaluation",
        "jobs",
        "run",
        "processes",
        "tracking config",
        "files progress errors",
        "interrupts streams",
    ],
    "wsss": [
        "methods",
        "refine losses",
        "maps",
        "models",
        "photometric optim metrics gaussian_sum",
        "gaussian_triton tensors extras registry",
    ],
    "shards": [
        "sources batches",
        "write masks",
        "members",
        "digests",
        "folder verify unfinished",
        "index_shard prefetch",
        "cache index sample_files",
        "places",
        "remote",
        "tars image_bytes",
        "schema",
        "pixels files",
    ],
}


def modules_imported(source: str) -> Iterator[tuple[int, str]]:
    """(line, module) of every import, wherever in a file; `from x import y` gives x.y, which may be a name in x."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def imports_against_the_direction(path: str, source: str) -> list[str]:
    """What a file of the tree, such as launcher/jobs/infer.py, imports from rooms that do not stand below its own."""
    package, room, *_ = Path(path).with_suffix("").parts
    floor_of = {name: floor for floor, names in enumerate(FLOORS[package]) for name in names.split()}
    found = []
    for line, module in modules_imported(source):
        imported, *parts = module.split(".")
        if imported not in MAY_IMPORT:
            continue
        crossed = imported not in MAY_IMPORT[package]
        climbed = imported == package and room != parts[0] and floor_of[parts[0]] <= floor_of[room]
        if crossed or climbed:
            found.append(f"{path}:{line}: {room} imports {module}")
    return found


def files_of(package: str) -> dict[str, str]:
    """{path from the root of the tree: source}, the packages' own __init__ left out."""
    paths = sorted((ROOT / package).rglob("*.py"))
    named = {str(path.relative_to(ROOT)): path.read_text() for path in paths}
    return {path: source for path, source in named.items() if path != f"{package}/__init__.py"}


@pytest.mark.parametrize("package", FLOORS)
def test_rooms_import_only_rooms_below_them(package):
    files = files_of(package)
    assert len(files) > 15
    assert [line for path, source in files.items() for line in imports_against_the_direction(path, source)] == []


@pytest.mark.parametrize("package", FLOORS)
def test_a_packages_own_init_is_of_no_room_and_imports_no_other_package(package):
    path = ROOT / package / "__init__.py"
    found = {module.split(".")[0] for _, module in modules_imported(path.read_text())}
    assert found & set(MAY_IMPORT) <= {*MAY_IMPORT[package], package}


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("wsss/maps/cam.py", "import launcher.train"),
        ("wsss/maps/cam.py", "from shards.index import Index"),
        ("shards/index.py", "def f():\n    from launcher import jobs"),
        ("launcher/run/build.py", "from launcher.training.preflight import preflight"),
        ("launcher/bench/crf.py", "from launcher.studies import run"),
        ("launcher/jobs/infer.py", "from launcher import training"),
        ("wsss/losses/align.py", "from wsss.refine import crf"),
    ],
)
def test_a_planted_import_is_found(path, line):
    assert len(imports_against_the_direction(path, line)) == 1


def test_every_room_is_in_the_order_and_the_order_has_no_other():
    for package, floors in FLOORS.items():
        rooms = {Path(path).with_suffix("").parts[1] for path in files_of(package)}
        assert rooms == {name for names in floors for name in names.split()}


def import_graph(files: dict[str, str]) -> dict[str, set[str]]:
    """{module: modules of the same files that it imports}."""
    names = {path.removesuffix(".py").removesuffix("/__init__").replace("/", "."): path for path in files}
    graph: dict[str, set[str]] = {}
    for name, path in names.items():
        found = {module for _, module in modules_imported(files[path])}
        graph[name] = {m if m in names else m.rpartition(".")[0] for m in found} & set(names) - {name}
    return graph


def circle_in(graph: dict[str, set[str]]) -> set[str]:
    """The modules that are left when those that import nothing of the rest are taken away, again and again."""
    left = dict(graph)
    while done := {name for name, imported in left.items() if not imported & set(left)}:
        left = {name: imported for name, imported in left.items() if name not in done}
    return set(left)


@pytest.mark.parametrize("package", FLOORS)
def test_no_files_import_each_other_in_a_circle(package):
    assert circle_in(import_graph(files_of(package))) == set()


def test_a_planted_circle_is_found():
    files = {"launcher/a.py": "from launcher.b import f", "launcher/b.py": "def f():\n    from launcher import a"}
    assert circle_in(import_graph({**files, "launcher/c.py": "import os"})) == {"launcher.a", "launcher.b"}
