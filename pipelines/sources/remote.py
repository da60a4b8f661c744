"""What a user may write for shards: paths, {000..127} ranges, URLs. Remote shards go whole into a cache folder."""

from __future__ import annotations

import glob
import os
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

from saccade.base.caches import cache_folder
from saccade.base.errors import UserError
from saccade.base.files import swept, whole_file

_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}")
_SCHEME = re.compile(r"^([a-z][a-z0-9+]*):", re.IGNORECASE)
_MOST_SHARDS = 1_000_000
_AT_ONCE, _TRIES, _TIMEOUT = 4, 3, 60.0  # downloads, attempts, seconds of silence


def is_remote(data: str) -> bool:
    scheme = _SCHEME.match(data)
    return bool(scheme) and (data.startswith("pipe:") or "://" in data) and scheme[1].lower() != "file"


def is_pattern(data: str) -> bool:
    """Whether it names several files: {000..127}, {a,b}, *, ? or webdataset's a.tar::b.tar."""
    return bool(_BRACES.search(data)) or "::" in data or glob.has_magic(data)


def expand(pattern: str) -> list[str]:
    """`a-{000..127}.tar`, `{train,val}.tar` and `a.tar::b.tar` written out; a number keeps its leading zeros."""
    if "::" in pattern:
        return [text for part in pattern.split("::") for text in expand(part)]
    found = _BRACES.search(pattern)
    if not found:
        return [pattern]
    first, last, words = found.groups()
    if words is None and int(last) - int(first) >= _MOST_SHARDS:
        raise UserError(f"--data {pattern}: more than {_MOST_SHARDS:,} shards; is the range right?")
    parts = (
        words.split(",") if words is not None else [str(k).zfill(len(first)) for k in range(int(first), int(last) + 1)]
    )
    return [text for part in parts for text in expand(pattern[: found.start()] + part + pattern[found.end() :])]


def local_files(data: str, allow_pipe: bool | None = None) -> list[Path]:
    """The files of a path, pattern or URL, fetched where they are remote.

    A pipe: URL runs a shell command and is refused unless allow_pipe (default: SACCADE_ALLOW_PIPE=1 is set).
    """
    if data.startswith("pipe:"):  # its braces belong to the shell
        allowed = os.environ.get("SACCADE_ALLOW_PIPE") == "1" if allow_pipe is None else allow_pipe
        if not allowed:
            raise UserError(
                f"--data {data}: a pipe: URL runs a shell command; if you trust it, give --allow-pipe or set "
                "SACCADE_ALLOW_PIPE=1."
            )
        return fetch([data])
    names = expand(data)
    if not names:
        raise UserError(f"--data {data}: the range is empty; write the smaller number first.")
    if is_remote(data):
        return fetch(names)
    files = [file for name in names for file in _matching(Path(name.removeprefix("file://")).expanduser())]
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise UserError(f"--data {data}: {len(missing)} of {len(files)} shards are not there, such as {missing[0]}.")
    return files


def _matching(file: Path) -> list[Path]:
    """The files a name with * or ? stands for, in order; itself where it is there or none matches."""
    if file.exists() or not glob.has_magic(str(file)):
        return [file]
    return sorted(map(Path, glob.glob(str(file)))) or [file]


def fetch(urls: Sequence[str]) -> list[Path]:
    """The shards as files in the cache folder, in order; those already there are not fetched again."""
    with ThreadPoolExecutor(_AT_ONCE, "fetch") as pool:
        return list(pool.map(_fetch_one, urls))


def _fetch_one(url: str) -> Path:
    base = re.sub(r"[^\w.-]", "_", url.split("?")[0].rstrip("/").rsplit("/", 1)[-1])[-80:]
    folder = cache_folder() / "shards" / sha256(url.encode()).hexdigest()[:16]
    file = folder / (base if base.endswith(".tar") else f"{base}.tar")
    if file.exists():
        return file
    for left in reversed(range(_TRIES)):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _copy(url, file)
            break
        except urllib.error.HTTPError as error:
            if error.code < 500 or not left:
                raise UserError(f"--data {url}: the server answered {error.code} {error.reason}.") from error
        except OSError as error:  # URLError, a broken connection, a full disk
            if not left:
                raise UserError(
                    f"--data {url}: cannot be fetched into {folder} ({getattr(error, 'reason', error)}); check "
                    "the address and the space, SACCADE_CACHE chooses the folder."
                ) from error
    return file


def _copy(url: str, file: Path) -> None:
    """Under another name until it is whole."""
    swept(file.parent, older=3600)  # parts of what a killed process fetched; one that fetches now writes every moment
    print(f"fetching {url} into {file.parent}", file=sys.stderr, flush=True)
    with _open(url) as remote, whole_file(file) as local:
        shutil.copyfileobj(remote, local, 1 << 20)
        if local.tell() == 0:
            raise OSError("nothing came")


def _open(url: str) -> BinaryIO | _Whole | _Piped:
    """http(s) by the standard library, other schemes by fsspec; pipe:, which only its user can allow, by a shell.

    webdataset's own openers are not asked: several build a shell command out of the address.
    """
    scheme, _, rest = url.partition(":")
    if scheme.lower() in ("http", "https"):
        return _Whole(urllib.request.urlopen(url, timeout=_TIMEOUT))
    if scheme == "pipe":
        return _Piped(rest)
    import fsspec

    try:
        opened = fsspec.open(url, "rb")
        assert not isinstance(opened, list)  # one address is one file
        return opened.open()
    except (ImportError, ValueError) as error:
        raise UserError(
            f"--data {url}: no opener for {scheme}: ({error}); https works as it is, {scheme} may need "
            "a package of fsspec's, or copy the shards here."
        ) from error


class _Piped:
    """What a shell command prints; a command that fails raises, where its output would just be short."""

    def __init__(self, command: str) -> None:
        self._command = command
        self._process = subprocess.Popen(command, shell=True, stdout=subprocess.PIPE)
        assert self._process.stdout is not None  # it is piped
        self._output = self._process.stdout

    def read(self, count: int = -1) -> bytes:
        data = self._output.read(count)
        if not data and (code := self._process.wait()):
            raise OSError(f"the command {self._command!r} ended with code {code}")
        return data

    def __enter__(self) -> _Piped:
        return self

    def __exit__(self, *_: object) -> None:
        self._output.close()
        self._process.wait()


class _Whole:
    """A response that ends before its announced length raises, where http.client's read(n) would just stop."""

    def __init__(self, response) -> None:
        self._response, self._left = response, int(response.headers.get("Content-Length", -1))

    def read(self, count: int = -1) -> bytes:
        data = self._response.read(count)
        if self._left >= 0:
            if not data and self._left:
                raise OSError(f"the connection ended {self._left} bytes early")
            self._left -= len(data)
        return data

    def __enter__(self) -> _Whole:
        return self

    def __exit__(self, *_: object) -> None:
        self._response.close()
