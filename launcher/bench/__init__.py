"""Measurements of the machine and of speed claims; each claim is a ratio within one run."""
