"""Stage 7 (CPU): make complete diffusers folders from the saved pieces, and a contact sheet of each.

    python -m training.assemble --data DIR --pieces DIR --models DIR [--sheet]

Writes models/{teacher,binary,ternary}. The text encoder is stored as float32 so that its 4-bit values
(code * scale + offset) are exact; rounding them again gives the same codes.
"""

import argparse
from pathlib import Path

import torch
from diffusers import Flux2KleinPipeline

from .common import load_pieces
from .model import TEXT_LAYERS, TEXT_LENGTH, build_text_encoder, build_transformer, build_vae, save_pipeline
from .quantize import final_text_state, unpack_state
from .sheet import save_grid
from .teacher import PROMPTS, load_tokenizer


def contact_sheet(folder: Path, path: Path) -> None:
    """Two prompts a row, seeds 0..3 each, drawn by the stock pipeline."""
    pipeline = Flux2KleinPipeline.from_pretrained(str(folder))
    pipeline.set_progress_bar_config(disable=True)
    images = []
    for prompt in PROMPTS:
        for seed in range(4):
            image = pipeline(
                prompt=prompt,
                height=256,
                width=256,
                num_inference_steps=4,
                max_sequence_length=TEXT_LENGTH,
                text_encoder_out_layers=TEXT_LAYERS,
                generator=torch.Generator().manual_seed(seed),
                output_type="pt",
            ).images
            images.append(image * 2 - 1)
    save_grid(torch.cat(images), path, columns=8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name in ("data", "pieces", "models"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--kinds", nargs="+", default=["teacher", "binary", "ternary"])
    parser.add_argument("--sheet", action="store_true", help="also draw models/<kind>.png")
    args = parser.parse_args()
    tokenizer = load_tokenizer(args.data)
    vae = build_vae()
    vae.load_state_dict(load_pieces(args.pieces, "vae"))
    text_encoder = build_text_encoder(tokenizer.pad_token_id, tokenizer.eos_token_id)
    unused = {name: torch.zeros_like(t) for name, t in text_encoder.state_dict().items() if "layers.5." in name}
    state = unused | load_pieces(args.pieces, "text")
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    text_encoder.load_state_dict(final_text_state(state))
    for kind in args.kinds:
        transformer = build_transformer()
        if kind == "teacher":
            transformer.load_state_dict(load_pieces(args.pieces, "transformer"))
        else:
            transformer.load_state_dict(unpack_state(load_pieces(args.pieces, kind)))
        save_pipeline(args.models / kind, vae, text_encoder, tokenizer, transformer)
        print(f"wrote {args.models / kind}")
        if args.sheet:
            contact_sheet(args.models / kind, args.models / f"{kind}.png")


if __name__ == "__main__":
    main()
