"""The part of a site that does not depend on the models: pages, styles, scripts, vendored library."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from urllib.parse import urlsplit

import jinja2

from exporter.packages import ROOT, node_package

SOURCE = ROOT / "site"
COPIED = ("css", "js")
STYLESHEETS = ("css/tokens.css", "css/base.css", "css/studio.css")
ENTRY = "js/studio/main.js"
TOKENIZERS = "@huggingface/tokenizers"
# Downloads from the Hugging Face Hub are redirected to hosts under hf.co, which the policy must name too.
REDIRECTS = {"https://huggingface.co": ("https://*.hf.co",)}
_COMMENT = re.compile(r"^[ \t]*(?://.*|/\*(?:(?!\*/)[\s\S])*\*/[ \t]*)\n|/\*\* @type .*?\*/ ?", re.MULTILINE)
_INDENT = re.compile(r"^[ \t\n]+", re.MULTILINE)
# Of lines without comments, divisions, regular expressions and strings of other quotes: a string, or what may lose the
# spaces around it.
_PLAIN_LINE = re.compile(r"""^[^'`/\\\n]+$""", re.MULTILINE)
_PUNCTUATION = re.compile(r"""("[^"]*")| *([][{}(),;:=<>?&|*]) *""")
_IMPORT = re.compile(r"""^(?:import|export)\s*(?:[^"'();=]*\bfrom\s*)?["'](\.{1,2}/[^"']+)["']""", re.MULTILINE)


def content_security_policy(weights_url: str | None = None) -> str:
    """The page's policy: own files only, and the host of the weights where that is another one."""
    connect = ["'self'"]
    if weights_url:
        parts = urlsplit(weights_url)
        origin = f"{parts.scheme}://{parts.netloc}"
        connect += [origin, *REDIRECTS.get(origin, ())]
    return "; ".join(
        (
            "default-src 'none'",
            "script-src 'self'",
            "worker-src 'self'",
            "style-src 'self'",
            "img-src 'self' blob:",
            f"connect-src {' '.join(connect)}",
            "base-uri 'none'",
            "form-action 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types default",
        )
    )


def imported_modules(folder: Path, entry: str = ENTRY) -> list[str]:
    """Every module that `entry` imports, directly or not, as sorted paths relative to `folder`."""
    found: set[str] = set()
    waiting = [entry]
    while waiting:
        path = folder / waiting.pop()
        for name in _IMPORT.findall(path.read_text("utf-8")):
            target = (path.parent / name).resolve().relative_to(folder.resolve()).as_posix()
            if target not in found:
                found.add(target)
                waiting.append(target)
    return sorted(found)


def slimmed(text: str) -> str:
    """A script or style sheet of ours without comments of whole lines, types, indentation and empty lines.

    No string in it may span lines (a test sees to that).
    """
    return _INDENT.sub("", _COMMENT.sub("", text))


def tightened(script: str) -> str:
    """A script without the spaces around punctuation, on lines with nothing but a script's words and plain strings."""
    return _PLAIN_LINE.sub(lambda line: _PUNCTUATION.sub(r"\1\2", line[0]), script)


def vendor(out: Path) -> None:
    """Copy the tokenizer library and its licence into js/vendor/."""
    package = node_package(TOKENIZERS)
    folder = out / "js" / "vendor"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(package / "dist" / "tokenizers.min.mjs", folder / "tokenizers.js")
    shutil.copyfile(package / "LICENSE", folder / "tokenizers.LICENSE.txt")


def write_pages(out: Path, *, weights_url: str | None = None) -> None:
    """Write everything but models, kernels and shards into the folder `out`.

    All addresses in it are relative, so the site works from any folder of a server.
    """
    for name in COPIED:
        shutil.copytree(SOURCE / name, out / name, ignore=shutil.ignore_patterns("*.d.ts", "bench"))
    for path in [*(out / "js").rglob("*.js"), *(out / "css").rglob("*.css")]:
        text = slimmed(path.read_text("utf-8"))
        path.write_text(tightened(text) if path.suffix == ".js" else text, encoding="utf-8", newline="\n")
    shutil.copyfile(SOURCE / "icon.svg", out / "icon.svg")
    vendor(out)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(SOURCE / "templates"),
        undefined=jinja2.StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    facts = {
        "csp": content_security_policy(weights_url),
        "stylesheets": STYLESHEETS,
        "modules": imported_modules(out),
    }
    for name in environment.list_templates(extensions=["j2"]):
        text = environment.get_template(name).render(facts)
        (out / name.removesuffix(".j2")).write_text(text, encoding="utf-8", newline="\n")
