"""The arguments of `build.py bench`; nothing here is slow to import."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

MODELS = ("matmul", "pocket", "klein-4b")


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"expected a regular expression, found {text!r}: {error}") from error
    return text


def _product(text: str) -> tuple[int, int, int]:
    match = re.fullmatch(r"(\d{1,6})x(\d{1,6})x(\d{1,6})", text)
    if not match or int(match[3]) % 128 or not int(match[1]) or not int(match[2]) or not int(match[3]):
        raise argparse.ArgumentTypeError(f"expected ROWSxNxK with K a multiple of 128, found {text!r}")
    return int(match[1]), int(match[2]), int(match[3])


def add_arguments(
    parser: argparse.ArgumentParser, size: Callable[[str], Any], whole_number: Callable[[str], int]
) -> None:
    """Add them to the verb's parser; `size` and `whole_number` are types of the command line."""
    add = parser.add_argument
    add("--model", action="append", choices=MODELS, help="may come again (default: what the adapter can do in minutes)")
    add("--weights", choices=("binary", "ternary"), default="ternary")
    add("--product", type=_product, metavar="ROWSxNxK", help="the matrix products of the model 'matmul'")
    add("--size", type=size, action="append", help="of the pictures, may come again (default: 512x512 and 1024x1024)")
    add("--only", type=_pattern, metavar="REGEX", help="such as 'denoiser linear' or 'whole'")
    add("--variant", metavar="NAME", help="this variant of every kernel that has it, no others")
    add("--runs", type=whole_number, default=5, help="of which medians are taken (default 5)")
    add("--adapter", choices=("auto", "software", "hardware"), default="auto")
    add("--all-features", action="store_true", help="with what browsers keep behind flags")
    add("--no-whole", action="store_true", help="kernels alone")
    add("--peers", action="store_true", help="also other engines: one in the page, on a GPU others around it")
    add("--json", type=Path, metavar="FILE", help="also write all numbers as JSON")
