"""Jobs that make one output shard of one input shard: CAMs, cues, masks, label maps, and shards themselves."""
