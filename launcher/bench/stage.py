"""What the cases of `wsss bench all` share: device, clock, methods with random weights, and batches."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from launcher.config.sections import Precision
from launcher.processes.precision import in_precision
from launcher.training.graph import Gradient, GraphedGradient
from wsss.methods import METHODS
from wsss.methods.base import Frozen, Method
from wsss.models import MODELS
from wsss.models.pcm import build_pcm
from wsss.optim import parameter_groups

Found = dict[str, Any]
PRECISIONS: tuple[Precision, ...] = ("ieee", "tf32", "bf16")


@dataclass
class Stage:
    """A device and the sizes of things on it.

    Attributes:
        smoke: toy sizes, and everything only once, to test on a CPU that the cases run.
    """

    device: torch.device
    smoke: bool = False

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def vit(self) -> str:
        return "vit_tiny_patch16_224" if self.smoke else "vit_base_patch16_224"

    def size(self, full: int, toy: int) -> int:
        return toy if self.smoke else full

    def wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def clock(self, call: Callable[[], Any], repeats: int = 20, warm: int = 4) -> dict[str, float]:
        """Median milliseconds of a call on the device and on the host, and peak memory. If the host takes longer, the
        call is limited by launches."""
        repeats, warm = (1, 1) if self.smoke else (repeats, warm)
        for _ in range(warm):
            call()
        self.wait()
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        device_ms, host_ms = [], []
        for _ in range(repeats):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2)) if self.cuda else (None, None)
            if begin is not None:
                begin.record()
            started = time.perf_counter()
            call()
            host_ms.append((time.perf_counter() - started) * 1e3)
            if begin is not None and end is not None:
                end.record()
                end.synchronize()
                device_ms.append(begin.elapsed_time(end))
        found = {"ms": statistics.median(device_ms or host_ms), "host_ms": statistics.median(host_ms)}
        if self.cuda:
            found["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
        return {name: round(value, 4) for name, value in found.items()}

    def photographs(self, images: int, px: int) -> Tensor:
        """See like_photographs."""
        return like_photographs(images, px)

    def method(self, name: str, images: int, px: int, classes: int = 20, **options: Any) -> tuple[Method, dict]:
        """A method with random weights, all its losses on, and a batch: both on the device."""
        torch.manual_seed(0)
        label = torch.zeros(images, classes)
        label[:, 0] = 1
        batch = {"image": self.photographs(images, px), "image_label": label, "key": ["a"] * images}
        resnet = "resnet10t" if self.smoke else "resnet50"
        method: Method
        if name in ("toco", "msee"):
            student = MODELS["toco"](classes, timm_name=self.vit)
            crop_px = round(px * 96 / 448 / 16) * 16
            method = METHODS[name](student, seg_from=0, crop_px=crop_px, **options)
            batch |= self.second_view(images, px)
        elif name == "distill":
            teacher = Frozen(build_pcm(classes, timm_name=resnet))
            method = METHODS[name](MODELS["vit"](classes, timm_name=self.vit), teacher, **options)
        elif name == "classify":
            method = METHODS[name](MODELS["cnn"](classes, timm_name=resnet), **options)
        elif name == "affinity":
            method = METHODS[name](MODELS["affinity_net"](1, timm_name=resnet), **options)
            batch["mask"] = torch.zeros(images, px, px, dtype=torch.uint8)
        else:
            raise ValueError(f"no batch for method {name}")
        return method.to(self.device).train(), on(self.device, batch)

    def second_view(self, images: int, px: int) -> dict[str, Tensor]:
        """Further inputs of methods with two views; image i shows 1 + i % 3 classes."""
        present = torch.full((images, 3), -1)
        for image in range(images):
            present[image, : 1 + image % 3] = torch.arange(1 + image % 3)
        colours = torch.tensor([1.1, 0.9, 1.1, 0.05, 0, 1, 0, 0])
        return {
            "view2": (self.photographs(images, px) * 255).to(torch.uint8),
            "photometric": colours.repeat(images, 3, 1),
            "main_flip": torch.zeros(images, dtype=torch.bool),
            "seed": torch.arange(images),
            "box": torch.tensor([[0, px, 0, px]]).repeat(images, 1),
            "present": present,
        }

    def gradient(self, method: Method, precision: Precision, *, graph: bool) -> Gradient:
        """A step's forward and backward pass; `graph`: recorded as one CUDA graph, on CUDA devices only."""

        def plain(batch: Mapping[str, Any], step: int) -> dict[str, Tensor]:
            with in_precision(precision, self.device.type):
                losses: dict[str, Tensor] = method(batch, step)
            losses["loss"].backward()
            return losses

        return GraphedGradient(plain, method.phase) if graph and self.cuda else plain

    def update(
        self, method: Method, batch: Mapping[str, Any], precision: Precision, *, graph: bool = False
    ) -> Callable[[], None]:
        """A whole update: forward, backward, norm of the gradient, fused AdamW that can skip.

        Args:
            graph: forward and backward pass recorded as one CUDA graph, on CUDA devices only.
        """
        graph = graph and self.cuda
        optimizer = torch.optim.AdamW(parameter_groups(method, 0.01), lr=1e-5, fused=True)
        parameters = [p for p in method.parameters() if p.requires_grad]
        run, step = self.gradient(method, precision, graph=graph), 10

        def update() -> None:
            nonlocal step
            step += 1
            run(batch, step)
            norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
            optimizer.found_inf = (~torch.isfinite(norm)).float()  # type: ignore[attr-defined]
            optimizer.step()
            optimizer.zero_grad(set_to_none=not graph)

        return update


def on(device: torch.device, batch: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value.to(device) if torch.is_tensor(value) else value for name, value in batch.items()}


def like_photographs(images: int, px: int, random: torch.Generator | None = None) -> Tensor:
    """Random images with about as many colours as photographs, (B, 3, px, px) in [0, 1].

    Octaves of noise, mostly grey, each 0.6 times as strong as the one before. On a bilateral grid of one sigma they
    fill 0.35 as many cells as they have pixels; ten photographs of VOC fill 0.18 to 0.47.
    """
    total, strength = torch.zeros(images, 3, px, px), 1.0
    for side in (2**n for n in range(2, px.bit_length())):
        for channels, weight in ((3, 0.4), (1, 1.0)):
            noise = torch.rand(images, channels, side, side, generator=random) - 0.5
            total += strength * weight * F.interpolate(noise, (px, px), mode="bilinear")
        strength *= 0.6
    return (0.5 + 0.25 * total / total.std()).clamp(0, 1)
