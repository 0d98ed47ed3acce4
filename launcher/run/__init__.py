"""What lies in runs/NAME: its files, checkpoints, lock, and what is built from them."""
