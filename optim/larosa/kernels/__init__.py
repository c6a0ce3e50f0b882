"""Kernels that skip the weights of inputs that are zero, each beside a reference in plain torch.

Weights are input-channel-major, `wt_DN` [inputs, outputs] contiguous, so that an input that is zero
is a run of memory that is not read. Sums are float32, in ascending order of inputs for each output,
whatever the number of rows and threads: a row's result does not depend on who is beside it.
"""
