"""Text settings: what surrounds a prompt, how long it is, and tokenizers that cannot be used."""

import json
import shutil
from pathlib import Path

import pytest

from exporter.checkpoint import Checkpoint
from exporter.errors import BadCheckpoint
from exporter.prompt import text_settings
from tests.tiny import make_pipeline

LAYERS = (1, 2, 3)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return make_pipeline(tmp_path_factory.mktemp("prompt") / "tiny", double=0, single=1)


def refusal(action) -> str:
    with pytest.raises(BadCheckpoint) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message and "expected" in message
    return message


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (None, "expected a chat template"),
        ("{% for m in messages %}{{ m.content.strip() }}!{% endfor %}", "fixed text around the prompt"),
        ("{% for m in messages %}{{ m.content + m.content }}{% endfor %}", "found it 2 times"),
        ("hello", "found it 0 times"),
        (
            "{% for m in messages %}{{ raise_exception('no') }}{% endfor %}",
            "expected a chat template, found: no",
        ),
    ],
)
def test_template_that_is_not_fixed_text_is_refused(checkpoint, tmp_path, template, words):
    folder = shutil.copytree(checkpoint, tmp_path / "t")
    (folder / "tokenizer/chat_template.jinja").unlink()
    if template is not None:
        (folder / "tokenizer/chat_template.jinja").write_text(template)
    assert words in refusal(lambda: text_settings(Checkpoint(folder), LAYERS))


@pytest.mark.parametrize(("length", "expected"), [(48, 48), (512, 512), (131072, 512), (int(1e30), 512)])
def test_text_length_is_the_tokenizers_but_at_most_512(checkpoint, tmp_path, length, expected):
    folder = shutil.copytree(checkpoint, tmp_path / "t")
    file = folder / "tokenizer/tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "model_max_length": length}))
    assert text_settings(Checkpoint(folder), LAYERS)["length"] == expected


def test_tokenizer_that_does_not_fit_is_refused(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / "t")
    opened = Checkpoint(folder)
    opened.configs["text_encoder"]["vocab_size"] = 300
    assert "token ids below vocab_size 300" in refusal(lambda: text_settings(opened, LAYERS))
    (folder / "tokenizer/tokenizer.json").write_text("{}")
    assert "expected files of a Qwen2 tokenizer" in refusal(lambda: text_settings(opened, LAYERS))
