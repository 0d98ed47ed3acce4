"""Know before: what a config costs, from its real graph, without data and without a device."""
