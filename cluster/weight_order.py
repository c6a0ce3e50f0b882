"""The order in which a model's weights lie in memory: the same for all configurations of a trial.

torch's product of one or two rows with a float32 matrix [outputs, inputs] reads the matrix from
memory faster by columns than by rows where it has at least as many outputs as inputs, and a small
model's head two to three times as fast; with fewer outputs it is the other way round, and with more
rows it depends (`benchmarks/weight_order.py`). A rival that is read slowly makes whatever reads
less look better than it is.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cluster.plan import WeightOrder


def order_weights(model: nn.Module, order: WeightOrder) -> None:
    """Let linear layers' weights lie by columns where that is read faster; values stay.

    In place, so that models which share a parameter go on sharing it; what was mapped from a file
    takes memory of its own. `rows` leaves all as it was loaded, and so are weights on a GPU, in
    half precision, and those with fewer outputs than inputs.
    """
    if order == "rows":
        return
    for module in model.modules():
        if isinstance(module, nn.Linear) and _gains(module.weight):
            weight = module.weight
            weight.data = weight.data.t().contiguous().t()


def _gains(weight_ND: Tensor) -> bool:
    num_outputs, num_inputs = weight_ND.shape
    return (
        weight_ND.device.type == "cpu"
        and weight_ND.dtype == torch.float32
        and num_outputs >= num_inputs
        and weight_ND.is_contiguous()
    )
