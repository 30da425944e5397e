"""A folder with a small MNIST, given out by a server on 127.0.0.1."""

import gzip
import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from math import prod
from pathlib import Path
from typing import Any

from attractor.images import datasets

FILES = datasets.DATASETS["mnist"].files
Resources = list[tuple[str, str]]  # file and MD5, as torchvision has them


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *given: Any) -> None: ...


def idx(kind: int, *sizes: int) -> bytes:
    return bytes([0, 0, 8, kind]) + b"".join(size.to_bytes(4, "big") for size in sizes) + bytes(prod(sizes))


def fill(folder: Path) -> Resources:
    """Put the four files there, compressed; what torchvision is to find there."""
    for file in FILES:
        content = idx(3, 12, 28, 28) if "images" in file else idx(1, 12)
        (folder / f"{Path(file).name}.gz").write_bytes(gzip.compress(content))
    paths = [folder / f"{Path(file).name}.gz" for file in FILES]
    return [(path.name, hashlib.md5(path.read_bytes()).hexdigest()) for path in paths]


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a server that gives out what is in the folder."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()


def spoil(folder: Path, fault: str) -> Path:
    """Make the third of the four files another one, or half of it."""
    file = folder / f"{Path(FILES[2]).name}.gz"
    content = file.read_bytes()
    if fault == "wrong checksum":
        file.write_bytes(gzip.compress(idx(3, 11, 28, 28)))
    else:
        file.write_bytes(content[: len(content) // 2])
    return file
