"""How a prompt becomes token ids: the text around it, the length, the padding (manifest key `text`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from exporter.checkpoint import Checkpoint
from exporter.configs import text_rotary
from exporter.errors import BadCheckpoint

MAXIMUM = 512  # tokens that Flux2KleinPipeline feeds to the transformer at most

# Prompts that a template could treat in some special way; all must go in verbatim.
PROBES = (
    "",
    " ",
    "a red apple",
    "  spaces around  ",
    "two\nlines\n",
    "\n",
    "火箭，蓝色背景",
    "{{ prompt }} {% if %}",
    "<think>no</think>",
    "<tool_response>no</tool_response>",
    "<|im_end|>",
    "quote ' and \" and \\",
)


def text_settings(checkpoint: Checkpoint, layers: tuple[int, ...]) -> dict[str, Any]:
    """The manifest's `text`, read from the checkpoint's own tokenizer. Needs transformers.

    Raises BadCheckpoint if the tokenizer cannot be opened, has no padding token, does not fit the
    embedding, or has a template that is not fixed text around the prompt.
    """
    tokenizer = open_tokenizer(checkpoint.tokenizer_folder)
    config = checkpoint.configs["text_encoder"]
    if tokenizer.pad_token_id is None:
        raise BadCheckpoint("tokenizer/tokenizer_config.json: expected a pad_token, found none")
    largest = max(tokenizer.get_vocab().values())
    if largest >= config["vocab_size"]:
        raise BadCheckpoint(
            f"tokenizer: expected token ids below vocab_size {config['vocab_size']}"
            f" (text_encoder/config.json), found {largest}"
        )
    if tokenizer.padding_side != "right":
        raise BadCheckpoint(f"tokenizer: expected padding_side right, found {tokenizer.padding_side}")
    prefix, suffix = split_template(tokenizer)
    return {
        "tokenizer": "tokenizer",
        "prefix": prefix,
        "suffix": suffix,
        "length": int(min(MAXIMUM, tokenizer.model_max_length)),
        "pad_id": tokenizer.pad_token_id,
        "layers": list(layers),
        "features": len(layers) * config["hidden_size"],
        "rotary": text_rotary(checkpoint.configs),
    }


def open_tokenizer(folder: Path):
    """transformers' tokenizer of a local folder. Raises BadCheckpoint."""
    from transformers import Qwen2TokenizerFast

    try:
        return Qwen2TokenizerFast.from_pretrained(folder, local_files_only=True)
    except Exception as problem:  # the library raises many kinds for damaged files
        reason = (str(problem).splitlines() or [type(problem).__name__])[0]
        raise BadCheckpoint(f"tokenizer: expected files of a Qwen2 tokenizer, found: {reason}") from None


def render(tokenizer, prompt: str) -> str:
    """The text that Flux2KleinPipeline makes of a prompt."""
    messages = [{"role": "user", "content": prompt}]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, enable_thinking=False)


def split_template(tokenizer) -> tuple[str, str]:
    """(prefix, suffix) that the chat template puts around every prompt. Raises BadCheckpoint."""
    marker = "\ue000prompt\ue001"
    try:
        rendered = {prompt: render(tokenizer, prompt) for prompt in (marker, *PROBES)}
    except Exception as problem:  # no template, or one that jinja2 cannot run
        reason = (str(problem).splitlines() or [type(problem).__name__])[0]
        raise BadCheckpoint(f"tokenizer: expected a chat template, found: {reason}") from None
    pieces = rendered[marker].split(marker)
    if len(pieces) != 2:
        raise BadCheckpoint(
            f"tokenizer: expected a chat template with the prompt in it once, found it {len(pieces) - 1} times"
        )
    prefix, suffix = pieces
    for prompt, text in rendered.items():
        if text != prefix + prompt + suffix:
            raise BadCheckpoint(
                f"tokenizer: expected a chat template that is fixed text around the prompt,"
                f" found {text!r} for {prompt!r}"
            )
    return prefix, suffix
