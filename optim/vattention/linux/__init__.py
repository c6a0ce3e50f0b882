"""Arenas by Linux's memory maps."""
