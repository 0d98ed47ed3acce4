"""Data at rest and in flight: files in, batches out. Knows no model."""
