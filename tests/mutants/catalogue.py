"""All defects by area, and those that were left out because they change nothing that anyone could see."""

from __future__ import annotations

import random
from collections.abc import Mapping

from tests.mutants import cache, configs, hooks, initialisation, loss, maps, masks, mathematics
from tests.mutants.defect import Defect

AREAS: Mapping[str, tuple[Defect, ...]] = {
    "maps": maps.DEFECTS,
    "configs": configs.DEFECTS,
    "mathematics": mathematics.DEFECTS,
    "masks": masks.DEFECTS,
    "cache": cache.DEFECTS,
    "loss": loss.DEFECTS,
    "initialisation": initialisation.DEFECTS,
    "hooks": hooks.DEFECTS,
}
"""Area → its defects."""
LEAST = {"maps": 12, "configs": 8, "mathematics": 12, "masks": 6, "cache": 6, "loss": 5, "initialisation": 5, "hooks": 5}
"""How many defects an area has at least."""
EQUIVALENT = {
    "the length of a cache is that of its longest layer": "all layers have equally many tokens whenever it is asked",
    "layer_norm_epsilon left out of GPT-2's config_names": "the core knows the key by itself",
    "padding counted as a position of a RoBERTa": "padding stands behind the text, and what it computes is not used",
    "a model of the family's own that ignores `positions`": "training, evaluation and generation leave them to the model",
    "GELU as gelu_new for gelu_pytorch_tanh": "two names of one function",
}
"""Changes that are no defects, and why: they are not counted."""

Case = tuple[str, Defect, str]
"""Area, defect and family."""


def cases(areas: list[str] | None = None) -> list[Case]:
    """Every defect in every family that it is for."""
    return [
        (area, defect, family)
        for area, defects in AREAS.items()
        if not areas or area in areas
        for defect in defects
        for family in defect.families
    ]


def sampled(seed: int, size: int) -> list[Case]:
    """A sample with every area in it, in turns, as long as `size` allows."""
    source = random.Random(seed)
    queues = [source.sample(of_area, len(of_area)) for area in AREAS if (of_area := cases([area]))]
    source.shuffle(queues)
    turns = [case for turn in range(max(map(len, queues))) for queue in queues for case in queue[turn : turn + 1]]
    return turns[:size]
