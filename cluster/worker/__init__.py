"""The actor: loads configurations, runs blocks, commits rows."""
