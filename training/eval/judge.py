"""Whether what the recogniser saw in a picture is what a prompt asked for: plain rules, nothing learned."""

from collections import Counter
from dataclasses import dataclass

from .prompts import Truth

MARGIN = 0.1  # centres must differ by this share of the picture along the relation's axis


@dataclass(frozen=True, slots=True)
class Detection:
    """One object in a picture: its `hex` ("" if it looks like none), its centre in 0..1, y down."""

    name: str
    x: float
    y: float


@dataclass(frozen=True, slots=True)
class Seen:
    """What is in a picture: every object once, and the name of the background's colour."""

    objects: tuple[Detection, ...]
    background: str


def related(one: Detection, two: Detection, relation: str) -> bool:
    """Whether `one` is `relation` of `two`: clearly so, and more than it is above or beside it otherwise."""
    across, down = two.x - one.x, two.y - one.y
    along, other = {
        "left": (across, down),
        "right": (-across, down),
        "above": (down, across),
        "below": (-down, across),
    }[relation]
    return along >= MARGIN and along >= abs(other)


def satisfies(truth: Truth, seen: Seen) -> bool:
    """Whether a picture shows exactly the objects asked for, so many, so placed, on that background."""
    wanted = Counter(dict.fromkeys(truth.objects, truth.count))
    if Counter(item.name for item in seen.objects) != wanted:
        return False
    if truth.background and seen.background != truth.background:
        return False
    if not truth.relation:
        return True
    place = {item.name: item for item in seen.objects}
    return related(place[truth.objects[0]], place[truth.objects[1]], truth.relation)
