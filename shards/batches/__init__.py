"""Samples -> batches: their order, transforms, views, collation and loaders."""
