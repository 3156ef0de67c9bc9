"""Files by content: their digests, made once for each state of a file and kept.

A state is what the file system says of a file: inode, size, times of its last change, the one that `utime` cannot set
among them. A digest stands for a state only if the file was left alone while it was read and for a while before:
time stamps are coarse, and a change right after could leave them as they were. Digests are kept in the user's cache
directory, in files that are replaced whole; without one they are made again by the next engine.
"""

import contextlib
import hashlib
import json
import logging
import os
import tempfile
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from blake3 import blake3
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

logger = logging.getLogger("vllm.larder")

WEIGHT_SUFFIXES: Final = (".safetensors", ".bin", ".pt", ".pth", ".gguf")
"""In the order in which vLLM prefers them."""
PIECE_BYTES: Final = 8 << 20
READERS: Final = 4
QUIET_NS: Final = 2_000_000_000
PROGRESS_S: Final = 10.0
KEPT_MAX: Final = 4_096
State = tuple[int, int, int, int]


class Changed(Exception):
    """A file changed while it was read: its bytes are not known."""


def local_folder(name: str, revision: str | None = None, cache_dir: str | None = None) -> Path | None:
    """Where a model or adapter lies on this host: the path itself or the hub's snapshot of that name. None: nowhere."""
    path = Path(name).expanduser()
    if path.exists():
        return path
    try:
        return Path(snapshot_download(name, revision=revision, cache_dir=cache_dir, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, OSError, ValueError):
        return None


def state_of(path: Path) -> State:
    """What the file system says of a file; OSError if there is none."""
    stat = path.stat()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def adapter_files(folder: Path) -> list[Path]:
    """The files that an adapter is read from."""
    return sorted(
        file
        for file in folder.iterdir()
        if file.name == "adapter_config.json" or file.suffix in (*WEIGHT_SUFFIXES, ".tensors")
    )


def adapter_state(name: str) -> str | None:
    """The state of all of an adapter's files as one text; None where it cannot be found."""
    try:
        folder = local_folder(name)
        if folder is None or not (files := adapter_files(folder)):
            return None
        states = [(file.name, *state_of(file)) for file in files]
    except OSError:
        return None
    return hashlib.blake2b(json.dumps(states).encode(), digest_size=16).hexdigest()


class Digests:
    """Digests of files, from the cache where their state is known."""

    def __init__(self, cache: Path | None = None) -> None:
        self._cache = cache or _cache_directory()
        self._ended = threading.Event()
        self._lock = threading.Lock()  # over what is below
        self._read = 0
        self._told = time.monotonic()

    def folder(self, files: Iterable[Path], root: Path) -> str:
        """One digest over files by their names below `root` and their bytes; raises OSError or Changed."""
        named = sorted((file.relative_to(root).as_posix(), file) for file in files)
        total = sum(file.stat().st_size for _, file in named)
        with ThreadPoolExecutor(READERS, thread_name_prefix="larder-digest") as pool:
            digests = list(pool.map(lambda file: self.file(file, total), [file for _, file in named]))
        listed = json.dumps([[name, digest] for (name, _), digest in zip(named, digests, strict=True)])
        return hashlib.blake2b(listed.encode(), digest_size=16).hexdigest()

    def file(self, path: Path, total: int = 0) -> str:
        """A file's digest; `total` is what progress is told of."""
        path = path.resolve()
        state, began = state_of(path), time.time_ns()
        kept = self._cache / hashlib.blake2b(os.fsencode(path), digest_size=16).hexdigest()
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            entry = json.loads(kept.read_text())
            if entry["state"] == list(state):
                return str(entry["digest"])
        digest = self._digest(path, total)
        if state_of(path) != state:
            raise Changed(f"{path} changed while it was read")
        if max(state[2:]) < began - QUIET_NS:
            self._keep(kept, {"path": str(path), "state": state, "digest": digest})
        return digest

    def close(self) -> None:
        """Files under way are not read to their end."""
        self._ended.set()

    def _digest(self, path: Path, total: int) -> str:
        hasher, piece = blake3(), memoryview(bytearray(min(PIECE_BYTES, path.stat().st_size + 1)))
        with path.open("rb", buffering=0) as file:
            while got := file.readinto(piece):
                if self._ended.is_set():
                    raise Changed("the engine ends")
                hasher.update(piece[:got])
                self._progress(got, total)
        return hasher.hexdigest(16)

    def _progress(self, read: int, total: int) -> None:
        with self._lock:
            self._read += read
            if time.monotonic() - self._told < PROGRESS_S:
                return
            self._told = time.monotonic()
            logger.info("Larder reads weights to know them by content: %.1f of %.1f GB", self._read / 1e9, total / 1e9)

    def _keep(self, kept: Path, known: dict[str, object]) -> None:
        try:
            self._cache.mkdir(parents=True, exist_ok=True, mode=0o700)
            with tempfile.NamedTemporaryFile("w", dir=self._cache, delete=False) as file:
                json.dump(known, file)
            Path(file.name).replace(kept)
            entries = sorted(self._cache.iterdir(), key=lambda entry: entry.stat().st_mtime)
            for entry in entries[:-KEPT_MAX]:
                entry.unlink(missing_ok=True)
        except OSError as error:
            logger.debug("a digest was not kept: %s", error)


def _cache_directory() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return Path(base or Path.home() / ".cache") / "larder" / "digests"
    except RuntimeError:  # no home
        return Path(tempfile.gettempdir()) / f"larder-{os.getuid()}" / "digests"
