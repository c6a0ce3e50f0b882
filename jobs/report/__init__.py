"""Findings as one document."""
