"""Which combinations training never sees, so that the benchmark can ask for them.

Three rules, each a stable hash of names (an object's name is its `hex`), each true for one combination in
SHARE: an object on a background (no named background counts as one), an object a certain number of times
(two or more), and two objects in one picture, whatever their order and relation. `scenes.random_scene`
draws no scene that any rule names. This module imports nothing of training/, which imports it.
"""

import hashlib

SHARE = 6
SALT = "pocket-eval-1"


def _chosen(*parts: str) -> bool:
    digest = hashlib.sha256("/".join([SALT, *parts]).encode()).digest()
    return int.from_bytes(digest[:8], "big") % SHARE == 0


def held_out_colour(item: str, background: str | None) -> bool:
    """Whether object `item` never stands on `background`; None: on a background that the caption leaves out."""
    return _chosen("colour", item, background or "none")


def held_out_count(item: str, count: int) -> bool:
    """Whether a picture never shows `count` of object `item`; one of anything is always allowed."""
    return count > 1 and _chosen("count", item, str(count))


def held_out_pair(one: str, two: str) -> bool:
    """Whether two objects never share a picture; the order does not matter."""
    return _chosen("pair", *sorted((one, two)))


def is_held_out(names: list[str], count: int, background: str | None) -> bool:
    """Whether training leaves out the picture of `names` (one, or two different objects) on `background`.

    `count` is how often the one object is there; 1 for two objects.
    """
    return (
        any(held_out_colour(name, background) for name in names)
        or held_out_count(names[0], count)
        or (len(names) == 2 and held_out_pair(*names))
    )
