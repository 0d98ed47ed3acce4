"""Where samples come from: one file per dataset, each a lazy sequence of samples (see schema.Source)."""
