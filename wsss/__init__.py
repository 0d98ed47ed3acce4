"""The science: tensors in, tensors out. Knows no file, no process, no tracker."""

__version__ = "0.1.0"
