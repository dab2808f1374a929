"""Last stage (CPU): make complete diffusers folders from the saved pieces.

    python -m training.assemble --data DIR --pieces DIR [DIR...] --models DIR

Writes models/{dense,binary,ternary}; a piece is taken from the first of the folders that has it. The text
encoder is stored as float32 so that its 4-bit values (code * scale + offset) are exact; rounding them again
gives the same codes.
"""

import argparse
from pathlib import Path

import torch

from .model import build_text_encoder, build_transformer, build_vae, save_pipeline
from .quantize import final_text_state, unpack_state, unpack_text
from .storage import load_pieces, piece_notes
from .tokenizer import load_tokenizer


def first_pieces(folders: list[Path], stem: str) -> dict[str, torch.Tensor]:
    """The pieces of `stem` in the first folder that has them."""
    for folder in folders:
        if piece_notes(folder, stem) is not None:
            return load_pieces(folder, stem)
    raise SystemExit(f"expected {stem}-0.safetensors in one of {', '.join(map(str, folders))}, found none")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--pieces", type=Path, nargs="+", required=True)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--kinds", nargs="+", default=["dense", "binary", "ternary"])
    parser.add_argument("--tiny", action="store_true", help="the pieces are of a dry run")
    args = parser.parse_args()
    tokenizer = load_tokenizer(args.data)
    vae = build_vae(args.tiny)
    vae.load_state_dict(first_pieces(args.pieces, "vae"))
    text_encoder = build_text_encoder(tokenizer.pad_token_id, tokenizer.eos_token_id, args.tiny)
    unused = {name: torch.zeros_like(t) for name, t in text_encoder.state_dict().items() if "layers.5." in name}
    state = unused | unpack_text(first_pieces(args.pieces, "text"))
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    text_encoder.load_state_dict(final_text_state(state))
    for kind in args.kinds:
        transformer = build_transformer(args.tiny)
        pieces = first_pieces(args.pieces, kind)
        transformer.load_state_dict(pieces if kind in ("dense", "teacher") else unpack_state(pieces))
        save_pipeline(args.models / kind, vae, text_encoder, tokenizer, transformer)
        print(f"wrote {args.models / kind}")


if __name__ == "__main__":
    main()
