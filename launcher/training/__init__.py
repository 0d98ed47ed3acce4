"""Config -> objects -> the loop."""
