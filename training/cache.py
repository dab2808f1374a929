"""Stages 2 and 4: draw random scenes with captions on the CPU; later render and encode them on the GPU.

    python -m training.cache scenes --data DIR --run DIR          (CPU; may run beside training.vae)
    python -m training.cache latents --data DIR --run DIR

`scenes` writes run/scenes.pt: for every size of buckets.py the arrays of scenes.py, `kind` [S] int8 and
`tokens` [S, captions, 48] int16. `latents` writes one run/cache-HxW.pt a size with normalised latents
[S, 64, H/16, W/16] float16; sizes that are there already are kept, so an interrupted call goes on.
"""

import argparse
import os
import random
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch

from .buckets import KINDS, SCENES, TINY_SCENES, cache_name
from .captions import caption
from .clock import Clock, Signals
from .common import Log, finish_arguments, stage_parser
from .model import TEXT_LENGTH, build_vae, pack_latents
from .scenes import Renderer, load_objects, random_scene, scene_arrays
from .storage import load_checkpoint, need, save_checkpoint
from .tokenizer import encode_batch, load_tokenizer

JOB = 2500  # scenes a job


def scene_batch(data: Path, seed: int, count: int, captions: int) -> dict[str, np.ndarray]:
    """`count` random scenes as arrays, with their kinds and `captions` tokenized captions each."""
    rng = random.Random(seed)
    objects = load_objects(data)
    scenes = [random_scene(objects, rng) for _ in range(count)]
    arrays = scene_arrays(scenes)
    arrays["kind"] = np.array([KINDS.index(scene["kind"]) for scene in scenes], np.int8)
    if captions:
        texts = [caption(scene, rng) for scene in scenes for _ in range(captions)]
        ids = encode_batch(load_tokenizer(data), texts, TEXT_LENGTH)
        arrays["tokens"] = np.array(ids, np.int16).reshape(count, captions, TEXT_LENGTH)
    return arrays


def many_scenes(data: Path, seed: int, count: int, captions: int, pool=None) -> dict[str, torch.Tensor]:
    """As scene_batch, as tensors, in parallel if there is a pool. The result depends on the seed alone."""
    jobs = [(data, seed * 100_003 + first, min(JOB, count - first), captions) for first in range(0, count, JOB)]
    if pool:
        parts = [job.result() for job in [pool.submit(scene_batch, *job) for job in jobs]]
    else:
        parts = [scene_batch(*job) for job in jobs]
    return {key: torch.from_numpy(np.concatenate([part[key] for part in parts])) for key in parts[0]}


def scenes_stage(args: argparse.Namespace) -> bool:
    """Write run/scenes.pt unless it is there."""
    path = args.run / "scenes.pt"
    if path.exists():
        return True
    counts = TINY_SCENES if args.tiny else SCENES
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one process a core is enough
    os.nice(10)  # the VAE's graph is compiled meanwhile
    pool = None if args.tiny else ProcessPoolExecutor(args.workers)
    result = {}
    for number, (size, count) in enumerate(counts.items()):
        result[size] = many_scenes(args.data, args.seed * 100 + number, count, args.captions, pool)
    if pool:
        pool.shutdown()
    save_checkpoint(result, path)
    Log(args.run / "log.jsonl")(stage="scenes", count=sum(counts.values()))
    return True


def load_vae(run: Path, device):
    """The finished autoencoder of run/vae.pt in evaluation mode."""
    state = need(run / "vae.pt", "vae")
    vae = build_vae(state["tiny"]).to(device)
    vae.load_state_dict(state["vae"])
    return vae.eval()


@torch.no_grad()
def encode(vae, image: torch.Tensor) -> torch.Tensor:
    """Images [B, 3, H, W] -> packed latents [B, 64, H/16, W/16] float32, not normalised."""
    with torch.autocast(image.device.type, torch.bfloat16, enabled=image.is_cuda):
        moments = vae.quant_conv(vae.encoder(image.contiguous(memory_format=torch.channels_last)))
    return pack_latents(moments.float().chunk(2, dim=1)[0])


@torch.no_grad()
def encode_scenes(vae, render: Renderer, scenes: dict[str, torch.Tensor], size: tuple[int, int], stop=None):
    """Normalised latents [S, 64, H/16, W/16] float16 of scenes, or None if `stop()` became true."""
    chunk = max(1, (256 if render.sprites.is_cuda else 4) * 65536 // (size[0] * size[1]))
    mean = vae.bn.running_mean[:, None, None]
    scale = torch.sqrt(vae.bn.running_var[:, None, None] + vae.config.batch_norm_eps)
    parts = []
    for first in range(0, len(scenes["rgb"]), chunk):
        if stop and stop():
            return None
        part = {key: scenes[key][first : first + chunk].to(render.device) for key in ("index", "place", "rgb")}
        parts.append(((encode(vae, render(part, size)) - mean) / scale).half())
    return torch.cat(parts)


def latents_stage(args: argparse.Namespace) -> bool:
    """Write run/cache-HxW.pt for every size; returns whether all are there. Native and small sizes come first."""
    log, clock = Log(args.run / "log.jsonl"), Clock(args.minutes, until=args.until)
    scenes = load_checkpoint(args.run / "scenes.pt")
    if scenes is None:
        raise SystemExit(f"{args.run}: expected scenes.pt, found none; run `python -m training.cache scenes` first")
    vae = load_vae(args.run, args.device).to(memory_format=torch.channels_last)
    render = Renderer(args.data, args.device)
    for size, part in scenes.items():
        path = args.run / cache_name(size)
        if path.exists():
            continue
        if clock.progress(0) >= 1 and len(list(args.run.glob("cache-*.pt"))) >= 2:
            log(stage="cache", size=str(size), left_out="out of time")  # training does without this size
            continue
        latents = encode_scenes(vae, render, part, size, clock.stop_call)
        if latents is None:
            return False
        save_checkpoint(dict(latents=latents.cpu(), tokens=part["tokens"], kind=part["kind"]), path)
        log(stage="cache", size=str(size), scenes=len(latents), std=float(latents[:4096].float().std()))
    log(stage="cache", seconds=clock.seconds)
    return True


def parse(command: str, arguments: list[str]) -> argparse.Namespace:
    """Options of both stages."""
    parser = stage_parser(__doc__, minutes=1.5, seed=1, out=False)
    parser.add_argument("--captions", type=int, default=8, help="captions a scene")
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 2))
    args = parser.parse_args(arguments)
    if command == "scenes":
        args.device = "cpu"
    return finish_arguments(args)


def run(command: str, arguments: list[str]) -> bool:
    """Run one of the two stages; returns whether it is complete."""
    return {"scenes": scenes_stage, "latents": latents_stage}[command](parse(command, arguments))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("command", choices=("scenes", "latents"))
    known, rest = parser.parse_known_args()
    Signals.watch()
    run(known.command, rest)


if __name__ == "__main__":
    main()
