"""What a config costs, before it runs: counted on its real graph, without data or a device."""
