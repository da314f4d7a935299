"""Opening what people hand us: plain, .gz and .xz files, folders of them, and the members of .tar and .zip archives.

Always streams, never unpacked to disk; each file becomes one `Document` in memory. Knows nothing about formats.
"""

import contextlib
import gzip
import io
import lzma
import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, BinaryIO, cast

from foregate.errors import SourceError

TAR = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz")
ZIP = (".zip",)


@dataclass
class Meter:
    """How many bytes came out of decompression; `tick` hears of those read from disk as they come."""

    text: int = 0
    tick: Callable[[int], None] = field(default=lambda _: None)

    def read(self, count: int) -> None:
        """So many more bytes of the disk."""
        self.tick(count)


@dataclass(frozen=True)
class Document:
    """One file's text, decompressed.

    origin  what to call it in a sentence: its path, and its name inside an archive
    name    its base name without `.gz` or `.xz`
    """

    origin: str
    name: str
    data: bytes

    @property
    def stem(self) -> str:
        """The name without its last suffix."""
        return PurePosixPath(self.name).stem

    def wrong(self, what: str, line: int | None = None) -> SourceError:
        """The error that says what is wrong here."""
        return SourceError(f"{self.origin}, line {line}: {what}" if line else f"{self.origin} {what}")


def documents(paths: Sequence[Path], suffix: str, meter: Meter | None = None) -> Iterator[Document]:
    """Every document that the paths name, in their order; folders and archives give those that end in `suffix`.

    Raises: SourceError for what is missing, damaged, empty, or tries to leave its archive.
    """
    meter = meter or Meter()
    for path in paths:
        found = False
        for document in _documents(path, suffix, meter):
            found = True
            meter.text += len(document.data)
            if not document.data.strip():
                raise document.wrong("is empty; there is nothing to import")
            yield document
        if not found:
            raise SourceError(f"{path} holds no {suffix} file; name the files to import")


def size_on_disk(paths: Sequence[Path], suffix: str = "") -> int:
    """Bytes of all files that the paths name."""
    files = [f for p in paths for f in (_in_folder(p, suffix) if p.is_dir() else [p])]
    return sum(f.stat().st_size for f in files if f.is_file())


def _documents(path: Path, suffix: str, meter: Meter) -> Iterator[Document]:
    name = path.name.lower()
    if path.is_dir():
        for file in _in_folder(path, suffix):
            yield Document(str(file), _unpacked(file.name), _read(file, meter))
    elif name.endswith(TAR):
        yield from _in_tar(path, suffix, meter)
    elif name.endswith(ZIP):
        yield from _in_zip(path, suffix, meter)
    else:
        yield Document(str(path), _unpacked(path.name), _read(path, meter))


def _in_folder(folder: Path, suffix: str) -> list[Path]:
    return sorted(f for f in folder.rglob("*") if f.is_file() and _unpacked(f.name).endswith(suffix))


def _in_tar(path: Path, suffix: str, meter: Meter) -> Iterator[Document]:
    with _damage_named(path), _stream(path, meter) as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
        for member in archive:
            _stay_inside(path, member.name)
            if member.isdir():
                continue
            content = archive.extractfile(member) if member.isreg() else None
            if content is None:
                raise SourceError(f"{path} holds {member.name!r}, a link or device; only plain files are read from it")
            if _unpacked(member.name).endswith(suffix):
                yield _member(path, member.name, content)


def _in_zip(path: Path, suffix: str, meter: Meter) -> Iterator[Document]:
    with _damage_named(path), zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            _stay_inside(path, member.orig_filename)
            if member.is_dir() or not _unpacked(member.filename).endswith(suffix):
                continue
            if member.flag_bits & 1:
                raise SourceError(f"{path} holds {member.filename!r} under a password; unlock it first")
            with archive.open(member) as content:
                yield _member(path, member.filename, content)
            meter.read(member.compress_size)


def _member(path: Path, name: str, content: IO[bytes]) -> Document:
    with _decompressed(cast(BinaryIO, content), name) as stream:
        return Document(f"{path}: {name}", PurePosixPath(_unpacked(name)).name, stream.read())


def _stay_inside(path: Path, name: str) -> None:
    """Nothing is unpacked, but a name that points outside says that the archive is not what it seems."""
    windows = PureWindowsPath(name)
    if ".." in windows.parts or windows.root or windows.drive:
        raise SourceError(
            f"{path} holds a member named {name!r}, which points outside of it; do not trust this archive"
        )


def _unpacked(name: str) -> str:
    return name.removesuffix(".gz").removesuffix(".xz")


def _read(path: Path, meter: Meter) -> bytes:
    with _damage_named(path), _stream(path, meter) as stream:
        return stream.read()


@contextlib.contextmanager
def _stream(path: Path, meter: Meter) -> Iterator[BinaryIO]:
    with path.open("rb", buffering=0) as raw:
        counted = io.BufferedReader(_Counted(raw, meter), 1 << 18)
        name = path.name.lower().replace(".tgz", ".gz").replace(".txz", ".xz")
        with _decompressed(cast(BinaryIO, counted), name) as stream:
            yield stream


def _decompressed(stream: BinaryIO, name: str) -> BinaryIO:
    if name.endswith(".gz"):
        return cast(BinaryIO, gzip.GzipFile(fileobj=stream))
    return cast(BinaryIO, lzma.LZMAFile(stream)) if name.endswith(".xz") else stream


@contextlib.contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """Whatever a decompressor or the disk complains of, as one sentence."""
    try:
        yield
    except FileNotFoundError:
        raise SourceError(f"{path} does not exist") from None
    except (EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile, tarfile.TarError, zipfile.BadZipFile) as error:
        reason = str(error).rstrip(".")
        raise SourceError(f"{path} is cut short or damaged ({reason}); copy or download it again") from error
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise SourceError(f"{path} cannot be read: {reason}") from error


class _Counted(io.RawIOBase):
    """A raw file that tells the meter what was read of it."""

    def __init__(self, raw: io.FileIO, meter: Meter) -> None:
        self._raw = raw
        self._meter = meter

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        count = self._raw.readinto(buffer)
        self._meter.read(count)
        return count
