"""Prediction on new images and clips with a trained network: masks, overlays, a table, a page."""
