"""LaRoSA: rotated activation sparsity.

After Liu et al., "LaRoSA: Enhancing LLM Efficiency via Layerwise Rotated Sparse Activation" (ICML
2025, arXiv 2507.01299): the model is rotated, exactly, so that activations are concentrated in few
channels; per token the largest are kept, and the weights of the others are not read.
"""
