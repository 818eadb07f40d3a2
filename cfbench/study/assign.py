"""Who sees what: cells with fewest raters first, sides balanced for each rater and for each pair.

Pure functions over counts; the store calls them inside the transaction that stores their result.
"""

import random
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from cfbench.study.tables import SIDES, Design, Pair, Side

REPEAT_AFTER = 2
"""Other pairs, at least, between a pair and its repetition where the block is long enough."""


class Item(NamedTuple):
    """One pair as one rater sees it: ``side`` is where ``Pair.ours`` stands.

    ``of`` is the main pair that a repeated pair shows again, else empty.
    """

    order: int
    block: int
    pair: str
    of: str
    side: Side


class Counts(NamedTuple):
    """How often pairs were given out: in all, and with ours on the left."""

    given: Mapping[str, int]
    ours_left: Mapping[str, int]

    def lean(self, pair: str) -> int:
        """How many more raters saw ours on the left than on the right."""
        return 2 * self.ours_left.get(pair, 0) - self.given.get(pair, 0)


def other(side: Side) -> Side:
    """The side across."""
    return SIDES[1] if side == SIDES[0] else SIDES[0]


def films(design: Design, item: Item) -> tuple[str, str]:
    """Names of the films left and right of an item."""
    pair = design.pair(item.of or item.pair)
    return (pair.ours, pair.other) if item.side == "left" else (pair.other, pair.ours)


def next_block(
    design: Design, counts: Counts, seen: Collection[str], first: int, block: int, seed: str
) -> tuple[Item, ...]:
    """A rater's next block, in the order of showing; empty when nothing is left.

    Args:
        design: of the study.
        counts: of all raters so far.
        seen: ids of the main pairs that this rater was given.
        first: order of the block's first item.
        block: its number; checks stand in block 0.
        seed: decides ties, sides at random and the order; another for each rater.
    """
    rng = random.Random(f"{design.seed} {seed} {block}")
    chosen = choose(design, counts, seen, rng)
    if not chosen:
        return ()
    sides = balance(design, chosen, counts, rng)
    shown = [Item(0, block, pair.id, "", sides[pair.id]) for pair in chosen]
    rng.shuffle(shown)
    if block == 0:
        shown = with_checks(design, shown, rng)
    return tuple(item._replace(order=first + index) for index, item in enumerate(shown))


def choose(design: Design, counts: Counts, seen: Collection[str], rng: random.Random) -> list[Pair]:
    """Main pairs for a block: least-given cells first, each prompt once a comparison.

    A cell is a prompt of a comparison; where it has several pairs (seeds of noise), the least
    given of them is shown.
    """
    cells: dict[tuple[str, str], list[Pair]] = {}
    for pair in design.pairs:
        if pair.kind == "main":
            cells.setdefault((pair.comparison, pair.prompt), []).append(pair)
    open_cells = [pairs for pairs in cells.values() if not any(pair.id in seen for pair in pairs)]
    rng.shuffle(open_cells)
    open_cells.sort(key=lambda pairs: sum(counts.given.get(pair.id, 0) for pair in pairs))
    chosen: list[Pair] = []
    for pairs in open_cells[: design.plan.block_pairs]:
        rng.shuffle(pairs)
        chosen.append(min(pairs, key=lambda pair: counts.given.get(pair.id, 0)))
    return chosen


def balance(
    design: Design, chosen: Sequence[Pair], counts: Counts, rng: random.Random
) -> dict[str, Side]:
    """Where ours stands in each pair: half left and half right within each comparison.

    Of a rater's pairs those that were seen least with ours on the left get it there; of an odd
    number the one left over goes where the study as a whole lacks it.
    """
    sides: dict[str, Side] = {}
    for comparison in design.comparisons:
        pairs = [pair for pair in chosen if pair.comparison == comparison.name]
        rng.shuffle(pairs)
        pairs.sort(key=lambda pair: counts.lean(pair.id))
        half, odd = divmod(len(pairs), 2)
        if odd:
            lean = counts.lean(pairs[half].id) or sum(counts.lean(pair.id) for pair in pairs)
            half += lean < 0 or (lean == 0 and rng.random() < 0.5)
        sides.update(
            {pair.id: SIDES[0] if index < half else SIDES[1] for index, pair in enumerate(pairs)}
        )
    return sides


def with_checks(design: Design, shown: Sequence[Item], rng: random.Random) -> list[Item]:
    """Checks put among the pairs: none first, the repeated pair well behind its original."""
    items = list(shown)
    for pair in design.pairs:
        if pair.kind in ("instruction", "obvious"):
            place = rng.randint(min(1, len(items)), len(items))
            items.insert(place, Item(0, 0, pair.id, "", rng.choice(SIDES)))
    for pair in design.pairs:
        if pair.kind == "repeat":
            repeated = shown[0]
            at = items.index(repeated)
            place = rng.randint(min(at + REPEAT_AFTER + 1, len(items)), len(items))
            items.insert(place, Item(0, 0, pair.id, repeated.pair, other(repeated.side)))
    return items
