"""The science: tensors in, tensors out. Knows no file, no process, no tracker."""
