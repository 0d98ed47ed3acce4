"""The training objectives by name. A method's keyword-only arguments are its options in the YAML."""

from wsss.methods.base import Method
from wsss.methods.classify import Classify
from wsss.methods.distill import Distill

METHODS: dict[str, type[Method]] = {"classify": Classify, "distill": Distill}
