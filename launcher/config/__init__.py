"""One model per YAML section; reading and writing configs."""
