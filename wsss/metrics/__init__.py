"""Figures from predictions and truth, as counts that add up over images and ranks."""
