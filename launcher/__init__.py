"""Running it at scale: Accelerate, MLflow, checkpoints, jobs, reports, the `wsss` command."""
