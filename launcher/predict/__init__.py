"""New images and clips through a trained network: masks, overlays, a table, a page."""
