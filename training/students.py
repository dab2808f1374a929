"""Stage 6: train a binary or ternary student that needs four steps and no guidance.

    python -m training.students --kind binary|ternary --data DIR --run DIR [--out DIR]

The student starts from the teacher and learns, at each of the sampler's four noise levels, the one velocity
that carries the teacher's state to the teacher's state at the next level (the regression of "Progressive
Distillation for Fast Sampling of Diffusion Models", arXiv 2202.00512, on guided trajectories as in "On
Distillation of Guided Diffusion Models", arXiv 2210.03142). Its packed linears are rounded in every
forward pass, as BitNet does (arXiv 2402.17764). The text encoder is the teacher's and stays fixed.
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F

from .common import Budget, Log, learning_rate, mixed_precision, save_pieces, set_rate
from .flow import Velocity, pipeline_sigmas
from .model import build_text_encoder, build_transformer, encode_prompt
from .quantize import final_transformer_state, pack_state, quantize_transformer
from .teacher import load_tokenizer, load_vae, prompt_sheet

STEP_SHARES = (0.16, 0.18, 0.24, 0.42)  # how often each of the four steps is trained


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kind", choices=("binary", "ternary"), required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--out", type=Path, help="also save float16 pieces and a picture here")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--minutes", type=float, default=4.4)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rate", type=float, default=8e-4)
    parser.add_argument("--log-every", type=int, default=200)
    parser.add_argument("--seed", type=int, default=3)
    args = parser.parse_args()
    torch.set_float32_matmul_precision("high")
    torch.manual_seed(args.seed)
    device, log = args.device, Log(args.run / "log.jsonl")
    tokenizer = load_tokenizer(args.data)
    final = torch.load(args.run / "teacher-final.pt", map_location=device)
    rollouts = torch.load(args.run / "rollouts.pt")
    states, tokens = rollouts["states"].to(device), rollouts["tokens"].to(device)
    text_encoder = build_text_encoder(tokenizer.pad_token_id, tokenizer.eos_token_id).to(device).eval()
    text_encoder.load_state_dict(final["text"])
    transformer = build_transformer().to(device)
    transformer.load_state_dict(final["transformer"])
    quantize_transformer(transformer, args.kind)
    velocity = Velocity(transformer, args.compile)
    if args.compile:
        for layer in text_encoder.model.layers:
            layer.compile(dynamic=False)
    optimizer = torch.optim.AdamW(
        transformer.parameters(), lr=0, betas=(0.9, 0.99), weight_decay=0.0, fused=device == "cuda"
    )
    sigmas = torch.tensor(pipeline_sigmas(), device=device)
    shares = torch.tensor(STEP_SHARES, device=device)
    budget, step = Budget(args.minutes), 0
    while budget.progress < 1:
        rows = torch.randint(len(states), (args.batch,), device=device)
        stage = torch.multinomial(shares, args.batch, replacement=True)
        high, low = sigmas[stage], sigmas[stage + 1]
        now, after = states[rows, stage].float(), states[rows, stage + 1].float()
        target = (after - now) / (low - high)[:, None, None, None]
        with torch.no_grad(), mixed_precision(device):
            text = encode_prompt(text_encoder, tokens[rows].long(), tokenizer.pad_token_id)
        set_rate(optimizer, learning_rate(args.rate, step, budget.progress, warmup=100))
        loss = F.mse_loss(velocity(now, high, text), target)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(transformer.parameters(), 1.0)
        optimizer.step()
        if step % args.log_every == 0:
            log(stage=args.kind, step=step, loss=loss.item(), seconds=budget.seconds)
        budget.begin()
        step += 1
    log(stage=args.kind, step=step, loss=loss.item(), seconds=budget.seconds)
    state = final_transformer_state(transformer, args.kind)
    torch.save(state, args.run / f"{args.kind}-final.pt")
    if args.out:
        save_pieces(pack_state(transformer, args.kind), args.out, args.kind)
        prompt_sheet(
            velocity,
            text_encoder,
            tokenizer,
            load_vae(args.run, device),
            args.out / f"{args.kind}.png",
            sigmas=pipeline_sigmas(),
        )


if __name__ == "__main__":
    main()
