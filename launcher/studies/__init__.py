"""A paper's table as runs, and a page next to its figures."""
