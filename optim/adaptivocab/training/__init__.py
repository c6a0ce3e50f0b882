"""Rows for new tokens, tuning, and what both come to."""
