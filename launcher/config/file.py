"""YAML file + overrides `section.key=value` -> Config, and back."""

import copy
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from launcher.config.options import Named, explain_problem, options_of
from launcher.config.whole import Config
from launcher.errors import ConfigError
from launcher.files import find_shipped, list_shipped


class YamlLoader(yaml.SafeLoader):
    """YAML 1.2: 1e-4 is a float and `no` is text (in YAML 1.1: text and false), and a key that occurs twice is an error
    (PyYAML takes the last one)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        known = {key.value: key for key in reversed(keys)}
        for key in keys:
            if known[key.value] is not key:
                said = f"the key '{key.value}' occurs twice; remove one"
                raise yaml.constructor.ConstructorError(None, None, said, key.start_mark)
        return super().construct_mapping(node, deep)


YamlLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
YamlLoader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"true|True|TRUE|false|False|FALSE"), list("tTfF")
)
YamlLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\.\d+|\d+(\.\d*)?)[eE][-+]?\d+"), list("-+.0123456789")
)


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, apply `section.key=value` overrides and check everything.

    Args:
        path: of the file, or the name of a shipped one, such as demo/teacher (see find_shipped).

    Raises:
        ConfigError: file missing, not YAML, unknown key (with the nearest valid one), wrong type or value.
    """
    path = find_shipped(path)
    return check_content(read_content(path), path, overrides)


def read_content(path: Path) -> dict[str, Any]:
    """The sections of a YAML file, as written.

    Raises:
        ConfigError: file missing, not YAML, or without sections.
    """
    if not path.is_file():
        raise ConfigError(
            f"{path}: config file is missing; `wsss init DIR` writes one, and these ship: {', '.join(shipped_runs())}"
        )
    try:
        content = yaml.load(path.read_text(), YamlLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not YAML: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: holds {type(content).__name__}; wanted sections such as data: and train:")
    return content


def shipped_runs() -> list[str]:
    """Names of the shipped configs of runs."""
    return [name for name in list_shipped("*/*") if name.split("/")[0] not in ("accelerate", "kubernetes", "studies")]


def check_content(content: dict[str, Any], path: Path, overrides: Sequence[str]) -> Config:
    """The Config of a file's sections with overrides, all options written out.

    Raises:
        ConfigError: an unknown key (with the nearest valid one), a wrong type or value; names the file, and the
            overrides that cause the problem.
    """
    config, problems = validate(content, overrides)
    if config is None:
        lines = (f"{blame(problem, content, overrides)}{path}: {problem}" for problem in problems)
        raise ConfigError("\n".join(lines))
    return resolve(config)


def validate(content: Mapping[str, Any], overrides: Sequence[str]) -> tuple[Config | None, list[str]]:
    """(Config, []) of a file's sections with overrides, or (None, problems)."""
    changed = copy.deepcopy(dict(content))
    for override in overrides:
        apply_override(changed, override)
    try:
        return Config.model_validate_json(json.dumps(changed)), []
    except ValidationError as error:
        return None, [explain_problem(problem, Config) for problem in error.errors()]
    except TypeError as error:  # a date or a binary: YAML has types that no option has
        return None, [f"{error}; put quotes around it"]


def blame(problem: str, content: Mapping[str, Any], overrides: Sequence[str]) -> str:
    """The overrides that cause a problem, in words: those without which it is gone; "" if the file itself has it."""
    if problem in validate(content, ())[1]:
        return ""
    others = [[*overrides[:n], *overrides[n + 1 :]] for n in range(len(overrides))]
    needed = [own for own, rest in zip(overrides, others, strict=True) if not still(problem, content, rest)]
    named = needed or overrides
    words = ", ".join(f"'{own}'" for own in named)
    return f"override{'s' if len(named) > 1 else ''} {words} of "


def still(problem: str, content: Mapping[str, Any], overrides: Sequence[str]) -> bool:
    """Whether this problem occurs with these overrides, one of which may need another that is left out."""
    try:
        return problem in validate(content, overrides)[1]
    except ConfigError:
        return False


def apply_override(content: dict[str, Any], override: str) -> None:
    """Set one dotted key in place.

    Raises:
        ConfigError: not of the form section.key=value, or a part of the path is not a section.
    """
    dotted, equals, text = override.partition("=")
    parts = dotted.split(".")
    if not equals or not all(parts):
        raise ConfigError(f"override '{override}': wanted section.key=value, for example train.steps=100")
    try:
        value = yaml.load(text, YamlLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"override '{override}': the value is not YAML: {error}") from error
    place: Any = content
    for part in parts[:-1]:
        if isinstance(place, dict) and not part.isdigit():
            place = place.setdefault(part, {})
        else:
            place = place[index_of(part, place, override)]
    if isinstance(place, dict) and not parts[-1].isdigit():
        place[parts[-1]] = value
    else:
        place[index_of(parts[-1], place, override)] = value


def index_of(part: str, place: Any, override: str) -> int:
    """A part of an override's path as an index of a list in the file."""
    if isinstance(place, list) and part.isdigit() and int(part) < len(place):
        return int(part)
    raise ConfigError(
        f"override '{override}': the file has no list entry or section '{part}' there; give the whole list"
    )


def resolve(config: Config) -> Config:
    """Write out the defaults of the chosen model, method, refiners and metrics, so the saved config is complete."""
    from wsss.methods import METHODS
    from wsss.metrics.base import METRICS
    from wsss.models import MODELS
    from wsss.refine import REFINERS

    def full(named: Named, table: Mapping[str, Callable]) -> Named:
        return Named(name=named.name, **options_of(named, table))

    chain = tuple(full(refiner, REFINERS) for refiner in config.refine.chain)
    metrics = tuple(full(metric, METRICS) for metric in config.evaluate.metrics)
    return config.model_copy(
        update={
            "model": full(config.model, MODELS),
            "method": full(config.method, METHODS),
            "partner": full(config.partner, MODELS) if config.partner else None,
            "refine": config.refine.model_copy(update={"chain": chain}),
            "evaluate": config.evaluate.model_copy(update={"metrics": metrics}),
        }
    )


def to_yaml(config: Config) -> str:
    """The config as YAML, from which load_config reads the same config."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, width=120)


def flatten(content: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts and lists -> {dotted key: value}."""
    if isinstance(content, Mapping):
        items: Any = content.items()
    elif isinstance(content, list | tuple) and any(isinstance(v, Mapping) for v in content):
        items = enumerate(content)
    else:
        return {prefix: content}
    flat: dict[str, Any] = {}
    for key, value in items:
        flat.update(flatten(value, f"{prefix}.{key}" if prefix else str(key)))
    return flat
