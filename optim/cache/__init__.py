"""The KV caches behind the engine's slots."""
