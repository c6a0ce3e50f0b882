"""Which code, artifacts and prompts made the results."""
