"""Artifacts of optimisations, made as Ray tasks."""
