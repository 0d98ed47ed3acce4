"""One model per YAML section, read and written."""
