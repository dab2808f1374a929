"""Stage 4: train the dense teacher and the text encoder together; stage 5: record its guided trajectories.

    python -m training.teacher train --data DIR --run DIR [--until MINUTES] [--out DIR]
    python -m training.teacher rollouts --data DIR --run DIR

Training continues from run/teacher.pt if that exists. The finished weights (moving averages, encoder
rounded to 4 bits exactly as exported) are run/teacher-final.pt. `rollouts` writes run/rollouts.pt: states
[R, 5, 64, 16, 16] float16 at the sampler's noise levels and tokens [R, 48] int16.
"""

import argparse
import time
from pathlib import Path

import torch
from transformers import Qwen2TokenizerFast

from .common import Budget, Ema, Log, learning_rate, load_pieces, mixed_precision, save_pieces, set_rate
from .flow import Velocity, fine_sigmas, flow_loss, pipeline_sigmas, sample
from .model import TEXT_LENGTH, build_text_encoder, build_transformer, build_vae, encode_prompt, unpack_latents
from .quantize import final_text_state, final_transformer_state, quantize_text_encoder
from .sheet import save_grid
from .tokenizer import encode_batch

PROMPTS = [
    "a red apple on a blue background",
    "火箭，蓝色背景",
    "three strawberries on a white background",
    "a cat",
    "two rockets",
    "a castle to the left of a rainbow",
    "pizza and hamburger",
    "a dog face on a green background",
]
ROLLOUT_PARTS = (2, 2, 3, 7)  # teacher steps inside each of the four sampler steps


def load_tokenizer(data: Path) -> Qwen2TokenizerFast:
    return Qwen2TokenizerFast.from_pretrained(str(data / "tokenizer"))


def load_vae(run: Path, device):
    vae = build_vae().to(device)
    vae.load_state_dict(torch.load(run / "vae.pt", map_location=device))
    return vae.eval()


@torch.no_grad()
def decode(vae, latents: torch.Tensor) -> torch.Tensor:
    """Normalised latents [B, 64, h, w] -> images [B, 3, 16h, 16w] in -1..1."""
    scale = torch.sqrt(vae.bn.running_var + vae.config.batch_norm_eps)[:, None, None]
    return vae.decode(unpack_latents(latents.float() * scale + vae.bn.running_mean[:, None, None])).sample


@torch.no_grad()
def prompt_sheet(velocity, text_encoder, tokenizer, vae, path: Path, **how) -> None:
    """One row a prompt of PROMPTS, four seeds."""
    device = next(vae.parameters()).device
    ids = torch.tensor(encode_batch(tokenizer, [p for p in PROMPTS for _ in range(4)], TEXT_LENGTH), device=device)
    empty = torch.tensor(encode_batch(tokenizer, [""], TEXT_LENGTH), device=device)
    noise = torch.randn(4, 64, 16, 16, generator=torch.Generator().manual_seed(0)).repeat(len(PROMPTS), 1, 1, 1)
    with torch.compiler.set_stance("force_eager"), mixed_precision(device):
        text = encode_prompt(text_encoder, ids, tokenizer.pad_token_id)
        empty = encode_prompt(text_encoder, empty, tokenizer.pad_token_id)
    guided = dict(how, empty=empty) if how.get("guidance", 1.0) != 1.0 else how
    with torch.compiler.set_stance("force_eager"):  # odd batch sizes are not worth compiling for
        states = sample(velocity, noise.to(device), text, **guided)
    save_grid(decode(vae, states[-1]), path, columns=8)


def train(args) -> None:
    torch.manual_seed(args.seed)
    device, log = args.device, Log(args.run / "log.jsonl")
    tokenizer = load_tokenizer(args.data)
    pad = tokenizer.pad_token_id
    cache = torch.load(args.run / "cache.pt")
    latents, tokens, empty = (cache[key].to(device) for key in ("latents", "tokens", "empty"))
    transformer = build_transformer().to(device)
    text_encoder = build_text_encoder(pad, tokenizer.eos_token_id).to(device)
    quantize_text_encoder(text_encoder)
    modules = [transformer, text_encoder.model]
    parameters = [p for module in modules for p in module.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=0, betas=(0.9, 0.99), weight_decay=0.01, fused=device == "cuda")
    step, done = 0, args.done
    if args.pieces:
        transformer.load_state_dict(load_pieces(args.pieces, "transformer"))
        text_encoder.load_state_dict(load_pieces(args.pieces, "text"), strict=False)
        step = 10_000 if done else 0
    ema = Ema(modules, 0.9992)
    saved = args.run / "teacher.pt"
    if saved.exists():
        state = torch.load(saved, map_location=device)
        transformer.load_state_dict(state["transformer"])
        text_encoder.load_state_dict(state["text"])
        optimizer.load_state_dict(state["optimizer"])
        ema.average, ema.steps, step, done = state["average"], state["ema_steps"], state["step"], state["done"]
        torch.manual_seed(args.seed + step)
    velocity = Velocity(transformer, args.compile)
    if args.compile:
        for layer in text_encoder.model.layers:
            layer.compile(dynamic=False)
    budget = Budget(args.minutes, done)
    loss = torch.zeros(())
    stop = min(args.until * 60 if args.until else budget.total, budget.total)
    while budget.seconds < stop and time.time() < args.deadline:
        rows = torch.randint(len(latents), (args.batch,), device=device)
        ids = tokens[rows, torch.randint(tokens.shape[1], (args.batch,), device=device)]
        ids = torch.where(torch.rand(args.batch, 1, device=device) < 0.1, empty[None], ids).long()
        set_rate(optimizer, learning_rate(args.rate, step, budget.progress, warmup=300))
        with mixed_precision(device):
            text = encode_prompt(text_encoder, ids, pad)
        loss = flow_loss(velocity, latents[rows].float(), text)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        ema.update()
        if step % args.log_every == 0:
            log(stage="teacher", step=step, loss=loss.item(), seconds=budget.seconds)
        budget.begin()
        step += 1
    log(stage="teacher", step=step, loss=loss.item(), seconds=budget.seconds)
    torch.save(
        dict(
            transformer=transformer.state_dict(),
            text=text_encoder.state_dict(),
            optimizer=optimizer.state_dict(),
            average=ema.average,
            ema_steps=ema.steps,
            step=step,
            done=budget.seconds,
        ),
        saved,
    )
    ema.swap()
    final = dict(
        transformer=final_transformer_state(transformer, None), text=final_text_state(text_encoder.state_dict())
    )
    torch.save(final, args.run / "teacher-final.pt")
    if args.out:
        save_pieces(final["transformer"], args.out, "transformer")
        kept = {name: t for name, t in final["text"].items() if "layers.5." not in name and name != "lm_head.weight"}
        save_pieces(kept, args.out, "text")
        vae = load_vae(args.run, device)
        for name, how in {
            "g1": dict(sigmas=pipeline_sigmas()),
            "g2.5": dict(sigmas=fine_sigmas(pipeline_sigmas(), ROLLOUT_PARTS)[0], guidance=2.5, second_order=True),
        }.items():
            prompt_sheet(velocity, text_encoder, tokenizer, vae, args.out / f"teacher-{name}.png", **how)


@torch.no_grad()
def rollouts(args) -> None:
    torch.manual_seed(args.seed + 77)
    device, log = args.device, Log(args.run / "log.jsonl")
    tokenizer = load_tokenizer(args.data)
    cache = torch.load(args.run / "cache.pt", mmap=True)
    tokens, empty = cache["tokens"].to(device), cache["empty"].to(device)
    transformer = build_transformer().to(device).eval()
    text_encoder = build_text_encoder(tokenizer.pad_token_id, tokenizer.eos_token_id).to(device).eval()
    final = torch.load(args.run / "teacher-final.pt", map_location=device)
    transformer.load_state_dict(final["transformer"])
    text_encoder.load_state_dict(final["text"])
    velocity = Velocity(transformer, args.compile)
    levels, marks = fine_sigmas(pipeline_sigmas(), ROLLOUT_PARTS)
    states, ids, start = [], [], None
    while start is None or time.time() - start < args.minutes * 60:
        rows = torch.randint(len(tokens), (args.batch,), device=device)
        chosen = tokens[rows, torch.randint(tokens.shape[1], (args.batch,), device=device)]
        with mixed_precision(device):
            text = encode_prompt(text_encoder, chosen.long(), tokenizer.pad_token_id)
            none = encode_prompt(text_encoder, empty[None].long(), tokenizer.pad_token_id)
        noise = torch.randn(args.batch, 64, 16, 16, device=device)
        path = sample(velocity, noise, text, levels, none, args.guidance, second_order=True)
        states.append(torch.stack([path[mark] for mark in marks], dim=1).half().cpu())
        ids.append(chosen.cpu())
        start = start or time.time()
    states, ids = torch.cat(states), torch.cat(ids)
    torch.save(dict(states=states, tokens=ids), args.run / "rollouts.pt")
    log(stage="rollouts", count=len(ids), guidance=args.guidance, std=float(states[:2000, -1].float().std()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("train", "rollouts"):
        command = commands.add_parser(name)
        command.add_argument("--data", type=Path, required=True)
        command.add_argument("--run", type=Path, required=True)
        command.add_argument("--device", default="cuda")
        command.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
        command.add_argument("--seed", type=int, default=2)
        command.add_argument("--batch", type=int, default=256 if name == "train" else 512)
    command.add_argument("--minutes", type=float, default=1.8)
    command.add_argument("--guidance", type=float, default=2.5)
    command = commands.choices["train"]
    command.add_argument("--out", type=Path, help="also save float16 pieces and pictures here")
    command.add_argument("--minutes", type=float, default=8.7, help="training time over all calls")
    command.add_argument("--until", type=float, default=0.0, help="stop this call at that time")
    command.add_argument("--deadline", type=float, default=float("inf"), help="stop this call at that Unix time")
    command.add_argument("--rate", type=float, default=1e-3)
    command.add_argument("--pieces", type=Path, help="start from saved pieces")
    command.add_argument("--done", type=float, default=0.0, help="seconds trained before those pieces were saved")
    command.add_argument("--log-every", type=int, default=200)
    args = parser.parse_args()
    torch.set_float32_matmul_precision("high")
    train(args) if args.command == "train" else rollouts(args)


if __name__ == "__main__":
    main()
