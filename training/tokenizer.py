"""The prompt tokenizer: byte-level BPE with Qwen2's rules and a minimal chat template."""

from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import Qwen2TokenizerFast

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEMPLATE = "{% for message in messages %}{{ '" + START + "' + message['content'] + '" + END + "' }}{% endfor %}"


def render(prompt: str) -> str:
    """The text that the chat template makes of a prompt."""
    return START + prompt + END


def train_tokenizer(texts: Iterable[str], vocab_size: int, max_length: int) -> Qwen2TokenizerFast:
    """Train on captions. All 256 bytes are tokens, so every prompt can be written.

    The special tokens stand after the ordinary ones, as in Qwen2, and count towards `vocab_size`.
    """
    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    specials = [PAD, START, END]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(specials),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    return Qwen2TokenizerFast(
        tokenizer_object=backend,
        unk_token=None,
        bos_token=None,
        eos_token=END,
        pad_token=PAD,
        padding_side="right",
        model_max_length=max_length,
        chat_template=TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def encode_batch(tokenizer: Qwen2TokenizerFast, prompts: list[str], length: int) -> list[list[int]]:
    """Rendered, truncated and padded token ids, `length` a prompt."""
    texts = [render(prompt) for prompt in prompts]
    return tokenizer(texts, padding="max_length", truncation=True, max_length=length)["input_ids"]


def load_tokenizer(data: Path) -> Qwen2TokenizerFast:
    """The tokenizer in a data folder."""
    return Qwen2TokenizerFast.from_pretrained(str(data / "tokenizer"))
