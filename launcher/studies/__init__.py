"""A paper's table as runs, and a page that compares them with its numbers."""
