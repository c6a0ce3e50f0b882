"""Blocks by number are the plan's blocks, and keys that are computed are the cells' own."""

from __future__ import annotations

import pytest

from benchmarks.cluster.simulated import simulated_plan
from cluster.block_index import Layout, cells_in
from cluster.plan import SCHEMA_VERSION, Plan, cell_key, digest


def plans() -> list[Plan]:
    plan = simulated_plan("x", num_shards=3, configurations=("a", 'b é"', "c"), seeds=(4, 7))
    (dataset,) = plan.datasets
    empty = dataset.model_copy(update={"name": "scored", "generates": False, "has_targets": True})
    added = dataset.model_copy(update={"name": "prompts+1", "arms": ("c",), "fingerprint": "x"})
    several = plan.model_copy(
        update={
            "datasets": (empty, dataset, added),
            "likelihoods": True,
            "seed_arms": {7: ("a",)},
        }
    )
    return [
        plan,
        several,
        several.model_copy(update={"share_prompts": "seeds"}),
        several.model_copy(update={"share_prompts": "configurations"}),
    ]


@pytest.mark.parametrize("plan", plans())
def test_a_layout_has_the_blocks_of_its_plan(plan: Plan) -> None:
    layout, blocks = Layout(plan), list(plan.blocks())
    assert layout.num_blocks == len(blocks) > 5
    for index, block in enumerate(blocks):
        assert layout.block(index) == block
        assert layout.keys(index) == [cell.key for cell in block.cells]
        assert layout.family(index) == (block.kind, block.dataset)
        by_name = layout.by_configuration(index)
        for name, mask in by_name.items():
            assert {block.cells[i].configuration for i in cells_in(mask)} == {name}
        assert sum(by_name.values()) == (1 << len(block.cells)) - 1


def test_what_is_missing_is_what_is_not_committed() -> None:
    plan = plans()[1]
    cells = [cell for block in plan.blocks() for cell in block.cells]
    committed = {cell.key for cell in cells[::3]}
    layout = Layout(plan)
    missing = {
        layout.block(index).cells[i].key
        for index, _, mask in layout.missing(committed)
        for i in cells_in(mask)
    }
    assert missing == {cell.key for cell in cells} - committed
    assert sum(num for _, num, _ in layout.missing(committed)) == len(cells)


def test_a_key_is_the_digest_of_what_it_stands_for() -> None:
    for seed in (None, 0, 12):
        identity = [SCHEMA_VERSION, 'c"\\ü', "d", "generations", seed, 3, 9]
        assert cell_key('c"\\ü', "d", "generations", seed, 3, 9) == digest(identity)[:16]
