"""The signatures of the `wsss` commands and nothing else; each file has one `register(app)`."""
