"""A method and a metric for wsss in a package of its own."""
