"""How many processes a run has; how they start, join and stop; ZeRO."""
