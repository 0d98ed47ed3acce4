"""Metrics with their protocol, validation during training, pictures, galleries and the report."""
