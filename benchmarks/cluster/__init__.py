"""Orchestration, files and summaries."""
