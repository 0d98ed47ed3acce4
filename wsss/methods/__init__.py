"""The training objectives by name: ours and those of installed packages. A method's keyword-only arguments are its
options in the YAML."""

from wsss.methods.affinity import Affinity
from wsss.methods.base import Method
from wsss.methods.classify import Classify
from wsss.methods.cotrain import CoTrain
from wsss.methods.distill import Distill
from wsss.methods.frozen import FrozenFeatures
from wsss.methods.mixed import Mixed
from wsss.methods.msee import MSEE
from wsss.methods.supervised import Supervised
from wsss.methods.toco import ToCo
from wsss.registry import Registry, not_a

OURS: dict[str, type[Method]] = {
    "classify": Classify,
    "distill": Distill,
    "cotrain": CoTrain,
    "mixed": Mixed,
    "supervised": Supervised,
    "affinity": Affinity,
    "toco": ToCo,
    "msee": MSEE,
    "frozen": FrozenFeatures,
}

METHODS = Registry("wsss.methods", OURS, not_a(Method))
