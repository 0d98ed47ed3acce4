"""Figures with their protocol, validation while training, pictures, galleries and the report."""
