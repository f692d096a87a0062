"""Which files a `put` means, and what each is called."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from services.cli.errors import CommandFailed, Exit


@dataclass(frozen=True)
class LocalFile:
    """A file and the document it becomes."""

    path: Path
    name: str
    """Its path below the folder that was given, with forward slashes; the file's own name if it was given itself."""


def files_under(paths: Sequence[Path]) -> list[LocalFile]:
    """The files among `paths` and in the folders among them, in order of name; hidden ones only if named themselves.

    Links to files are followed, links to folders are not: they may lead round in a circle.

    Raises:
        CommandFailed: a path is missing, there is nothing to put, or two files would become one document.
    """
    files: dict[str, LocalFile] = {}
    for path in paths:
        for file in _under(path):
            other = files.setdefault(file.name, file)
            if not other.path.samefile(file.path) if _both_exist(other, file) else other.path != file.path:
                raise CommandFailed(
                    Exit.USAGE,
                    f"{other.path} and {file.path} would both be the document {file.name!r}: put them one at a time "
                    "from a folder above both",
                )
    if not files:
        raise CommandFailed(Exit.USAGE, f"no files to put in {', '.join(str(path) for path in paths)}")
    return list(files.values())


def _both_exist(one: LocalFile, other: LocalFile) -> bool:
    return one.path.exists() and other.path.exists()


def _under(path: Path) -> Iterator[LocalFile]:
    if not path.is_dir():
        if not path.exists():
            raise CommandFailed(Exit.USAGE, f"there is no file or folder {path}")
        yield LocalFile(path, _sendable(path.name))
        return
    for folder, subfolders, names in os.walk(path):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in sorted(name for name in names if not name.startswith(".")):
            file = Path(folder, name)
            yield LocalFile(file, _sendable(file.relative_to(path).as_posix()))


def _sendable(name: str) -> str:
    """File names are bytes, document names are text: bytes that are no UTF-8 become \\xff, so two stay two."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
