"""Checks before a run starts: what on this machine would stop it."""
