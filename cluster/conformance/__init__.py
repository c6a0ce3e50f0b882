"""Whether the engine gives a model's own outputs, shown before it is trusted."""
