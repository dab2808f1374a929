"""Train the recogniser that scores PocketEval, on rendered scenes alone, and measure how often it is right.

    python -m training.eval.recognise --data DIR --run DIR

Every step renders a batch of random pictures (layouts.py) on the GPU, wears them a little and learns what is
where. Continues from run/recogniser.pt, which is saved every half minute. When complete, held-out renders of the
benchmark's truths, which are no part of the training, are judged: as they are, worn, and where run/vae.pt
exists after a pass through that autoencoder. The shares go into run/log.jsonl and, with the finished weights
(float16, about 21 MB), into run/recogniser.pt.
"""

from pathlib import Path

import torch

from ..clock import Clock, Signals
from ..common import Log, finish_arguments, learning_rate, mixed_precision, set_rate, stage_parser, training_loop
from ..scenes import Renderer, load_objects
from ..storage import load_checkpoint, save_checkpoint
from .detector import Detector, look, loss_of
from .layouts import layout_pool, random_arrays, wear
from .prompts import PER_CLASS, build
from .renders import accuracy, trials

WORN = 0.7  # share of the training pictures that are worn
POOL = 8000  # scenes whose layouts are used
TINY = dict(batch=8, width=8, size=64, repeats=1)


def training_step(detector, see, optimizer, render, pool, kinds: int, batch: int, size: int) -> torch.Tensor:
    """One step on `batch` fresh pictures of size x size; returns the loss. `see` is `detector`, maybe compiled."""
    device = render.device
    arrays = random_arrays(batch, kinds, pool)
    image = render(arrays, size)
    with torch.no_grad():
        image = torch.where(torch.rand(batch, 1, 1, 1, device=device) < WORN, wear(image), image)
    with mixed_precision(device):
        seen = see(image.contiguous(memory_format=torch.channels_last))
        loss = loss_of(detector, seen, arrays)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(detector.parameters(), 5.0)
    optimizer.step()
    return loss.detach()


def train(args, objects: list[dict], render: Renderer) -> tuple[Detector, bool]:
    """Train, or go on training, until the time is used up; also whether the training is complete."""
    torch.manual_seed(args.seed)
    names, path = [item["hex"] for item in objects], args.run / "recogniser.pt"
    detector = Detector(len(names), args.width, args.size).to(args.device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(detector.parameters(), lr=0, weight_decay=0.02, fused=args.device == "cuda")
    facts = dict(objects=names, width=args.width, side=args.size)
    step, used = 0, 0.0
    if state := load_checkpoint(path, args.device):
        if {key: state[key] for key in facts} != facts:
            raise SystemExit(f"{path}: expected these objects, --width and --size, found others: remove it")
        detector.load_state_dict(state["detector"])
        optimizer.load_state_dict(state["optimizer"])
        step, used = state["step"], state["seconds"]
    clock = Clock(args.minutes, args.steps, used, args.until)
    pool = layout_pool(objects, POOL, args.seed, args.device)
    see = torch.compile(detector, dynamic=False) if args.compile else detector

    def advance(step: int, progress: float) -> torch.Tensor:
        set_rate(optimizer, learning_rate(args.rate, step, progress, warmup=200))
        return training_step(detector, see, optimizer, render, pool, len(names), args.batch, args.size)

    def save(step: int, complete: bool) -> None:
        state = dict(detector=detector.state_dict(), optimizer=optimizer.state_dict(), step=step, seconds=clock.seconds)
        save_checkpoint(state | facts, path)

    complete = training_loop(args, "recogniser", clock, step, advance, save)
    return detector.eval(), complete


@torch.no_grad()
def check(args, objects: list[dict], detector: Detector, render: Renderer, log: Log) -> dict[str, dict]:
    """Accuracies on held-out renders: {view: {class: {passed, refused, accuracy}}}."""
    torch.manual_seed(args.seed)  # for the wear
    names = [item["hex"] for item in objects]
    views = {"clean": lambda image: image, "worn": wear}
    if (args.run / "vae.pt").exists():
        from ..cache import load_vae  # slow to import

        vae = load_vae(args.run, args.device)
        views["decoded"] = lambda image: vae.decode(vae.encode(image).latent_dist.mode()).sample.clamp(-1, 1)
    cases, arrays = trials(build(objects, args.per_class), objects, args.repeats, args.seed)
    tables = {}
    for name, view in views.items():
        seen = lambda image, view=view: look(detector, names, view(image))  # noqa: E731
        tables[name] = accuracy(cases, arrays, render, seen, args.size)
        for kind, shares in tables[name].items():
            log(stage="recogniser-check", view=name, kind=kind, pictures=len(cases), **shares)
    return tables


def load(path: Path, device) -> tuple[Detector, list[str], dict]:
    """A trained recogniser, the `hex` of its objects, and its accuracies on held-out renders.

    A missing file, or one whose training or check has not finished, stops with the command that makes it.
    """
    state = load_checkpoint(path, device)
    if not state or "accuracy" not in state:
        raise SystemExit(f"{path}: expected the result of `python -m training.eval.recognise`, found none or a part")
    detector = Detector(len(state["objects"]), state["width"], state["side"])
    detector.load_state_dict(state["detector"])
    return detector.to(device).eval(), state["objects"], state["accuracy"]


def finish(args, objects: list[dict], detector: Detector, render: Renderer) -> None:
    """Round the weights to float16, measure them, and leave what `load` needs in run/recogniser.pt."""
    small = {name: t.half() if t.is_floating_point() else t for name, t in detector.state_dict().items()}
    detector.load_state_dict(small)
    tables = check(args, objects, detector, render, Log(args.run / "log.jsonl"))
    path = args.run / "recogniser.pt"
    state = load_checkpoint(path)
    state.pop("optimizer")
    save_checkpoint(state | dict(detector=small, accuracy=tables), path)


def run(arguments: list[str] | None = None) -> bool:
    """The stage with command line `arguments`; returns whether it is complete."""
    parser = stage_parser(__doc__, minutes=1.8, seed=5, out=False)
    parser.set_defaults(save_every=30.0)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--width", type=int, default=48)
    parser.add_argument("--size", type=int, default=256, help="of the rendered pictures, a multiple of 32")
    parser.add_argument("--repeats", type=int, default=4, help="right and wrong held-out renders of a truth")
    parser.add_argument("--per-class", type=int, default=PER_CLASS, help="truths of a class in the check")
    args = parser.parse_args(arguments)
    if args.tiny:
        vars(args).update(TINY)
    args = finish_arguments(args)
    state = load_checkpoint(args.run / "recogniser.pt")
    if state and "accuracy" in state:
        print(f"{args.run / 'recogniser.pt'}: complete")
        return True
    objects = load_objects(args.data)
    render = Renderer(args.data, args.device)
    detector, complete = train(args, objects, render)
    if complete:
        finish(args, objects, detector, render)
    return complete


if __name__ == "__main__":
    Signals.watch()
    run()
