"""Metrics, pictures and files to trackers, without a step waiting for them."""
