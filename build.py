"""Bitbrush's command line. Each verb calls one function; DESIGN.md §7 lists them with the exit codes.

Progress goes to stderr, facts to stdout, an error is one line on stderr.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from exporter.errors import BadArguments, BitbrushError

if TYPE_CHECKING:
    from exporter.generate import Request

ROOT = Path(__file__).resolve().parent
DIST = ROOT / "dist"
CACHE = ROOT / ".cache" / "sites"
CACHED_SITES = 8
BENCH = ROOT / ".cache" / "bench"


class Parser(argparse.ArgumentParser):
    """argparse that reports a mistake as one line."""

    def error(self, message: str) -> NoReturn:
        raise BadArguments(f"{self.prog}: {message}")


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,9})(?:[xX×](\d{1,9}))?", text)
    if not match:
        raise argparse.ArgumentTypeError(f"expected WIDTHxHEIGHT, such as 512x512, found {text!r}")
    return int(match[1]), int(match[2] or match[1])


def _whole(text: str) -> int:
    if not re.fullmatch(r"\d{1,18}", text):
        raise argparse.ArgumentTypeError(f"expected a whole number from 0, found {text!r}")
    return int(text)


def _layers(text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"\d{1,4}(,\d{1,4})*", text):
        raise argparse.ArgumentTypeError(f"expected layer numbers, such as 9,18,27, found {text!r}")
    return tuple(int(layer) for layer in text.split(","))


def make_parser() -> Parser:
    parser = Parser(prog="build.py", description="Bitbrush: a FLUX.2-klein checkpoint becomes a web page.")
    verbs = parser.add_subparsers(dest="verb", title="verbs", metavar="VERB")

    serve = verbs.add_parser("serve", help="build the site if needed, serve it, print its address")
    serve.add_argument("--port", type=_whole, default=3000, help="0 takes a free one (default 3000)")

    draw = verbs.add_parser("generate", help="make a picture with the built page in headless Chrome")
    prompts = draw.add_mutually_exclusive_group(required=True)
    prompts.add_argument("-p", "--prompt")
    prompts.add_argument(
        "--prompts", type=Path, metavar="FILE", help="JSON lines: id, prompt, maybe seed, width, height; -o is a folder"
    )
    draw.add_argument("--size", type=_size, help="WIDTHxHEIGHT, multiples of 16 (default: the model's own)")
    draw.add_argument("--seed", type=_whole, default=9909)
    draw.add_argument("--steps", type=_whole, help="default: the model's own, 4")
    draw.add_argument("--model", default="pocket", metavar="NAME|BUNDLE")
    draw.add_argument("--variant", help="binary or ternary (default: ternary if the model has it)")
    draw.add_argument("--adapter", choices=("auto", "software", "hardware"), default="auto")
    draw.add_argument(
        "--kernels", metavar="NAME[,NAME]", help="this variant of every kernel that has it (default: the page's)"
    )
    draw.add_argument("--all-features", action="store_true", help="with what browsers keep behind flags")
    draw.add_argument("-o", "--out", type=Path, help="default: out.png")
    draw.add_argument(
        "--latents-out", type=Path, help="write f32 [steps, image_tokens, channels] as .npy; with --prompts a folder"
    )
    draw.add_argument("--json", action="store_true", help="print the facts as JSON")

    export = verbs.add_parser("export", help="make a bundle of a checkpoint (needs the extra 'export')")
    source = export.add_mutually_exclusive_group(required=True)
    source.add_argument("checkpoint", nargs="?", help="a folder, or OWNER/NAME[@REVISION] on the Hugging Face Hub")
    source.add_argument("--synthetic", choices=("klein-4b",), help="random weights in this model's shapes instead")
    export.add_argument(
        "--weights", required=True, choices=("binary", "ternary", "keep"), metavar="binary|ternary|keep"
    )
    export.add_argument("-o", "--out", type=Path, required=True)
    export.add_argument("--encoder-bits", type=int, choices=(4, 8, 16), default=4)
    export.add_argument("--encoder-layers", type=_layers, default=None, help="default 9,18,27")
    export.add_argument(
        "--small-decoder",
        type=Path,
        metavar="PATH",
        help="folder of another VAE to decode with",
    )

    site = verbs.add_parser("site", help="make a site of some bundles")
    site.add_argument("bundles", nargs="+", type=Path, metavar="BUNDLE")
    site.add_argument("-o", "--out", type=Path, default=DIST)
    site.add_argument("--weights-url", help="https address of the folder that holds shards/")
    site.add_argument("--space", metavar="USER/NAME", help="also write the README.md of a static Space")

    from exporter.bench.arguments import add_arguments

    add_arguments(
        verbs.add_parser("bench", help="measure kernels and whole components in headless Chrome"), _size, _whole
    )

    verbs.add_parser("test", help="run the tests; further arguments go to pytest", add_help=False)
    return parser


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Arguments of one call; `rest` holds what goes on to pytest. Raises BadArguments."""
    parser = make_parser()
    arguments, rest = parser.parse_known_args(argv)
    if rest and arguments.verb != "test":
        parser.error(f"expected no further arguments, found {' '.join(rest)}")
    arguments.rest = rest
    return arguments


def build(arguments: argparse.Namespace) -> None:
    from exporter.website import build_site, embedded_bundles

    entries = build_site(embedded_bundles(), DIST)
    print(f"{DIST}: {', '.join(entry['id'] for entry in entries)}")


def serve(arguments: argparse.Namespace) -> None:
    from exporter.serve import make_server, url_of
    from exporter.website import build_site, embedded_bundles, read_stamp

    earlier = read_stamp(DIST)
    if not earlier or earlier["embedded"]:  # a site of other bundles is served as it is
        build_site(embedded_bundles(), DIST)
    server = make_server(DIST, arguments.port)
    print(f"Bitbrush is at {url_of(server)} (Ctrl+C ends it)", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print("ended", file=sys.stderr)


def _choose(model: str, variant: str | None) -> tuple[list[Path], dict[str, Any]]:
    """The bundles to build a site of (the embedded ones, or one folder) and the manifest to draw with."""
    from exporter.manifest import load
    from exporter.website import embedded_bundles

    bundles = embedded_bundles()
    manifests = [load(bundle) for bundle in bundles]
    names = sorted({manifest["name"] for manifest in manifests})
    if model not in names:
        if "/" not in model and "\\" not in model and not Path(model).exists():
            expected = " or ".join([*names, "the folder of a bundle"])
            raise BadArguments(f"--model: expected {expected}, found {model!r}")
        bundles = [Path(model)]
        manifests = [load(bundles[0])]
        model = manifests[0]["name"]
    variants = {manifest["variant"]: manifest for manifest in manifests if manifest["name"] == model}
    wanted = variant or ("ternary" if "ternary" in variants else next(iter(variants)))
    if wanted not in variants:
        raise BadArguments(f"--variant: expected {' or '.join(variants)}, found {wanted!r}")
    return bundles, variants[wanted]


def _cached_site(bundles: list[Path]) -> tuple[Path, list[dict[str, Any]]]:
    """The site of some bundles in the cache folder, which keeps the last few, and its list of models."""
    from exporter.website import SiteOptions, build_site, inputs_hash

    site = CACHE / inputs_hash(bundles, SiteOptions())[:16]
    entries = build_site(bundles, site)
    os.utime(site)
    for old in sorted(CACHE.glob("[0-9a-f]*"), key=lambda path: path.stat().st_mtime)[:-CACHED_SITES]:
        shutil.rmtree(old, ignore_errors=True)
    return site, entries


def _write(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_bytes(data)
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise BadArguments(f"{path}: expected a file that can be written, found {error.strerror or error}") from error


def generate(arguments: argparse.Namespace) -> None:
    if arguments.prompts:
        return generate_all(arguments)
    from exporter import generate as page

    out = arguments.out or Path("out.png")
    for path in (out, arguments.latents_out):
        if path and (path.is_dir() or not path.absolute().parent.is_dir()):
            raise BadArguments(f"{path}: expected a file in a folder that exists, found none")
    bundles, manifest = _choose(arguments.model, arguments.variant)
    prompt = os.fsencode(arguments.prompt).decode("utf-8", "replace")  # bytes that are no text stay harmless
    request = _request(arguments, manifest, prompt)
    page.check_request(request, manifest["sizes"])
    site, chosen = _site_for(bundles, manifest)
    wants_latents = arguments.latents_out is not None
    setup = page.Setup(arguments.kernels, arguments.all_features)
    picture = page.generate(site, chosen, request, latents=wants_latents, adapter=arguments.adapter, setup=setup)
    _write(out, picture.png)
    if picture.latents is not None:
        _write(arguments.latents_out, page.npy_bytes(picture.latents))
    facts = page.summary(picture, out)
    line = "{file}: {width}x{height}, seed {seed}, {steps} steps, {model} {variant}, {adapter}, {seconds[total]} s"
    print(json.dumps(facts, ensure_ascii=False, indent=1) if arguments.json else line.format(**facts))


def generate_all(arguments: argparse.Namespace) -> None:
    """`generate` with a file of prompts: one browser session, one file a line."""
    from exporter import batch
    from exporter.generate import Setup

    folders = {"-o": arguments.out, "--latents-out": arguments.latents_out}
    for option, folder in folders.items():
        missing = folder is None and option == "-o"
        if missing or (folder and folder.exists() and not folder.is_dir()):
            raise BadArguments(f"{option}: expected a folder for the pictures of --prompts, found {folder}")
    bundles, manifest = _choose(arguments.model, arguments.variant)
    jobs = batch.read_jobs(arguments.prompts, _request(arguments, manifest, ""), manifest["sizes"])
    site, chosen = _site_for(bundles, manifest)
    for folder in filter(None, folders.values()):
        folder.mkdir(parents=True, exist_ok=True)
    setup = Setup(arguments.kernels, arguments.all_features)
    summary = batch.draw_all(site, chosen, jobs, arguments.out, _write, arguments.adapter, setup, arguments.latents_out)
    line = "{folder}: {drawn} pictures drawn, {kept} kept, {model} {variant}"
    shown = line.format(folder=arguments.out, **summary)
    print(json.dumps(summary, ensure_ascii=False, indent=1) if arguments.json else shown)


def _request(arguments: argparse.Namespace, manifest: dict[str, Any], prompt: str) -> Request:
    """What the arguments ask of a model for a prompt."""
    from exporter.generate import Request

    width, height = arguments.size or manifest["sizes"]["default"]
    steps = manifest["schedule"]["steps"] if arguments.steps is None else arguments.steps
    return Request(prompt, width, height, steps, arguments.seed)


def _site_for(bundles: list[Path], manifest: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
    """The site of some bundles and its entry for the model of `manifest`."""
    from exporter.publish import site_id

    site, entries = _cached_site(bundles)
    return site, next(entry for entry in entries if entry["id"] == site_id(manifest))


def export(arguments: argparse.Namespace) -> None:
    from exporter import hub
    from exporter.bundle import export_bundle

    for needed in ("torch", "diffusers", "transformers", "onnxruntime"):
        if importlib.util.find_spec(needed) is None:
            raise BitbrushError(f"export: expected the Python package {needed}, found none: pip install -e '.[export]'")
    checkpoint, origin = arguments.checkpoint, {}
    with ExitStack() as opened:
        if arguments.synthetic:
            from exporter.synthetic import open_synthetic

            shapes = open_synthetic(arguments.synthetic, weights=arguments.weights, encoder_bits=arguments.encoder_bits)
            checkpoint = opened.enter_context(shapes)
        elif hub.is_id(checkpoint):
            with _bar("B") as progress:
                fetched = hub.fetch(checkpoint, progress=progress)
            checkpoint, origin = fetched.path, {"source": fetched.id, "commit": fetched.commit}
        with _bar("values") as progress:
            made = export_bundle(
                checkpoint,
                arguments.out,
                weights=arguments.weights,
                encoder_bits=arguments.encoder_bits,
                layers=arguments.encoder_layers,
                progress=progress,
                small_decoder=arguments.small_decoder,
                **origin,
            )
    for note in made.notes:
        print(note, file=sys.stderr)
    print(f"{made.folder}: {made.bytes / 1e6:.1f} MB of weights")


@contextmanager
def _bar(unit: str) -> Iterator[Callable[[str, int, int], None]]:
    """A bar on stderr, and what to call with (what, units done, units in all)."""
    from tqdm import tqdm

    with tqdm(unit=unit, unit_scale=True, disable=None) as bar:

        def show(what: str, done: int, total: int) -> None:
            if total != bar.total:  # another phase: its rate says nothing of this one's
                bar.reset(total)
            bar.set_description(what, refresh=False)
            bar.update(done - bar.n)

        yield show


def site(arguments: argparse.Namespace) -> None:
    from exporter.website import SiteOptions, build_site

    entries = build_site(arguments.bundles, arguments.out, SiteOptions(arguments.weights_url, arguments.space))
    print(f"{arguments.out}: {', '.join(entry['id'] for entry in entries)}")


def bench(arguments: argparse.Namespace) -> None:
    from exporter import bench as benches

    found = benches.run(benches.wanted(arguments), BENCH)
    print("\n".join(benches.lines_of(found)))
    if arguments.json:
        _write(arguments.json, benches.json_bytes(found))


def test(arguments: argparse.Namespace) -> int:
    return subprocess.run([sys.executable, "-m", "pytest", *arguments.rest], cwd=ROOT, check=False).returncode


VERBS = {
    None: build,
    "serve": serve,
    "generate": generate,
    "export": export,
    "site": site,
    "bench": bench,
    "test": test,
}


def _report(error: object, code: int) -> int:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    return code


def main(argv: list[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    try:
        arguments = parse(argv)
        return VERBS[arguments.verb](arguments) or 0
    except BitbrushError as error:
        return _report(error, error.exit_code)
    except OSError as error:
        return _report(error, 1)
    except KeyboardInterrupt:
        return _report("interrupted", 130)


if __name__ == "__main__":
    sys.exit(main())
