"""Nothing that comes as data is run: no unpickling of anything, no unsafe YAML, no shell."""

import ast
import pickle
from pathlib import Path

import pytest
import torch
from support.networks import tiny_vit
from support.places import ROOT

from launcher.errors import RunError
from launcher.run import checkpoint, steps
from wsss.methods.classify import Classify
from wsss.models.weights import load_weights

UNPICKLERS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
SAFE_LOADERS = {"SafeLoader", "CSafeLoader", "YamlLoader"}  # YamlLoader: launcher.config.file's, a SafeLoader


def dangers(source: str) -> list[str]:
    """The calls in a module that could run what they read, with their lines."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        owner, name = called(node.func)
        options = {keyword.arg: keyword.value for keyword in node.keywords}
        loader = options.get("Loader", node.args[1] if len(node.args) > 1 else None)
        if (
            (owner == "torch" and name == "load" and not is_true(options.get("weights_only")))
            or (owner in UNPICKLERS and name in ("load", "loads", "Unpickler", "open"))
            or (
                owner == "yaml" and name in ("unsafe_load", "unsafe_load_all", "full_load", "full_load_all", "load_all")
            )
            or (owner == "yaml" and name == "load" and called(loader)[1] not in SAFE_LOADERS)
            or ("shell" in options and not is_false(options["shell"]))
            or (owner == "os" and name in ("system", "popen"))
            or (owner == "subprocess" and name in ("getoutput", "getstatusoutput"))
            or ("allow_pickle" in options and not is_false(options["allow_pickle"]))
            or (owner == "" and name in ("eval", "exec"))
        ):
            found.append(f"line {node.lineno}: {ast.unparse(node)}")
    return found


def called(node: ast.AST | None) -> tuple[str, str]:
    """('torch', 'load') of torch.load, ('', 'eval') of eval."""
    if isinstance(node, ast.Attribute):
        return (node.value.id if isinstance(node.value, ast.Name) else "?", node.attr)
    return ("", node.id) if isinstance(node, ast.Name) else ("?", "?")


def is_true(node: ast.AST | None) -> bool:
    return isinstance(node, ast.Constant) and node.value is True


def is_false(node: ast.AST | None) -> bool:
    return isinstance(node, ast.Constant) and node.value is False


@pytest.mark.parametrize("room", ["launcher", "shards", "wsss"])
def test_no_module_runs_what_it_reads(room):
    files = sorted((ROOT / room).rglob("*.py"))
    assert files
    found = {str(path.relative_to(ROOT)): dangers(path.read_text()) for path in files}
    assert not {path: calls for path, calls in found.items() if calls}


@pytest.mark.parametrize("room", ["launcher", "shards", "wsss"])
def test_no_module_imports_a_loader_under_another_name(room):
    """So that `torch.load` is always written `torch.load`, where the test above sees it."""
    hidden = {("torch", "load"), ("subprocess", "getoutput"), ("os", "system"), ("yaml", "load")}
    for path in sorted((ROOT / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                names = {(node.module, alias.name) for alias in node.names}
                assert not names & hidden and node.module not in UNPICKLERS, path
            if isinstance(node, ast.Import):
                renamed = {alias.name for alias in node.names if alias.asname}
                assert not renamed & {"torch", "yaml", "os", "subprocess", *UNPICKLERS}, path


@pytest.mark.parametrize(
    "line",
    [
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "pickle.load(file)",
        "pickle.loads(data)",
        "yaml.load(text)",
        "yaml.load(text, yaml.UnsafeLoader)",
        "yaml.load(text, Loader=yaml.Loader)",
        "subprocess.run(command, shell=True)",
        "np.load(path, allow_pickle=True)",
        "os.system(command)",
        "eval(text)",
    ],
)
def test_a_planted_danger_is_found(line):
    assert dangers(f"def f():\n    return {line}")


def test_what_is_safe_is_let_through():
    lines = "torch.load(p, weights_only=True); yaml.load(t, YamlLoader); np.load(p, allow_pickle=False)"
    assert not dangers(lines)


class Bomb:
    """Whoever unpickles it writes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return (Path.write_text, (self.mark, "exploded"))


@pytest.mark.parametrize("raw", [True, False])
def test_a_pickle_that_runs_code_is_refused_as_optimizer_state(tmp_path, raw):
    method = Classify(tiny_vit())
    optimizer = torch.optim.AdamW(method.parameters())
    folder = checkpoint.save(tmp_path / "run", 1, method, optimizer, OneProcess(), keep=1)
    mark = tmp_path / "mark"
    write_bomb(folder / steps.OPTIMIZER, mark, raw)
    with pytest.raises(RunError, match=r"optimizer.pt: is not an optimizer state of tensors and numbers"):
        checkpoint.load(folder, method, optimizer)
    assert not mark.exists()


@pytest.mark.parametrize("raw", [True, False])
def test_a_pickle_that_runs_code_is_refused_as_model(tmp_path, raw):
    method = Classify(tiny_vit())
    folder = checkpoint.save(tmp_path / "run", 1, method, torch.optim.AdamW(method.parameters()), OneProcess(), keep=1)
    mark = tmp_path / "mark"
    write_bomb(folder / steps.MODEL, mark, raw)
    with pytest.raises(RunError, match=r"model.safetensors: is not a safetensors file"):
        checkpoint.load_method(method, folder)
    assert not mark.exists()


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_a_pickle_that_runs_code_is_refused_as_initial_weights(tmp_path, raw, name):
    mark = tmp_path / "mark"
    write_bomb(tmp_path / name, mark, raw)
    with pytest.raises(ValueError, match="not a weights file that can be loaded safely"):
        load_weights(tiny_vit().backbone, tmp_path / name, head=())
    assert not mark.exists()


def write_bomb(path: Path, mark: Path, raw: bool) -> None:
    """A plain pickle, or one in torch's own format."""
    if raw:
        path.write_bytes(pickle.dumps({"state": Bomb(mark)}))
    else:
        torch.save({"state": Bomb(mark)}, path)


class OneProcess:
    is_main_process = True
    num_processes = 1
