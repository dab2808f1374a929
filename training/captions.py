"""Captions of a scene in English and Chinese.

A scene is a plain dict (see scenes.py): `kind` one | many | pair, `objects` (records of objects.json),
`count`, `relation` left | right | above | below | beside | and, `size` small | big | None,
`background` a key of COLOURS or None. Relations read "first object is <relation> the second".
"""

import random

# name: (RGB in 0..255, Chinese names)
COLOURS = {
    "white": ((250, 250, 250), ["白色"]),
    "black": ((24, 24, 28), ["黑色"]),
    "grey": ((140, 142, 148), ["灰色"]),
    "red": ((214, 48, 52), ["红色"]),
    "orange": ((248, 146, 40), ["橙色", "橘色"]),
    "yellow": ((252, 214, 60), ["黄色"]),
    "green": ((66, 168, 82), ["绿色"]),
    "blue": ((52, 112, 220), ["蓝色"]),
    "purple": ((140, 78, 196), ["紫色"]),
    "pink": ((248, 158, 192), ["粉色", "粉红色"]),
    "brown": ((136, 92, 58), ["棕色", "褐色"]),
    "teal": ((40, 172, 172), ["青色"]),
    "light blue": ((160, 208, 246), ["浅蓝色", "天蓝色"]),
    "light green": ((176, 226, 160), ["浅绿色"]),
    "dark blue": ((26, 44, 110), ["深蓝色"]),
}
ENGLISH_ALIASES = {
    "grey": ["grey", "gray"],
    "teal": ["teal", "cyan", "turquoise"],
    "light blue": ["light blue", "sky blue"],
}
ENGLISH_COUNTS = {1: "one", 2: "two", 3: "three", 4: "four"}
CHINESE_COUNTS = {1: "一", 2: "两", 3: "三", 4: "四"}
ENGLISH_SIZES = {"small": ["small", "little", "tiny"], "big": ["big", "large", "huge"]}
CHINESE_SIZES = {"small": "小", "big": "大"}
IRREGULAR = {
    "mouse": "mice",
    "goose": "geese",
    "fish": "fish",
    "sheep": "sheep",
    "deer": "deer",
    "die": "dice",
    "knife": "knives",
    "leaf": "leaves",
    "wolf": "wolves",
    "loaf": "loaves",
    "foot": "feet",
    "ox": "oxen",
    "tooth": "teeth",
    "bison": "bison",
    "squid": "squid",
    "shrimp": "shrimp",
    "moose": "moose",
}


def plural(name: str) -> str:
    """English plural; of "glass of milk" the first noun changes."""
    for joint in (" of ", " with ", " in ", " on ", " without ", " and "):
        head, found, tail = name.partition(joint)
        if found:
            return plural(head) + found + tail
    *rest, last = name.split(" ")
    if last in IRREGULAR:
        last = IRREGULAR[last]
    elif last.endswith("s") and not last.endswith("ss") and last not in ("bus", "octopus", "cactus", "walrus"):
        pass
    elif last.endswith(("s", "x", "z", "ch", "sh")):
        last += "es"
    elif last.endswith("y") and last[-2:-1] not in "aeiou":
        last = last[:-1] + "ies"
    elif last in ("tomato", "potato", "mango"):
        last += "es"
    else:
        last += "s"
    return " ".join([*rest, last])


def article(name: str) -> str:
    """`name` with "a" or "an"; names that are plural already get none."""
    last = name.split(" of ")[0].split(" ")[-1]
    if last.endswith("s") and not last.endswith(("ss", "us", "is")):
        return name
    an = name[0].lower() in "aeiou" and not name.lower().startswith(("uni", "ewe", "euro", "one"))
    return ("an " if an or name.startswith("hourglass") else "a ") + name


def pick_name(item: dict, language: str, rng: random.Random) -> str:
    """A name of the object: its label, a hand-written everyday name, or now and then a tag."""
    label, extra, tags = item[language]["label"], item[language]["extra"], item[language]["tags"]
    draw = rng.random()
    if tags and draw < 0.06:
        return rng.choice(tags)
    if extra and draw < 0.6:
        return extra[0] if rng.random() < 0.5 else rng.choice(extra)
    return label


def english(scene: dict, rng: random.Random) -> str:
    """One English caption."""
    background = scene["background"]
    colour = rng.choice(ENGLISH_ALIASES.get(background, [background])) if background else None
    names = [pick_name(item, "en", rng) for item in scene["objects"]]
    if scene["kind"] != "pair":
        own = scene["objects"][0]["colour"]
        words = [rng.choice(ENGLISH_SIZES[scene["size"]])] if scene["size"] else []
        if own and own not in names[0] and rng.random() < 0.2:
            words.append(own)
        words.append(names[0])
        phrase = " ".join(words)
        if scene["kind"] == "many":
            count = scene["count"]
            number = str(count) if rng.random() < 0.15 else ENGLISH_COUNTS[count]
            subject = f"{number} {plural(phrase)}"
        else:
            subject = phrase if rng.random() < 0.25 else article(phrase)
            if rng.random() < 0.04:
                subject = "one " + phrase
    else:
        one, two = names if rng.random() < 0.35 else [article(name) for name in names]
        subject = rng.choice(
            {
                "left": [
                    f"{one} to the left of {two}",
                    f"{one} left of {two}",
                    f"{one} on the left and {two} on the right",
                    f"{one} on the left of {two}",
                ],
                "right": [f"{one} to the right of {two}", f"{one} right of {two}", f"{one} on the right of {two}"],
                "above": [f"{one} above {two}", f"{one} over {two}", f"{one} at the top and {two} at the bottom"],
                "below": [f"{one} below {two}", f"{one} under {two}", f"{one} underneath {two}"],
                "beside": [f"{one} next to {two}", f"{one} beside {two}", f"{one} by {two}"],
                "and": [f"{one} and {two}", f"{one} and {two}", f"{one} with {two}", f"{one}, {two}"],
            }[scene["relation"]]
        )
    if rng.random() < 0.1:
        subject = rng.choice(["a picture of ", "an illustration of ", "a 3d render of ", "a drawing of "]) + subject
    if not colour:
        text = subject
    else:
        text = rng.choices(
            [
                f"{subject} on {article(colour)} background",
                f"{subject}, {colour} background",
                f"{subject} on {colour}",
                f"{subject} in front of {article(colour)} background",
                f"{colour} background, {subject}",
                f"{subject} against {article(colour)} background",
            ],
            weights=[60, 18, 6, 6, 4, 6],
        )[0]
    if rng.random() < 0.12:
        text = text[0].upper() + text[1:]
    return text + ("." if rng.random() < 0.06 else "")


def chinese(scene: dict, rng: random.Random) -> str:
    """One Chinese caption."""
    background = scene["background"]
    colour = rng.choice(COLOURS[background][1]) if background else None
    names = [pick_name(item, "zh", rng) for item in scene["objects"]]
    measures = [item["measure"] if rng.random() < 0.6 else "个" for item in scene["objects"]]
    if scene["kind"] != "pair":
        phrase = names[0]
        own = scene["objects"][0]["colour"]
        if own and rng.random() < 0.2:
            phrase = COLOURS[own][1][0] + "的" + phrase
        if scene["size"]:
            phrase = CHINESE_SIZES[scene["size"]] + phrase
        count = scene["count"]
        number = str(count) if rng.random() < 0.12 else CHINESE_COUNTS[count]
        counted = f"{number}{measures[0]}{phrase}"
        subject = counted if count > 1 or rng.random() < 0.45 else phrase
    else:
        one, two = names if rng.random() < 0.65 else [f"一{m}{name}" for m, name in zip(measures, names, strict=False)]
        side = {
            "left": ("左边", "左侧", "左面"),
            "right": ("右边", "右侧", "右面"),
            "above": ("上面", "上方", "上边"),
            "below": ("下面", "下方", "下边"),
        }.get(scene["relation"])
        if side:
            place = rng.choice(side)
            subject = rng.choice([f"{one}在{two}的{place}", f"{one}在{two}{place}", f"{two}的{place}是{one}"])
        elif scene["relation"] == "beside":
            subject = rng.choice([f"{one}在{two}旁边", f"{one}旁边是{two}"])
        else:
            subject = rng.choice([f"{one}和{two}", f"{one}和{two}", f"{one}与{two}", f"{one}、{two}"])
    if not colour:
        return subject
    return rng.choices(
        [
            f"{subject}，{colour}背景",
            f"{subject}，{colour}的背景",
            f"{colour}背景上的{subject}",
            f"{colour}背景，{subject}",
            f"{subject},{colour}背景",
            f"{subject} {colour}背景",
        ],
        weights=[62, 8, 12, 8, 5, 5],
    )[0]


def caption(scene: dict, rng: random.Random) -> str:
    """One caption, Chinese in a third of the cases."""
    return chinese(scene, rng) if rng.random() < 1 / 3 else english(scene, rng)
