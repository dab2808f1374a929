"""Shards: checked, fetched again when wrong, kept in the cache, and every failure has its code."""

import base64
import hashlib
from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Page, Route

DATA = bytes(range(256)) * 40
SHA256 = hashlib.sha256(DATA).hexdigest()
WRONG = DATA[:5000] + b"!" + DATA[5001:]

SETUP = """
globalThis.openSource = async (sha256, bytes) => {
  const { createShardSource } = await load("shards");
  const shard = { file: "shards/x.safetensors", bytes, sha256 };
  return createShardSource([shard], () => new URL("shards/x.safetensors", location.href).href);
};
globalThis.fetchShard = async (sha256, bytes) => {
  const source = await openSource(sha256, bytes);
  const progress = [];
  const error = await failure(async () => {
    globalThis.shardBytes = await source.get(0, { onReceived: (received) => progress.push(received) });
  });
  return { error, progress, data: error ? null : toBase64(shardBytes) };
};
null; // Playwright would call a function that a script ends with
"""


class Server:
    """Answers requests for the shard one after another; the last answer stands for all that follow."""

    def __init__(self, page: Page, *answers: Callable[[Route], None]) -> None:
        self.answers, self.asked = list(answers), 0
        page.route("**/shards/*", self.handle)

    def handle(self, route: Route) -> None:
        answer = self.answers[min(self.asked, len(self.answers) - 1)]
        self.asked += 1
        answer(route)


def body(data: bytes, status: int = 200) -> Callable[[Route], None]:
    return lambda route: route.fulfill(status=status, body=data, content_type="application/octet-stream")


def drop(route: Route) -> None:
    route.abort("connectionreset")


def fetch(page: Page) -> dict[str, Any]:
    page.evaluate(SETUP)
    return page.evaluate("([sha256, bytes]) => fetchShard(sha256, bytes)", [SHA256, len(DATA)])


def test_a_good_shard_arrives_once_and_then_comes_from_the_cache(page: Page) -> None:
    server = Server(page, body(DATA))
    first, second = fetch(page), fetch(page)
    assert base64.b64decode(first["data"]) == base64.b64decode(second["data"]) == DATA
    assert server.asked == 1
    for progress in (first["progress"], second["progress"]):
        assert progress == sorted(progress)
        assert progress[-1] == len(DATA)


@pytest.mark.parametrize(
    "bad", [body(WRONG), body(DATA[:-1]), body(DATA + b"!"), body(b"<html>"), drop, body(b"", 503)]
)
def test_one_bad_answer_is_forgiven(page: Page, bad: Callable[[Route], None]) -> None:
    server = Server(page, bad, body(DATA))
    assert base64.b64decode(fetch(page)["data"]) == DATA
    assert server.asked == 2


@pytest.mark.parametrize(
    ("bad", "code", "said"),
    [
        (body(WRONG), "hash-mismatch", f"expected SHA-256 {SHA256}, found"),
        (body(DATA[:-1]), "hash-mismatch", f"expected {len(DATA)} bytes, found {len(DATA) - 1}"),
        (body(DATA + b"!"), "hash-mismatch", "found more"),
        (body(b"", 404), "network", "404"),
        (drop, "network", "shards/x.safetensors"),
    ],
)
def test_a_second_bad_answer_is_an_error(page: Page, bad: Callable[[Route], None], code: str, said: str) -> None:
    server = Server(page, bad)
    error = fetch(page)["error"]
    assert error["code"] == code
    assert said in error["message"]
    assert error["hint"]
    assert server.asked == 2
    server.answers = [body(DATA)]
    assert base64.b64decode(fetch(page)["data"]) == DATA  # nothing wrong was kept


def test_a_corrupt_cache_entry_is_dropped_and_fetched_again(page: Page) -> None:
    server = Server(page, body(DATA))
    fetch(page)
    page.evaluate(
        """async (sha256) => {
          const cache = await caches.open("bitbrush-shards");
          const [key] = await cache.keys();
          if (!key.url.includes(sha256)) throw new Error(key.url);
          const bytes = new Uint8Array(await (await cache.match(key)).arrayBuffer());
          bytes[77] ^= 1;
          await cache.put(key, new Response(bytes));
        }""",
        SHA256,
    )
    assert base64.b64decode(fetch(page)["data"]) == DATA
    assert server.asked == 2
    fetch(page)
    assert server.asked == 2


def test_without_a_cache_shards_still_arrive(page: Page) -> None:
    server = Server(page, body(DATA))
    page.evaluate("() => { caches.open = () => Promise.reject(new DOMException('denied', 'SecurityError')); }")
    assert base64.b64decode(fetch(page)["data"]) == DATA
    fetch(page)
    assert server.asked == 2


def test_cancel_stops_a_download_at_once(page: Page) -> None:
    Server(page, lambda route: None)  # never answers
    page.evaluate(SETUP)
    error = page.evaluate(
        """async ([sha256, bytes]) => {
          const source = await openSource(sha256, bytes);
          const controller = new AbortController();
          setTimeout(() => controller.abort(), 50);
          return failure(() => source.get(0, { signal: controller.signal }));
        }""",
        [SHA256, len(DATA)],
    )
    assert error["code"] == "aborted"
