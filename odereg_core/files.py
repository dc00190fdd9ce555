"""Files that are either whole or not there, and where numbers come from."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from odereg_core import __version__
from odereg_core.device import device_name
from odereg_core.errors import InputError

KEY = "odereg"
"""Under it a file keeps its metadata."""

LIBRARIES = ("torch", "torchdiffeq", "numpy", "scipy", "nibabel", "monai", "antspyx")


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A name beside `path`, with its suffixes, to write to; it becomes `path` if all goes well.

    Raises InputError where the folder cannot be written to or the disk is full.
    """
    path = Path(path)
    temporary = path.with_name(f".{os.getpid()}.partial.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        cause = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: cannot be written ({cause})") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


@contextmanager
def atomic_files(out: Path, last: str, stale: Iterable[Path] = ()) -> Iterator[Path]:
    """A folder in `out` to write files to; if all goes well they move to `out`, the one called
    `last` at the end: where it is, all are of one writing. The `stale` files, of an earlier
    writing, go.

    Raises InputError as `atomic` does.
    """
    partial, new = out / f".{os.getpid()}.partial", not out.exists()
    try:
        partial.mkdir(parents=True, exist_ok=True)
        yield partial
        (out / last).unlink(missing_ok=True)
        for old in stale:
            old.unlink(missing_ok=True)
        for file in sorted(partial.iterdir(), key=lambda path: path.name == last):
            os.replace(file, out / file.name)
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror or error})") from error
    except InputError as error:
        raise InputError(str(error).replace(str(partial), str(out))) from error.__cause__
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if new:
            with suppress(OSError):  # it holds what was written, or never came to be
                out.rmdir()


def sha256(path: Path) -> str:
    """The hash of a file's bytes. Raises InputError where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None


def digest(files: Iterable[Path], *settings: object) -> str:
    """A hash of all that a result depends on: its files, by name and bytes, and settings."""
    content = repr((settings, [(path.name, sha256(path)) for path in files]))
    return hashlib.sha256(content.encode()).hexdigest()


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """A JSON file, whole or not at all."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """The mapping in a JSON file. Raises InputError where it is missing or holds none."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a readable JSON file ({error})") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def save_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """A safetensors file, whole or not at all; the same content gives the same bytes."""
    # The library writes several entries of metadata in no particular order.
    packed = {KEY: json.dumps(dict(metadata), sort_keys=True)} if metadata else {}
    with atomic(path) as temporary:
        temporary.write_bytes(save(dict(tensors), packed))  # its save_file: for the owner alone


def _unpacked(metadata: dict[str, str] | None) -> dict[str, str]:
    return json.loads(metadata[KEY]) if metadata and KEY in metadata else metadata or {}


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors, on the CPU, and metadata. Raises InputError where the file is missing or damaged."""
    with _opened(path) as file:
        names = file.keys()
        return {name: file.get_tensor(name) for name in names}, _unpacked(file.metadata())


def load_metadata(path: Path) -> dict[str, str]:
    """The metadata alone, without reading the tensors; raises InputError as `load_tensors` does."""
    with _opened(path) as file:
        return _unpacked(file.metadata())


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(str(path), framework="pt") as file:
            yield file
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path}: not a whole safetensors file ({error})") from None


@cache
def code() -> str:
    """A hash of the package's own code, as it was when first asked: what runs is what was read."""
    return digest(sorted(Path(__file__).parent.rglob("*.py")))


@cache
def commit() -> str | None:
    """The commit of the source tree this package runs from, if it runs from one, as it was when
    first asked: what runs for hours asks as it begins."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    command = [
        "git",
        "--no-optional-locks",
        "-C",
        str(root),
        "describe",
        "--always",
        "--dirty",
        "--abbrev=12",
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def provenance(device: str = "cpu") -> dict[str, Any]:
    """What a number depends on besides its settings; no date, so that a run repeats to the byte."""
    return {
        "odereg_core": __version__,
        "commit": commit(),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "libraries": {name: _version(name) for name in LIBRARIES},
        "device": device_name(device),
    }


def library_versions(facts: Mapping[str, Any]) -> str:
    """The libraries of a `provenance`, as a page prints them."""
    return ", ".join(f"{name} {version}" for name, version in facts["libraries"].items() if version)
