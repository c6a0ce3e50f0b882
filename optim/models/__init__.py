"""What a model's folder says, and whether it can be trusted."""
