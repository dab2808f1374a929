"""Token ids and mask equal the Hugging Face tokenizer's for text of many scripts, whole or broken."""

import base64
import json
import random
import unicodedata
from functools import cache
from typing import Any

import pytest
from playwright.sync_api import Page
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tests.tiny import CORPUS, SPLIT

LENGTH = 64
PREFIX, SUFFIX = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]

# First and last code point of blocks; characters that Unicode does not assign are left out.
SCRIPTS = {
    "Latin": (0x41, 0x24F), "Greek": (0x370, 0x3FF), "Cyrillic": (0x400, 0x52F), "Hebrew": (0x5D0, 0x5F4),
    "Arabic": (0x620, 0x6FF), "Devanagari": (0x900, 0x97F), "Thai": (0xE01, 0xE5B), "Georgian": (0x10A0, 0x10FF),
    "Hangul": (0xAC00, 0xD7A3), "Kana": (0x3041, 0x30FF), "Han": (0x4E00, 0x9FFF), "Gothic": (0x10330, 0x1034A),
}  # fmt: skip
SPACES = [
    " ",
    "  ",
    "\n",
    "\r\n",
    "\t",
    "\u0085",
    "\u00a0",
    "\u2028",
    "\u3000",
    "\u200b",
    "\ufeff",
    " \n \n",
    "\x0b",
    "\x1c",
]
EMOJI = ["🍎", "👩‍🚀", "🏳️‍🌈", "🇫🇷", "👍🏽", "1️⃣", "❤️", "😀😀"]
ODDITIES = [
    "don't", "WE'LL", "it'S", "ſ's", "'ſ", "½", "Ⅷ", "٣٤", "१२", "x²", "e\u0301", "Å", "ﬁ", "가",
    "\u1100\u1161", "\x00", "\x7f",
    "<|im_end|>", "<|im_start|>system", "<think>", "</think>", "<|endoftext|", "<<|im_end|>>",
    "...", "!?", "«»", "——", "\\n",
]  # fmt: skip
BROKEN = ["\ud83d", "\ude00", "\ude00\ud83d", "a\ud800b", "\udfff\udfff", "🍎\ud83c"]


@cache
def trained() -> str:
    """tokenizer.json of a byte-level tokenizer of Qwen's kind, with a few hundred merges."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(SPLIT), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=900, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS * 3 + texts()[:500], trainer)
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.add_tokens([AddedToken("<think>", normalized=False), AddedToken("</think>", normalized=False)])
    return tokenizer.to_str()


def characters(script: str) -> list[str]:
    first, last = SCRIPTS[script]
    return [chr(code) for code in range(first, last + 1) if unicodedata.category(chr(code)) != "Cn"]


@cache
def texts() -> list[str]:
    """Some 2,300 strings, the same each time."""
    chance = random.Random(20)
    made = ["", " ", "\n", "\n\n", *SPACES, *EMOJI, *ODDITIES, *CORPUS]
    alphabets = {script: characters(script) for script in SCRIPTS}
    for script, letters in alphabets.items():
        for _ in range(120):
            words = ("".join(chance.choices(letters, k=chance.randint(1, 7))) for _ in range(chance.randint(1, 5)))
            made.append(chance.choice(SPACES[:3]).join(words))
        assert len(letters) > 20, script
    everything = [*SPACES, *EMOJI, *ODDITIES, *(letter for letters in alphabets.values() for letter in letters[:60])]
    while len(made) < 2300:
        made.append("".join(chance.choices(everything, k=chance.randint(1, 25))))
    return made


def well_formed(text: str) -> str:
    """Each half of a surrogate pair as U+FFFD, as JavaScript's toWellFormed does."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def browser_tokens(page: Page, prompts: list[str]) -> list[dict[str, Any]]:
    script = """async ([tokenizer, text, prompts]) => {
      const { createTokenizer } = await load("tokenizer");
      const tokenize = createTokenizer(JSON.parse(tokenizer), {}, text);
      const units = (encoded) => new Uint16Array(fromBase64(encoded).buffer);
      const textOf = (encoded) => Array.from(units(encoded), (unit) => String.fromCharCode(unit)).join("");
      return prompts.map((encoded) => {
        const { ids, mask, length } = tokenize(textOf(encoded));
        return { ids: [...ids], mask: [...mask], length };
      });
    }"""
    settings = {"prefix": PREFIX, "suffix": SUFFIX, "length": LENGTH, "pad_id": pad_id()}
    encoded = [base64.b64encode(prompt.encode("utf-16-le", "surrogatepass")).decode() for prompt in prompts]
    return page.evaluate(script, [trained(), settings, encoded])


def pad_id() -> int:
    return next(token["id"] for token in json.loads(trained())["added_tokens"] if token["content"] == SPECIAL[0])


def reference_tokens(prompts: list[str]) -> list[tuple[list[int], list[int]]]:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(trained()), pad_token=SPECIAL[0])
    wrapped = [PREFIX + prompt + SUFFIX for prompt in prompts]
    made = tokenizer(wrapped, padding="max_length", truncation=True, max_length=LENGTH)
    return list(zip(made["input_ids"], made["attention_mask"], strict=True))


def assert_same_tokens(page: Page, prompts: list[str], reference: list[str]) -> None:
    found, expected = browser_tokens(page, prompts), reference_tokens(reference)
    different = [
        (prompt, ours["ids"], ids)
        for prompt, ours, (ids, mask) in zip(prompts, found, expected, strict=True)
        if ours["ids"] != ids or ours["mask"] != mask
    ]
    assert not different, f"{len(different)} of {len(prompts)} differ, first: {different[0]!r}"


def test_tokens_equal_the_reference_in_all_scripts(calculator: Page) -> None:
    assert len(set(texts())) >= 2000
    assert_same_tokens(calculator, texts(), texts())


def test_half_surrogates_become_the_replacement_character(calculator: Page) -> None:
    prompts = BROKEN + [
        before + broken + after for before in ("", "a ", "火") for broken in BROKEN for after in ("", "\n", "é")
    ]
    assert all("\ufffd" in well_formed(prompt) for prompt in prompts)
    assert_same_tokens(calculator, prompts, [well_formed(prompt) for prompt in prompts])


def test_long_prompts_are_cut_on_the_right_and_short_ones_padded(calculator: Page) -> None:
    short, long = browser_tokens(calculator, ["a", "apple " * 200])
    assert short["length"] < LENGTH == len(short["ids"])
    assert short["mask"] == [1] * short["length"] + [0] * (LENGTH - short["length"])
    assert set(short["ids"][short["length"] :]) == {pad_id()}
    assert long["length"] > LENGTH == sum(long["mask"])


@pytest.mark.parametrize("broken", ["{}", '{"model": {"type": "Nonsense"}}', "[]"])
def test_a_broken_tokenizer_file_is_refused(calculator: Page, broken: str) -> None:
    script = """async (text) => {
      const { createTokenizer } = await load("tokenizer");
      return failure(() => createTokenizer(JSON.parse(text), {}, {}));
    }"""
    assert calculator.evaluate(script, broken)["code"] == "bad-bundle"
