"""The site that is built: the same bytes each time, nobody else's addresses, whole or not at all."""

from __future__ import annotations

import html
import json
import re
import shutil
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from exporter import website
from exporter.errors import BadArguments, BadBundle
from exporter.manifest import COMPONENTS
from exporter.packages import ROOT, node_package
from exporter.pages import content_security_policy, imported_modules, slimmed, tightened
from exporter.serve import serving
from exporter.website import SiteOptions, build_site, inputs_hash, read_stamp
from webgpu_kernels import render_all
from webgpu_kernels.operands import CONVERSIONS

WEIGHTS_URL = "https://huggingface.co/someone/weights/resolve/0123abc/"


@pytest.fixture(scope="module")
def bundle(exported) -> Path:
    return exported("two-heads-ternary")


@pytest.fixture(scope="module")
def site(bundle, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("site") / "dist"
    build_site([bundle], out)
    return out


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def policy(page: str) -> str:
    return html.unescape(re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', page)[1])


def test_the_same_inputs_give_the_same_bytes(site, bundle, tmp_path):
    build_site([bundle], tmp_path / "again")
    assert contents(tmp_path / "again") == contents(site)


def test_the_tree_is_as_designed(site, bundle):
    files = set(contents(site))
    manifest = json.loads((bundle / "manifest.json").read_text("utf-8"))
    folder = f"models/{manifest['name']}-ternary"
    expected = {
        "index.html", "icon.svg", "build.json", "css/tokens.css", "js/studio/main.js", "js/runtime/worker.js",
        "js/vendor/tokenizers.js", "js/vendor/tokenizers.LICENSE.txt", "kernels/index.json", "models/index.json",
        f"{folder}/manifest.json", f"{folder}/tokenizer/tokenizer.json", f"{folder}/tokenizer/tokenizer_config.json",
        *(f"{folder}/{name}.plan.json" for name in COMPONENTS),
        *(shard["file"] for shard in manifest["shards"]),
    }  # fmt: skip
    assert expected <= files
    assert not [name for name in files if name.endswith((".j2", ".d.ts", ".onnx", ".py"))]
    served = json.loads((site / folder / "manifest.json").read_text("utf-8"))
    counted = {name: served[name] for name in ("memory", "converted")}
    assert served == {**manifest, "shards_url": "../../", **counted}


def test_the_index_gives_the_bytes_that_a_first_picture_fetches(site):
    (entry,) = json.loads((site / "models" / "index.json").read_text("utf-8"))
    folder = (site / "models" / entry["manifest"]).parent
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    tensors = manifest["components"]["modulation"]["tensors"].values()
    optional = {manifest["shards"][part["shard"]]["file"] for tensor in tensors for part in tensor["parts"]}
    needed = {f"shards/{path.name}" for path in (site / "shards").iterdir()} - optional
    files = [*folder.rglob("*.json"), *(site / file for file in needed)]
    assert entry["bytes"] == sum(path.stat().st_size for path in files)
    assert entry["other_bytes"] == sum((site / file).stat().st_size for file in optional) > 0
    assert entry["id"] == folder.name and entry["channels"] > 0 and entry["sizes"]["multiple"] == 16


def test_every_kernel_of_the_plans_is_there_in_all_variants(site):
    index = json.loads((site / "kernels" / "index.json").read_text("utf-8"))
    found = [(entry["kernel"], json.dumps(entry["options"], sort_keys=True), entry["variant"]) for entry in index]
    assert len(set(found)) == len(found)
    wanted = set()
    plans = [json.loads(path.read_text("utf-8")) for path in site.glob("models/*/*.plan.json")]
    names = ("expand_trits", {}), ("compare", {}), *CONVERSIONS.values()
    others = {"dispatches": [{"kernel": name, "options": options} for name, options in names]}
    for plan in [*plans, others]:
        for dispatch in plan["dispatches"]:
            for rendered in render_all(dispatch["kernel"], dispatch["options"]):
                wanted.add((rendered.kernel, json.dumps(rendered.options, sort_keys=True), rendered.variant.name))
                assert (site / "kernels" / rendered.file).read_text("utf-8") == rendered.wgsl
    assert set(found) == wanted
    assert {path.name for path in (site / "kernels").glob("*.wgsl")} == {entry["file"] for entry in index}


def test_a_site_without_trits_has_no_kernel_to_expand_them(exported, tmp_path):
    build_site([exported("one-head")], tmp_path / "dist")
    index = json.loads((tmp_path / "dist" / "kernels" / "index.json").read_text("utf-8"))
    assert index and "expand_trits" not in {entry["kernel"] for entry in index}


def test_no_file_names_another_host(site):
    # Namespaces and schema names are no addresses: nothing is fetched from them.
    allowed = ("http://www.w3.org/2000/svg", "http://localhost")
    for name, data in contents(site).items():
        if name.endswith((".html", ".css", ".js", ".svg", ".wgsl")) and not name.startswith("js/vendor/"):
            urls = re.findall(r"(?:https?:)?//[\w-]+\.[\w.-]+[^\s\"'`)]*|https?://[^\s\"'`)]+", data.decode())
            assert [url for url in urls if not url.startswith(allowed)] == [], name


def test_no_file_shows_where_it_was_built(site, bundle):
    for name, data in contents(site).items():
        if not name.endswith(".safetensors"):
            for place in (ROOT, bundle.parent, Path.home()):
                assert str(place).encode() + b"/" not in data, name


def test_every_address_in_the_page_is_relative_and_exists(site):
    page = (site / "index.html").read_text("utf-8")
    addresses = re.findall(r'(?:href|src)="([^"]+)"', page)
    assert "js/studio/main.js" in addresses
    for address in addresses:
        assert not address.startswith(("/", "http")) and (site / address).is_file(), address


def test_the_policy_allows_own_files_only(site):
    page = (site / "index.html").read_text("utf-8")
    directives = dict(part.split(" ", 1) for part in policy(page).split("; "))
    assert directives["default-src"] == "'none'" and directives["script-src"] == "'self'"
    assert directives["connect-src"] == "'self'" and directives["require-trusted-types-for"] == "'script'"
    assert "unsafe" not in policy(page) and "*" not in policy(page)
    assert page.index("Content-Security-Policy") < min(page.index("<link"), page.index("<script"))
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=", page)


def test_the_policy_names_the_host_of_the_weights():
    assert "connect-src 'self' https://example.org:8443;" in content_security_policy("https://example.org:8443/a/b/")
    assert "connect-src 'self' https://huggingface.co https://*.hf.co;" in content_security_policy(WEIGHTS_URL)


def test_the_page_weighs_little(site):
    page = re.compile(r"index\.html|icon\.svg|(css|js)/.+\.(css|js)")
    sizes = {name: len(data) for name, data in contents(site).items() if page.fullmatch(name)}
    assert len(sizes) > 20 and sum(sizes.values()) < 200_000


def test_scripts_lose_comments_types_and_indentation_and_nothing_else():
    script = (
        "// What it is.\n\n/**\n * @param {string} a\n */\nexport const f = (a) =>\n  /** @type {any} */ (a);  // b\n"
    )
    script += "    // why\n  const url = `https://x`; /* c */\n/** @type {d} */\nlet d;\n"
    kept = "export const f = (a) =>\n(a);  // b\nconst url = `https://x`; /* c */\nlet d;\n"
    assert slimmed(script) == kept


def test_scripts_lose_spaces_around_punctuation_where_no_string_can_be():
    script = "const f = ({ a, b }) => a[0] <= b ? +a - -b : typeof b;\nlet s = `a , b`; // x = y\n"
    kept = "const f=({a,b})=>a[0]<=b?+a - -b:typeof b;\nlet s = `a , b`; // x = y\n"
    script += 'return [ ...a, "b : c" ];\n'
    kept += 'return[...a,"b : c"];\n'
    assert tightened(script) == kept


def test_no_string_of_a_served_script_spans_lines(site):
    for path in (site / "js").glob("[!v]*/*.js"):
        for line in path.read_text("utf-8").splitlines():
            assert line.count("`") % 2 == 0 and not line.endswith("\\"), f"{path.name}: {line}"


def test_modules_are_preloaded_that_the_page_imports(tmp_path):
    for name, text in {
        "js/studio/main.js": 'import "./a.js";\nimport {\n  b,\n} from "../runtime/b.js";\nnew Worker("./w.js");\n',
        "js/studio/a.js": 'export function a() {\n  return "./no.js";\n}\nexport { c } from "./c.js";\n',
        "js/studio/c.js": "export const c = 1;\n",
        "js/runtime/b.js": '// import "./not.js"\nexport const b = 2;\n',
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert imported_modules(tmp_path) == ["js/runtime/b.js", "js/studio/a.js", "js/studio/c.js"]


def test_weights_elsewhere_and_the_readme_of_a_space(bundle, tmp_path):
    build_site([bundle], tmp_path / "space", SiteOptions(WEIGHTS_URL, "someone/pictures"))
    site = tmp_path / "space"
    assert not (site / "shards").exists()
    (manifest,) = site.glob("models/*/manifest.json")
    assert json.loads(manifest.read_text("utf-8"))["shards_url"] == WEIGHTS_URL
    assert "connect-src 'self' https://huggingface.co" in policy((site / "index.html").read_text("utf-8"))
    _, settings, _ = (site / "README.md").read_text("utf-8").split("---\n")
    values = dict(line.split(": ", 1) for line in settings.splitlines())
    assert json.loads(values["title"]) == "pictures" and json.loads(values["sdk"]) == "static"
    assert json.loads(values["app_file"]) == "index.html" and json.loads(values["models"]) == ["someone/weights"]
    assert len(json.loads(values["short_description"])) <= 60


def test_two_bundles_share_their_shards(bundle, tmp_path):
    twin = shutil.copytree(bundle, tmp_path / "twin")
    manifest = json.loads((twin / "manifest.json").read_text("utf-8"))
    (twin / "manifest.json").write_text(json.dumps({**manifest, "name": "twin"}), encoding="utf-8")
    entries = build_site([bundle, twin], tmp_path / "site")
    assert [entry["name"] for entry in entries] == [manifest["name"], "twin"]
    assert len(list((tmp_path / "site" / "shards").iterdir())) == len({shard["sha256"] for shard in manifest["shards"]})
    with pytest.raises(BadBundle, match="found a second one"):
        build_site([bundle, bundle], tmp_path / "double")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["site", "twin"]


def test_a_name_that_leaves_its_folder_is_refused(bundle, tmp_path):
    manifest = json.loads((bundle / "manifest.json").read_text("utf-8"))
    evil = shutil.copytree(bundle, tmp_path / "evil")
    for change in (
        {"name": "../up"},
        {"variant": "a/b"},
        {"text": {**manifest["text"], "tokenizer": "../up"}},
    ):
        (evil / "manifest.json").write_text(json.dumps({**manifest, **change}), encoding="utf-8")
        with pytest.raises(BadBundle, match="expected letters|expected a folder name"):
            build_site([evil], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_site_is_built_anew_only_when_something_changed(bundle, tmp_path, monkeypatch):
    out = tmp_path / "dist"
    first = build_site([bundle], out)
    monkeypatch.setattr(website, "_write_site", lambda *_: pytest.fail("built again"))
    assert build_site([bundle], out) == first
    assert read_stamp(out) == {"inputs": inputs_hash([bundle], SiteOptions()), "embedded": False}
    monkeypatch.undo()
    other = SiteOptions(WEIGHTS_URL)
    assert inputs_hash([bundle], other) != inputs_hash([bundle], SiteOptions())
    build_site([bundle], out, other)
    assert not (out / "shards").exists()


def test_an_earlier_site_survives_a_build_that_fails(bundle, tmp_path, monkeypatch):
    out = tmp_path / "dist"
    build_site([bundle], out)
    before = contents(out)

    def fail(*_):
        raise BadBundle("no kernels today")

    monkeypatch.setattr(website, "write_kernels", fail)
    with pytest.raises(BadBundle):
        build_site([bundle], out, SiteOptions(WEIGHTS_URL))
    assert contents(out) == before and [path.name for path in tmp_path.iterdir()] == ["dist"]


def test_a_folder_of_something_else_is_never_replaced(bundle, tmp_path):
    (tmp_path / "mine.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(BadArguments, match="an earlier site"):
        build_site([bundle], tmp_path)
    assert (tmp_path / "mine.txt").read_text("utf-8") == "mine"


def test_no_bundle_at_all_is_refused(tmp_path):
    with pytest.raises(BadArguments, match="at least one"):
        build_site([], tmp_path / "out")


def test_the_server_names_media_types_and_lists_no_folder(site):
    with serving(site) as url:
        expected = {
            "": "text/html", "js/studio/main.js": "text/javascript", "kernels/index.json": "application/json",
            "css/base.css": "text/css", "icon.svg": "image/svg+xml",
        }  # fmt: skip
        for name, kind in expected.items():
            with urllib.request.urlopen(url + name) as answer:
                assert answer.headers["Content-Type"].split(";")[0] == kind
                assert answer.headers["X-Content-Type-Options"] == "nosniff"
        for missing in ("js/", "nothing.js", "../pyproject.toml"):
            with pytest.raises(urllib.error.HTTPError) as caught:
                urllib.request.urlopen(url + missing)
            assert caught.value.code == 404


def test_the_vendored_library_is_the_pinned_package(site):
    package = node_package("@huggingface/tokenizers")
    assert json.loads((package / "package.json").read_text("utf-8"))["version"] == "0.2.0"
    source = (package / "dist" / "tokenizers.min.mjs").read_bytes()
    assert (site / "js" / "vendor" / "tokenizers.js").read_bytes() == source
