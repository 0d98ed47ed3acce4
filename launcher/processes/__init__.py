"""How many processes a run has, how they start, join, are told to stop and are sharded by ZeRO."""
