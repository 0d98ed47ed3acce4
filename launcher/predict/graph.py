"""A network as one graph, image -> class scores and maps, that needs no Python: by torch.export, or as ONNX.

Shapes: B images, K classes, h x w grid of the maps, H x W pixels.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from launcher.errors import RunError
from launcher.predict.alone import Reader, further_maps
from launcher.predict.facts import Facts, read_facts
from wsss.extras import MissingPackage, needs
from wsss.methods.base import Method
from wsss.models.base import Outputs

FACTS = "wsss.json"  # name of the metadata in a .pt2
LEAST = 2  # cells per side; torch.export takes a side of one for a constant
TOLERANCE = 1e-3  # of the largest value of an output, by which a graph may differ from the network
SUFFIXES = {"torch": ".pt2", "onnx": ".onnx"}


class Graph(nn.Module):
    """The function that is exported.

    (B, 3, H, W) RGB in [0, 1], sides multiples of the stride -> (B, K) class scores before the sigmoid, and a raw map
    (B, K, h, w) of each kind, float32. Scales, mirror images and windows are not part of it.
    """

    def __init__(self, method: Method, kinds: Sequence[str]) -> None:
        super().__init__()
        further = further_maps(method)
        self.reader, self.kinds = Reader(method.student, further), tuple(kinds)
        self.maps_of = self.reader.maps_of if further else method.maps_of

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        out = self.reader.student(image)
        maps = self.maps_of(out)
        return (out.cls_logits_BK.float(), *(maps[kind].float() for kind in self.kinds))


def capture(graph: Graph, place: str) -> ExportedProgram:
    """The graph for any batch and any size of at least LEAST cells; raises RunError if the network cannot be one."""
    student = graph.reader.student
    if why := getattr(student, "no_graph", ""):
        raise RunError(f"{place}: cannot be written as one graph for all image sizes: {why}; take --format safetensors")
    stride = student.stride
    rows, columns = Dim("rows", min=LEAST), Dim("columns", min=LEAST)
    image = torch.zeros(2, 3, 3 * stride, 5 * stride)
    sizes = {"image": {0: Dim("batch"), 2: stride * rows, 3: stride * columns}}
    with telling(graph, place), torch.no_grad():
        return torch.export.export(graph.eval(), (image,), dynamic_shapes=sizes)


@contextmanager
def telling(graph: Graph, place: str | Path) -> Iterator[None]:
    """Turn any error in tracing, writing or running a graph into a RunError that says what to do: torch.export, ONNX
    and onnxruntime raise many types."""
    try:
        yield
    except (RunError, MissingPackage, OSError):
        raise
    except Exception as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise RunError(
            f"{place}: {type(graph.reader.student).__name__} cannot be written as one graph for all image sizes "
            f"({why}); take --format safetensors"
        ) from error


def write(graph: Graph, program: ExportedProgram, path: Path, facts: dict[str, str], *, side: int, out: Path) -> float:
    """Write a graph to `path` in the format of the ending of `out`, and compare it, see check_parity."""
    named = path.with_name(path.name + out.suffix)  # both writers need the ending
    try:
        with telling(graph, out):
            if out.suffix == SUFFIXES["torch"]:
                save_torch(program, named, facts)
            else:
                save_onnx(program, named, facts, graph.kinds)
        worst = check_parity(graph, named, side, out)
        named.replace(path)
    finally:
        named.unlink(missing_ok=True)
    return worst


def save_torch(program: ExportedProgram, path: Path, facts: dict[str, str]) -> None:
    """Write a .pt2."""
    torch.export.save(program, path, extra_files={FACTS: json.dumps(facts)})


def save_onnx(program: ExportedProgram, path: Path, facts: dict[str, str], kinds: Sequence[str]) -> None:
    """Write an .onnx. Raises MissingPackage without the extra `onnx`."""
    with needs("onnx"):
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    written = torch.onnx.export(
        program, dynamo=True, verbose=False, input_names=["image"], output_names=["logits", *kinds]
    )
    assert written is not None
    model = written.model
    parts: list[Any] = [model.graph, *model.functions.values()]
    for part in parts:
        part.metadata_props.clear()
        for node in part.all_nodes():  # torch's notes hold unordered sets and paths of this machine
            node.metadata_props.clear()
    model.metadata_props.clear()
    model.metadata_props.update(facts)
    written.save(path)


class GraphNetwork(nn.Module):
    """A graph in place of a network: maps without gradients.

    Args:
        run: image on the host or a device -> the outputs of Graph, on the same device.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, run: Callable[[Tensor], Sequence[Tensor]], facts: Facts, place: Path) -> None:
        super().__init__()
        self.run, self.kinds, self.stride, self.place = run, facts.kinds, facts.stride, place
        self.register_buffer("mean", torch.tensor(facts.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(facts.std).view(1, 3, 1, 1))

    def forward(self, image: Tensor) -> Outputs:
        height, width = image.shape[-2:]
        if min(height, width) < LEAST * self.stride:
            raise RunError(
                f"{self.place}: an image or a scale of it is {height} x {width} px (height x width) for the network, "
                f"whose graph takes {LEAST * self.stride} or more; choose a larger --scale, or use its run"
            )
        logits_BK, *maps = self.run(image)
        return Outputs(logits_BK, logits_BK.new_empty(0), maps[0], maps=dict(zip(self.kinds, maps, strict=True)))

    def grad_cam_layer(self, index: int) -> nn.Module:
        raise ValueError(f"{self.place} gives no gradients; use its run, or its safetensors")

    def reading_attention(self) -> NoReturn:
        raise ValueError(f"{self.place} gives no attention; use its run, or its safetensors")


class GraphMethod(Method):
    """What prediction needs of a method, from a graph."""

    def __init__(self, network: GraphNetwork) -> None:
        super().__init__()
        self.student = network  # type: ignore[assignment]  # it has what prediction reads of a network

    def maps_of(self, out: Outputs) -> dict[str, Tensor]:
        return dict(out.maps)


def read_graph(path: Path) -> tuple[Facts, Method]:
    """Open a .pt2 or an .onnx. Raises RunError if `wsss export` did not write it."""
    metadata, run = (open_onnx if path.suffix == SUFFIXES["onnx"] else open_torch)(path)
    facts = read_facts(metadata, path)
    return facts, GraphMethod(GraphNetwork(run, facts, path))


def open_torch(path: Path) -> tuple[dict[str, str], Callable[[Tensor], Sequence[Tensor]]]:
    from torch.export.passes import move_to_device_pass

    extra = {FACTS: ""}
    try:
        program = torch.export.load(path, extra_files=extra)
    except Exception as error:  # another zip, a newer schema, no zip: each has its own type
        raise RunError(f"{path}: is not a file of `wsss export` ({str(error).strip().splitlines()[0]})") from error
    opened: dict[torch.device, Callable[[Tensor], Sequence[Tensor]]] = {}

    def run(image: Tensor) -> Sequence[Tensor]:
        if image.device not in opened:
            opened[image.device] = move_to_device_pass(program, str(image.device)).module()
        with (
            torch.no_grad(),
            torch.autocast(image.device.type, enabled=False),
        ):  # its types are its own
            return opened[image.device](image)

    return json.loads(extra[FACTS] or "{}"), run


def open_onnx(path: Path) -> tuple[dict[str, str], Callable[[Tensor], Sequence[Tensor]]]:
    """Its metadata, and a function that runs it in onnxruntime on the host."""
    with needs("onnx", ", or take the run or its safetensors"):
        import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors share no type
        raise RunError(f"{path}: is not a file of `wsss export` ({str(error).strip().splitlines()[0]})") from error

    def run(image: Tensor) -> Sequence[Tensor]:
        found = session.run(None, {"image": image.float().cpu().numpy()})
        return [torch.from_numpy(x).to(image.device) for x in found]

    return dict(session.get_modelmeta().custom_metadata_map), run


def check_parity(graph: Graph, path: Path, side: int, place: Path) -> float:
    """The largest difference between a written file and the network on random images of two sizes, as a share of an
    output's largest value. Raises RunError, which names `place`, if it is more than TOLERANCE."""
    _, method = read_graph(path)
    stride = graph.reader.student.stride
    cells = max(side // stride, LEAST)
    random, worst = torch.Generator().manual_seed(0), 0.0
    for batch, rows, columns in ((1, cells, cells), (3, LEAST, cells + 1)):
        image = torch.rand(batch, 3, rows * stride, columns * stride, generator=random)
        with torch.no_grad():
            wanted = graph(image)
        with telling(graph, place):
            out = method.student(image)
        for right, found in zip(wanted, (out.cls_logits_BK, *out.maps.values()), strict=True):
            scale = max(float(right.abs().max()), 1.0)
            worst = max(worst, float(np.abs(right.numpy() - found.numpy()).max()) / scale)
    if not worst <= TOLERANCE:
        raise RunError(f"{place}: differs from the network by {worst:.1e} of its largest value; take another --format")
    return worst
