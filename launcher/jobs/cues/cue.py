"""What every kind of cue says of itself. Its heavy imports wait until its methods are called."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    import numpy as np


def digests_of(folder: Path, files: Sequence[str]) -> dict[str, str]:
    """The sha256 of each of these files of a folder."""
    from shards.tars import sha256_of

    return {name: sha256_of(folder / name) for name in files}


@dataclass(frozen=True, kw_only=True)
class Cue(ABC):
    """The settings of one kind of cue: the dataclass's fields are the options of `wsss cues KIND`, its docstring's
    first line is that command's help.

    Attributes:
        extension: of the member that holds an image's cue.
        examples: options of the lines that end the command's help.
        option_of_run: name of the option that takes the folder of a trained run; None = no run is needed.
    """

    extension: ClassVar[str]
    examples: ClassVar[tuple[str, ...]]
    option_of_run: ClassVar[str | None] = None

    @property
    @abstractmethod
    def images_at_a_time(self) -> int:
        """At most; batches end with their shard, so that its bytes do not depend on its neighbours."""

    @abstractmethod
    def identify(self, classes: Sequence[str]) -> dict[str, Any]:
        """All that the cues of images with these classes depend on, weights by their digest.

        Raises:
            RunError: settings that do not fit.
            ValueError: weights that are missing or of another network.
        """

    @abstractmethod
    def start(self, device: Any, classes: Sequence[str]) -> Callable[[Sequence["np.ndarray"]], list[Any]]:
        """Load what is needed; returns images (H, W, 3) uint8 RGB -> the cue of each. Raises ValueError likewise."""

    @staticmethod
    @abstractmethod
    def encode(cue: Any) -> bytes:
        """A cue as it is stored."""

    @staticmethod
    @abstractmethod
    def decode(data: bytes) -> Any:
        """A stored cue as its refiner takes it. Raises any error if the bytes are damaged."""

    @staticmethod
    def select_classes(cue: Any, class_ids: Sequence[int]) -> Any:
        """The part of a decoded cue that belongs to these class ids 1..K; by default a cue knows no class."""
        return cue
