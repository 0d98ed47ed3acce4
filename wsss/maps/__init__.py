"""Class activation maps: gradients, windows, fusion over scales, pseudo labels, PAR, random walk."""
