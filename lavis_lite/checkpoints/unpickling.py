"""torch's .pth files read without running or importing anything that they name.

torch's own restricted unpickler does the reading: it builds tensors and plain containers and looks nothing up by name.
Objects of other classes beside the tensors (a Namespace, a configuration, numpy scalars) become `StandIn`s:
empty objects that remember nothing. A file that needs more than that is refused, with the command that saves it again.
"""

from __future__ import annotations

import _compat_pickle
import contextlib
import io
import mmap
import pickle
import pickletools
import re
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import torch

from lavis_lite.errors import CheckpointError

LEGACY_PICKLES = 5
"""before torch 1.6 a file was this many pickles one after the other, then the bytes of the tensors"""
LARGEST_PICKLE = 2**28
"""bytes of what lists the tensors of a file; a million names take less"""
SHOWN = 4
"""classes named in a message"""
NEVER_NEEDED = re.compile(
    r"(os|posix|nt|sys|subprocess|importlib|runpy|shutil|socket|pty|ctypes|code|pickle|marshal|urllib|webbrowser)(\..+)?|"
    r"builtins\.(eval|exec|compile|open|input|getattr|setattr|delattr|globals|locals|vars|breakpoint|__import__|apply)")
"""what code is run with: no checkpoint has a use for it"""
_lock = threading.Lock()


class StandIn:
    """In place of an object if its class is not imported. It takes whatever the file gives it and keeps nothing."""

    def __new__(cls, *_: Any, **__: Any) -> Any:
        """An empty one, whatever the arguments."""
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        """Nothing is kept."""

    def __setstate__(self, state: Any) -> None:
        """Nothing is kept."""


class _PlainDict(StandIn):
    """For dictionaries of the standard library that are filled item by item."""

    def __new__(cls, *_: Any, **__: Any) -> Any:
        return {}


class _PlainList(StandIn):
    """The same for lists."""

    def __new__(cls, *_: Any, **__: Any) -> Any:
        return []


_BASES: dict[str, type[StandIn]] = {"collections.defaultdict": _PlainDict, "collections.deque": _PlainList}


def read_torch_file(path: Path) -> tuple[Any, list[str]]:
    """The content of a .pth, .pt or .bin file, and the classes whose objects in it became stand-ins.

    Raises:
        CheckpointError: it is damaged, or holds what cannot be read without running code.
    """
    try:
        return _load(path), []
    except pickle.UnpicklingError as error:
        classes = foreign_classes(path)
        if not classes or any(map(NEVER_NEEDED.fullmatch, classes)):
            raise _refusal(path, classes, error) from error
    try:
        with _stand_ins(classes):
            return _load(path), classes
    except (pickle.UnpicklingError, CheckpointError) as error:
        raise _refusal(path, classes, error) from error


def _load(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (pickle.UnpicklingError, PermissionError):
        raise
    except Exception as error:  # a damaged pickle can raise anything
        if "TorchScript" in str(error):
            command = resave_command(path, "c.state_dict()").replace("torch.load", "torch.jit.load").replace(
                ", weights_only=False", "")
            raise CheckpointError(f"{path} is a TorchScript program, which is not loaded because it can run code. If "
                                  f"you trust its author, save its tensors: {command}") from error
        raise CheckpointError(f"{path} cannot be read as a torch checkpoint ({_first_line(error)}): it is damaged, or "
                              "was not written by torch.save. Copy or download it again.") from error


@contextlib.contextmanager
def _stand_ins(classes: list[str]) -> Iterator[None]:
    """Let torch's unpickler build a `StandIn` for each of these classes (the list it looks in is one per process)."""
    made: list[Any] = []
    for full in classes:
        module, _, name = full.rpartition(".")
        made.append(type(name, (_BASES.get(full, StandIn),), {"__module__": module, "__qualname__": name}))
    with _lock, torch.serialization.safe_globals(made):
        yield


def foreign_classes(path: Path) -> list[str]:
    """Full names of the classes and functions that a file mentions and that torch does not read by itself, sorted.

    The file is only disassembled. Empty where it is not a pickle at all.
    """
    try:
        found = {full for stream in _pickles(path) for full in _globals(stream)}
    except Exception:  # a damaged pickle can raise anything; the message that follows says that it is damaged
        return []
    known = torch._weights_only_unpickler._get_allowed_globals()
    return sorted(found - set(known))


def _pickles(path: Path) -> Iterator[IO[bytes] | mmap.mmap]:
    """Streams that each begin with a pickle; none gives more bytes than there are, whatever a pickle asks for."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name == "data.pkl" or name.endswith("/data.pkl"):
                    if archive.getinfo(name).file_size > LARGEST_PICKLE:
                        raise ValueError(f"{name} is too large for a list of tensors")
                    yield io.BytesIO(archive.read(name))
        return
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as stream:
        for _ in range(LEGACY_PICKLES):
            yield stream


def _globals(stream: IO[bytes] | mmap.mmap) -> Iterator[str]:
    """What one pickle names: `module.name`, by the names of Python 3."""
    strings: list[str] = []
    for operation, argument, _ in pickletools.genops(stream):  # type: ignore[arg-type]  # it reads, and no more
        if operation.name in ("GLOBAL", "INST"):
            module, name = str(argument).split(" ", 1)
            if (module, name) in _compat_pickle.NAME_MAPPING:
                module, name = _compat_pickle.NAME_MAPPING[module, name]
            yield f"{_compat_pickle.IMPORT_MAPPING.get(module, module)}.{name}"
        elif operation.name == "STACK_GLOBAL" and len(strings) > 1:
            yield f"{strings[-2]}.{strings[-1]}"
        elif isinstance(argument, str) and operation.name not in ("PUT", "GET"):
            strings.append(argument)


def resave_command(path: Path, entry: str = "c['model']") -> str:
    """The command that writes the tensors of a file to one that can be read; it runs what code the file holds."""
    plain = path.with_name(f"{path.stem}_plain.pth").name
    return (f"python -c \"import torch; c = torch.load('{path.name}', map_location='cpu', weights_only=False); "
            f"torch.save({{'model': {entry}}}, '{plain}')\"")


def _refusal(path: Path, classes: list[str], error: Exception) -> CheckpointError:
    """The error for a file that holds more than tensors and what can be stood in for."""
    if not classes:
        return CheckpointError(f"{path} is damaged, or was not written by torch.save ({_first_line(error)}). Copy or "
                               "download it again; if it is a pickle of another kind and you trust it, save it again: "
                               f"{resave_command(path)}")
    harmful = [name for name in classes if NEVER_NEEDED.fullmatch(name)]
    named = ", ".join((harmful or classes)[:SHOWN])
    more = f" and {len(classes) - SHOWN} more" if len(classes) > SHOWN and not harmful else ""
    attack = " Weights never need that: unless you trust its author, take it for an attack." if harmful else ""
    return CheckpointError(f"{path} holds Python objects besides tensors, which are not loaded because they can run "
                           f"code ({named}{more}).{attack} If you trust its author, save the tensors again: "
                           f"{resave_command(path)}")


def _first_line(error: Exception) -> str:
    """The first line; of torch's unpickler what it met, without the advice to load whatever a file holds."""
    lines = str(error).rpartition("WeightsUnpickler error: ")[2].strip().splitlines()
    return lines[0] if lines else type(error).__name__
