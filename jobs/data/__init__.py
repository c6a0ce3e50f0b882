"""Data sets and files, read as prompts and texts."""
