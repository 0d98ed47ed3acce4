"""How many processes a run has, how they start, join, are asked to stop and are sharded by ZeRO."""
