"""Speed and quality of activation sparsity."""
