"""A diffusers folder with tiny random networks of training/model.py, made in a second."""

from pathlib import Path

import torch

from tests.test_pocket_eval import THINGS
from training import model
from training.eval import prompts
from training.tokenizer import train_tokenizer


def save_tiny_pocket(folder: Path) -> None:
    torch.manual_seed(0)
    tokenizer = train_tokenizer([prompt.text for prompt in prompts.build(THINGS, 8)], 400, model.TEXT_LENGTH)
    text_encoder = model.build_text_encoder(tokenizer.pad_token_id, tokenizer.eos_token_id, tiny=True)
    networks = model.build_vae(tiny=True), text_encoder, tokenizer, model.build_transformer(tiny=True)
    model.save_pipeline(folder, *networks)
