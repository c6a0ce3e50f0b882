"""Of more tokens than are wanted, those that a cover with the fewest tokens makes most use of.

Merges leave steps behind: a token that only ever was the beginning of a longer one. Where a text is
covered with the fewest tokens instead, nothing needs the steps.
"""

from __future__ import annotations

from collections import Counter

from optim.adaptivocab.hierarchical import Selection
from optim.adaptivocab.segmentation import Segmenter
from optim.adaptivocab.texts import EncodedTexts

ROUNDS = (0.5, 0.2, 0.0)
"""How much of the surplus is left after each round: uses change as tokens go."""
MOST_TOKENS = 4_000_000
"""Tokens of text that uses are counted on."""


def pruned(found: Selection, texts: EncodedTexts, num_tokens: int, size: int) -> Selection:
    """The `num_tokens` that save most, in their old order; `size` is above every base id."""
    kept = list(range(len(found.expansions)))
    surplus = len(kept) - num_tokens
    # Chunks are not crossed by what was chosen within them, but for chance neighbours.
    ids = texts.ids_T[:MOST_TOKENS].tolist()
    for left in ROUNDS if surplus > 0 else ():
        new = {size + place: found.expansions[place] for place in kept}
        uses = Counter(Segmenter(new, method="dp").cover(ids))
        saved = {p: uses[size + p] * (len(found.expansions[p]) - 1) for p in kept}
        wanted = num_tokens + round(left * surplus)
        best = sorted(kept, key=lambda place: (-saved[place], place))[:wanted]
        kept = sorted(best)
    return Selection([found.names[p] for p in kept], [found.expansions[p] for p in kept], [])
