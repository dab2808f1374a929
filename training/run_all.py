"""All stages from the VAE to the students in order, within one time budget that may span several calls.

    python -m training.run_all --data DIR --run DIR --out DIR [--total 25] [--call-minutes 9.2] [--only STAGE...]

Every stage gets its share of `--total` minutes, keeps its checkpoints in the run folder and puts small pieces
into the out folder as soon as it has them. `--call-minutes` ends a call early, after saving: the same command
goes on where it stopped. `--pieces` starts from the pieces of a lost run. Exit code 0: all asked stages are
complete; 75: stopped early, run the same command again; 1: an error.
"""

import time

START = time.time()

import argparse  # noqa: E402  (the clock starts before the slow imports)
import math  # noqa: E402
import shutil  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
import traceback  # noqa: E402
from pathlib import Path  # noqa: E402

from . import cache, rollouts, students, teacher, vae  # noqa: E402
from .clock import Signals  # noqa: E402
from .common import Log, free_gpu  # noqa: E402
from .eval import recognise  # noqa: E402

SHARES = {  # of the total time
    "vae": 0.22,
    "latents": 0.08,
    "recogniser": 0.055,
    "teacher": 0.355,
    "rollouts": 0.05,
    "dense": 0.06,
    "ternary": 0.09,
    "binary": 0.09,
}
INDEPENDENT = ("recogniser", "dense", "ternary", "binary")  # what follows can do without them
WORTH_STARTING = 45.0  # seconds of a call that are too few for another stage to load and compile
STOPPED = 75


def stage_runners() -> dict:
    """Stage name: a function that runs it with its arguments and returns whether it is complete."""
    return {
        "vae": vae.run,
        "latents": lambda arguments: cache.run("latents", arguments),
        "recogniser": recognise.run,
        "teacher": teacher.run,
        "rollouts": rollouts.run,
        **{
            kind: (lambda arguments, kind=kind: students.run(["--kind", kind, *arguments]))
            for kind in ("dense", "ternary", "binary")
        },
    }


def stage_arguments(args: argparse.Namespace, name: str, until: float) -> list[str]:
    """The command line of a stage."""
    result = ["--data", str(args.data), "--run", str(args.run), "--until", str(until)]
    result += ["--minutes", str(args.minutes.get(name, args.total * SHARES[name])), "--device", args.device]
    result += ["--steps", str(args.steps)] if args.steps else []
    result += ["--tiny"] if args.tiny else []
    result += [] if args.compile else ["--no-compile"]
    if name not in ("latents", "recogniser", "rollouts"):
        result += ["--out", str(args.out), "--out-megabytes", str(args.out_megabytes)]
    if name in ("vae", "teacher") and args.pieces:
        result += ["--pieces", str(args.pieces)]
    if name == "teacher":
        result += ["--optimizer", args.optimizer]
    return result


def stage_minutes(text: str) -> tuple[str, float]:
    """ "vae=5.5" -> ("vae", 5.5)."""
    name, _, minutes = text.partition("=")
    if name not in SHARES:
        raise argparse.ArgumentTypeError(f"expected STAGE=N with one of {', '.join(SHARES)}, found {text}")
    return name, float(minutes)


def start_scenes(args: argparse.Namespace) -> subprocess.Popen | None:
    """Draw the scenes on the CPU in a second process while the VAE trains."""
    if (args.run / "scenes.pt").exists():
        return None
    command = [sys.executable, "-m", "training.cache", "scenes", "--data", str(args.data), "--run", str(args.run)]
    command += ["--seed", str(args.scenes_seed)]
    return subprocess.Popen(command + (["--tiny"] if args.tiny else []))


def finish_scenes(process: subprocess.Popen | None) -> None:
    """Wait for `start_scenes`; a failure there ends this process, too."""
    if process and process.wait() != 0:
        raise SystemExit(f"drawing the scenes: expected exit code 0, found {process.returncode}")


def run_stages(args: argparse.Namespace) -> bool:
    """Run the asked stages; returns whether all are complete."""
    until = START + args.call_minutes * 60
    log, runners = Log(args.run / "log.jsonl"), stage_runners()
    asked = [name for name in runners if not args.only or name in args.only]
    scenes = start_scenes(args) if {"vae", "latents"} & set(asked) else None
    failed = []
    try:
        for name in asked:
            if Signals.asked or until - time.time() < WORTH_STARTING:
                return False
            if name == "latents":
                finish_scenes(scenes)
            begin = time.time()
            try:
                complete = runners[name](stage_arguments(args, name, until))
            except (Exception, SystemExit):
                if name not in INDEPENDENT:
                    raise
                traceback.print_exc()
                failed, complete = [*failed, name], True
            log(stage="run", name=name, complete=complete, took=time.time() - begin, since_start=time.time() - START)
            shutil.copyfile(log.path, args.out / "log.jsonl")
            if (args.run / "dense-final.pt").exists():  # takes the teacher's place among the pieces
                for path in args.out.glob("teacher-*.safetensors"):
                    path.unlink()
            free_gpu()
            if not complete:
                return False
    finally:
        if scenes and scenes.poll() is None:
            scenes.terminate()
    if failed:
        raise SystemExit(f"expected all stages to end well, found errors in {', '.join(failed)} (see above)")
    return True


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--total", type=float, default=25.0, help="minutes of all stages together")
    parser.add_argument("--minutes", type=stage_minutes, nargs="+", metavar="STAGE=N", help="instead of its share")
    parser.add_argument("--call-minutes", type=float, default=math.inf, help="end this call after so many minutes")
    parser.add_argument("--only", nargs="+", choices=SHARES, help="only these stages")
    parser.add_argument("--pieces", type=Path, help="pieces of an earlier run to go on from")
    parser.add_argument("--scenes-seed", type=int, default=1, help="another one for pieces that are trained further")
    parser.add_argument("--optimizer", choices=("muon", "adamw"), default="muon", help="of the teacher")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--tiny", action="store_true", help="a dry run on the CPU: a few steps a stage")
    parser.add_argument("--steps", type=int, default=0, help="steps a stage instead of minutes")
    parser.add_argument("--out-megabytes", type=float, default=64.0, help="most that `out` may hold")
    args = parser.parse_args(arguments)
    args.minutes = dict(args.minutes or ())
    if args.tiny:
        args.device, args.steps = "cpu", args.steps or 4
    Signals.watch()
    args.out.mkdir(parents=True, exist_ok=True)
    if run_stages(args):
        print("all stages complete", flush=True)
        return 0
    print("stopped early and saved; run the same command again to go on", flush=True)
    return STOPPED


if __name__ == "__main__":
    raise SystemExit(main())
