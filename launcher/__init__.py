"""Running at scale: Accelerate, trackers, checkpoints, jobs, reports, the `wsss` command."""
