"""A method for wsss in a package of its own."""
