"""Metrics, pictures and files for trackers, sent without making a step wait."""
