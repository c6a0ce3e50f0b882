"""The model that reads no weights of what it drops."""
