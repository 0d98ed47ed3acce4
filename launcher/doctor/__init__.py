"""What of this machine would stop a run, looked at before one starts."""
