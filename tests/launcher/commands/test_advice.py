"""What a message advises exists: its options, its commands, its keys of the config."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from itertools import chain

import pytest
import typer.main
from support.places import ROOT

from launcher.__main__ import app
from launcher.config.options import options_model
from launcher.config.whole import Config
from wsss.methods import METHODS
from wsss.models import MODELS

FOREIGN = {"--help", "--dereference", "--shm-size", "--nthreads", "--no-nanny", "--backend-store-uri"}
FOREIGN |= {"--array", "--dependency", "--kill-on-invalid-dep"}  # of sbatch
FOREIGN |= {"--no-build-isolation", "--install"}  # of pip and xcode-select
WRITERS = ["coco14", "images", "ijmond", "ijmond-frames", "join", "rise", "smoke", "smoke5k", "synthetic", "voc12"]
SPOKEN_IN = {  # the commands in which a file of shards speaks, where not all writers of shards can make it
    "shards/write.py": WRITERS,
    "shards/sources/clips.py": ["ijmond", "rise", "video-urls"],
    "shards/sources/coco_files.py": ["coco14"],
    "shards/sources/coco14.py": ["coco14"],
    "shards/sources/ijmond.py": ["ijmond", "ijmond-frames"],
    "shards/sources/rise.py": ["rise"],
    "shards/sources/smoke5k.py": ["smoke5k"],
    "shards/sources/images.py": ["images"],
    "shards/sources/label_names.py": ["images"],
    "shards/sources/labelled.py": ["smoke", "images"],
    "shards/sources/smoke_files.py": ["smoke", "images"],
    "shards/sources/smoke_images.py": ["smoke"],
    "shards/sources/voc12.py": ["voc12"],
    "shards/sources/voc_files.py": ["voc12"],
}
IN_ALL = {"shards/write.py", "shards/sources/smoke_files.py", "shards/sources/labelled.py"}  # else in one of them


@cache
def options_by_command() -> dict[str, set[str]]:
    """{command, as `shards voc12`: its options}."""
    found: dict[str, set[str]] = {}

    def walk(command, path):
        found[path] = {option for parameter in command.params for option in parameter.opts + parameter.secondary_opts}
        for name, below in getattr(command, "commands", {}).items():
            walk(below, f"{path} {name}".strip())

    walk(typer.main.get_command(app), "")
    return found


@cache
def sections() -> dict[str, set[str]]:
    """{section: its keys}; those of model and method are the options of any."""
    keys = {
        name: set(field.annotation.model_fields)
        for name, field in Config.model_fields.items()
        if hasattr(field.annotation, "model_fields")
    }
    for name, table in (("model", MODELS), ("partner", MODELS), ("method", METHODS)):
        keys[name] = {"name", *chain.from_iterable(options_model(one).model_fields for one in table.ours.values())}
    return keys


def texts(source: str) -> Iterator[tuple[int, str]]:
    """(line, text) of every string with more than one word that is no docstring; what is filled in reads X."""
    tree = ast.parse(source)
    silent = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    silent |= {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            text = "".join(str(part.value) if isinstance(part, ast.Constant) else "X" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in silent:
            text = node.value
        else:
            continue
        if " " in text and not text.startswith("#!"):
            yield node.lineno, text


def mistakes_in(path: str, source: str) -> list[str]:
    options, keys = options_by_command(), sections()
    found = []
    for line, text in texts(source):
        for option in re.findall(r"(?<![\w-])--[a-z][a-z0-9_-]+", text):
            speakers = (
                [options[f"shards {name}"] for name in SPOKEN_IN[path]] if path in SPOKEN_IN else options.values()
            )
            have = all if path in IN_ALL else any
            if option not in FOREIGN and not have(option in of_one for of_one in speakers):
                found.append(f"{path}:{line}: {option}")
        for words, rest in re.findall(r"`wsss ((?:[a-z0-9-]+ ?)+)([^`]*)", text):
            parts = words.split()
            command = next((" ".join(parts[:n]) for n in (2, 1) if " ".join(parts[:n]) in options), None)
            if command is None:
                found.append(f"{path}:{line}: wsss {words}")
            elif wrong := set(re.findall(r"--[a-z][a-z-]+", words + rest)) - options[command]:
                found.append(f"{path}:{line}: wsss {command} {wrong}")
        for section, key in re.findall(rf"(?<![\w./'-])({'|'.join(keys)})\.([a-z_]+)\b(?![(.])", text):
            if key not in keys[section] | {"py", "safetensors", "txt", "yaml"}:
                found.append(f"{path}:{line}: {section}.{key}")
    return found


@pytest.mark.parametrize("package", ["launcher", "shards", "wsss"])
def test_every_option_command_and_key_that_a_message_names_exists(package):
    paths = sorted((ROOT / package).rglob("*.py"))
    assert len(paths) > 15
    assert [m for path in paths for m in mistakes_in(str(path.relative_to(ROOT)), path.read_text())] == []


@pytest.mark.parametrize(
    ("path", "text", "wrong"),
    [
        ("shards/index.py", "allow it (--may-have-classes)", "--may-have-classes"),
        ("shards/write.py", "no sample; check --root", "--root"),
        ("shards/sources/rise.py", "see --category", "--category"),
        ("launcher/run/folder.py", "run `wsss evaluate X --split val` first", "wsss evaluate {'--split'}"),
        ("launcher/run/folder.py", "run `wsss judge` first", "wsss judge"),
        ("launcher/run/folder.py", "lower train.learning_rate", "train.learning_rate"),
        ("wsss/models/vit.py", "set model.backbone_name", "model.backbone_name"),
    ],
)
def test_planted_advice_is_found(path, text, wrong):
    assert mistakes_in(path, f"raise ValueError({text!r})") == [f"{path}:1: {wrong}"]
    assert mistakes_in(path, f"raise ValueError(f{text + ' {x}'!r})") == [f"{path}:1: {wrong}"]
