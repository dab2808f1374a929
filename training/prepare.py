"""Stage 1 (CPU): choose the objects, copy their images, train the tokenizer.

    python -m training.prepare --emoji DIR --labels DIR --data DIR

`--emoji` and `--labels` are the unpacked npm packages (README.md), whose versions are checked. Writes
objects.json, sprites/ and tokenizer/ into the data folder.
"""

import argparse
import json
import random
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from . import names
from .captions import COLOURS, chinese, english
from .scenes import random_scene
from .tokenizer import train_tokenizer

TEXT_LENGTH, VOCAB_SIZE = 48, 5120  # as in model.py, which is slow to import
PACKAGES = {"emoji": ("@lobehub/fluent-emoji-3d", "1.1.0"), "labels": ("emojibase-data", "17.0.0")}
MEASURES = {  # emojibase subgroup: Chinese measure word
    **dict.fromkeys(range(34, 40), "只"),
    40: "朵",
    41: "棵",
    42: "颗",
    47: "杯",
    51: "座",
    52: "座",
    54: "辆",
    55: "艘",
    56: "架",
    65: "件",
    72: "本",
    75: "支",
}


def check_package(folder: Path, role: str) -> None:
    """Stop with the commands that install the data package unless `folder` holds it in the right version."""
    name, version = PACKAGES[role]
    archive = f"{name.removeprefix('@').replace('/', '-')}-{version}.tgz"
    install = f"npm pack {name}@{version} && mkdir -p {folder} && tar xzf {archive} -C {folder} --strip-components=1"
    path, found = folder / "package.json", "no package.json"
    if path.exists():
        package = json.loads(path.read_text("utf-8"))
        found = f"{package.get('name')} {package.get('version')}"
    if found != f"{name} {version}":
        raise SystemExit(f"{folder}: expected {name} {version}, found {found}; install it with `{install}`")


def own_colour(image: Image.Image) -> str | None:
    """The colour name that covers most of an RGBA image, if one clearly does."""
    pixels = np.asarray(image.resize((64, 64))).reshape(-1, 4).astype(np.float32)
    pixels = pixels[pixels[:, 3] > 200, :3]
    named = {name: rgb for name, (rgb, _) in COLOURS.items() if " " not in name and name != "teal"}
    distance = np.linalg.norm(pixels[:, None] - np.array(list(named.values()), np.float32)[None], axis=-1)
    share = np.bincount(distance.argmin(1), minlength=len(named)) / max(len(pixels), 1)
    best = list(named)[int(share.argmax())]
    return best if share.max() > 0.6 and best != "grey" else None


def clean(label: str) -> str:
    """Emojibase label -> caption wording."""
    return label.replace("’", "'")


def collect(emoji: Path, labels: Path, data: Path) -> list[dict]:
    """Write sprites/ and return the object records."""
    english_data = json.loads((labels / "en/data.json").read_text("utf-8"))
    chinese_data = {row["hexcode"]: row for row in json.loads((labels / "zh/data.json").read_text("utf-8"))}
    (data / "sprites").mkdir(parents=True, exist_ok=True)
    objects = []
    for row in english_data:
        code = row["hexcode"].lower()
        found = [
            name
            for name in (code, code.replace("-fe0f", ""), code + "-fe0f")
            if (emoji / "assets" / f"{name}.webp").exists()
        ]
        if not found or not names.is_object(row["label"], row.get("group")):
            continue
        path = emoji / "assets" / f"{found[0]}.webp"
        shutil.copy(path, data / "sprites" / f"{code}.webp")
        other = chinese_data[row["hexcode"]]
        extra = names.EXTRA_NAMES.get(row["label"], ([], []))
        objects.append(
            {
                "hex": code,
                "en": {"label": clean(row["label"]), "extra": extra[0], "tags": row.get("tags", [])},
                "zh": {"label": other["label"], "extra": extra[1], "tags": other.get("tags", [])},
                "measure": MEASURES.get(row["subgroup"], "个"),
                "colour": own_colour(Image.open(path).convert("RGBA")),
            }
        )
    for language in ("en", "zh"):
        taken = {name for item in objects for name in [item[language]["label"], *item[language]["extra"]]}
        count = Counter(tag for item in objects for tag in item[language]["tags"])
        shortest = 3 if language == "en" else 1
        for item in objects:  # a tag serves as a name if few objects share it
            item[language]["tags"] = [
                tag for tag in item[language]["tags"] if count[tag] <= 3 and tag not in taken and len(tag) >= shortest
            ]
    return objects


def sample_captions(objects: list[dict], count: int, seed: int = 0):
    """Captions for tokenizer training: every name often enough, half Chinese."""
    rng = random.Random(seed)
    for step in range(count):
        scene = random_scene(objects, rng)
        yield chinese(scene, rng) if step % 2 else english(scene, rng)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name in ("emoji", "labels", "data"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--captions", type=int, default=120_000, help="captions for tokenizer training")
    args = parser.parse_args()
    for role in PACKAGES:
        check_package(getattr(args, role), role)
    objects = collect(args.emoji, args.labels, args.data)
    (args.data / "objects.json").write_text(json.dumps(objects, ensure_ascii=False, indent=0), "utf-8")
    tokenizer = train_tokenizer(sample_captions(objects, args.captions), VOCAB_SIZE, TEXT_LENGTH)
    tokenizer.save_pretrained(str(args.data / "tokenizer"))
    print(f"{len(objects)} objects, {len(tokenizer)} tokens")


if __name__ == "__main__":
    main()
