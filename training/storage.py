"""Files that survive an interruption: atomic checkpoints and small pieces.

A piece file is a safetensors file of at most 15 MB. Matrices with K a multiple of 128 are stored in 8 bits
(`NAME.codes8` int8 [N, K], `NAME.scale8` float16 [N, K/128]; relative error about 0.4 %) if asked for, other
floats as float16. The first piece carries metadata (step, seconds, pieces) so that a run can go on from it.
"""

import json
import os
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

PIECE_BYTES = 15_000_000
GROUP8 = 128
PRIORITY = ("vae", "text", "ternary", "binary", "dense", "teacher")  # what is kept if `out` would grow too large


def save_checkpoint(state: dict, path: Path) -> None:
    """torch.save through a temporary file, so that `path` is always complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    torch.save(state, part)
    os.replace(part, path)


def load_checkpoint(path: Path, device="cpu") -> dict | None:
    """What `save_checkpoint` wrote, or None if there is nothing."""
    return torch.load(path, map_location=device) if path.exists() else None


def need(path: Path, stage: str) -> dict:
    """The checkpoint at `path`; a missing one stops with the stage that makes it."""
    state = load_checkpoint(path)
    if state is None:
        raise SystemExit(f"{path}: expected the result of `python -m training.{stage}`, found no such file")
    return state


def compress(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Large matrices in 8 bits, see above."""
    result = {}
    for name, tensor in tensors.items():
        if tensor.ndim == 2 and tensor.is_floating_point() and tensor.shape[1] % GROUP8 == 0 and len(tensor) > 8:
            groups = tensor.float().unflatten(1, (-1, GROUP8))
            scale = (groups.abs().amax(-1, keepdim=True) / 127).clamp(min=1e-7).half()
            codes = (groups / scale.float()).round().clamp(-127, 127).to(torch.int8)
            result[name + ".codes8"], result[name + ".scale8"] = codes.flatten(1), scale.squeeze(-1)
        else:
            result[name] = tensor
    return result


def expand(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The inverse of `compress`; floats become float32."""
    result = {}
    for name, tensor in tensors.items():
        if name.endswith(".codes8"):
            scale = tensors[name.removesuffix("codes8") + "scale8"].float()
            values = tensor.float() * scale.repeat_interleave(GROUP8, dim=1)
            result[name.removesuffix(".codes8")] = values
        elif not name.endswith(".scale8"):
            result[name] = tensor.float() if tensor.is_floating_point() else tensor
    return result


def save_pieces(
    tensors: dict[str, torch.Tensor],
    folder: Path,
    stem: str,
    limit: int = PIECE_BYTES,
    small: bool = False,
    notes: dict | None = None,
) -> None:
    """Save as `stem-0.safetensors`, `stem-1...`, each at most `limit` bytes and replaced as a whole.

    `small` stores matrices in 8 bits. `notes` (numbers and strings) can be read back with `piece_notes`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pieces, size = [{}], 0
    for name, tensor in (compress(tensors) if small else tensors).items():
        tensor = tensor.detach().cpu()
        tensor = (tensor.half() if tensor.is_floating_point() else tensor).contiguous()
        if pieces[-1] and size + tensor.nbytes > limit:
            pieces, size = [*pieces, {}], 0
        pieces[-1][name], size = tensor, size + tensor.nbytes
    facts = {"notes": json.dumps({**(notes or {}), "pieces": len(pieces)})}
    for number, piece in enumerate(pieces):
        part = folder / f".{stem}-{number}.part"
        save_file(piece, part, metadata=facts)
        os.replace(part, folder / f"{stem}-{number}.safetensors")
    for path in folder.glob(f"{stem}-*.safetensors"):
        if int(path.stem.rsplit("-", 1)[1]) >= len(pieces):
            path.unlink()


def piece_notes(folder: Path, stem: str) -> dict | None:
    """The notes of saved pieces, or None if there are none."""
    path = folder / f"{stem}-0.safetensors"
    if not path.exists():
        return None
    with safe_open(path, "pt") as file:
        return json.loads((file.metadata() or {}).get("notes", "{}"))


def load_pieces(folder: Path, stem: str) -> dict[str, torch.Tensor]:
    """The tensors of all pieces of `stem`, floats as float32."""
    notes, tensors = piece_notes(folder, stem), {}
    if notes is None:
        raise FileNotFoundError(f"{folder}: expected {stem}-0.safetensors, found no such file")
    paths = sorted(folder.glob(f"{stem}-*.safetensors"))
    if notes.get("pieces", len(paths)) != len(paths):
        raise FileNotFoundError(f"{folder}: expected {notes['pieces']} pieces of {stem}, found {len(paths)}")
    for path in paths:
        tensors.update(load_file(path))
    return expand(tensors)


def limit_folder(folder: Path, megabytes: float, most_files: int = 8) -> list[str]:
    """Delete the oldest pictures, then the least important pieces, until `folder` keeps both limits.

    Returns the names of what was deleted.
    """

    def over() -> bool:
        files = [path for path in folder.rglob("*") if path.is_file()]
        return len(files) > most_files or sum(path.stat().st_size for path in files) > megabytes * 1e6

    dropped = []
    groups = [[path] for path in sorted(folder.glob("*.png"), key=lambda path: path.stat().st_mtime)]
    groups += [sorted(folder.glob(f"{stem}-*.safetensors")) for stem in reversed(PRIORITY)]
    for group in groups:
        if group and over():
            for path in group:
                path.unlink()
                dropped.append(path.name)
    return dropped
