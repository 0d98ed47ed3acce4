"""Measurements of the machine and of speed claims, each a ratio within one run."""
