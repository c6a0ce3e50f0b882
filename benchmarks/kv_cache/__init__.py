"""Memory and speed of KV caches."""
