"""The code of a job as it travels to AzureML: the user's files, the runner's source, and what starts them.

Files keep their names, so that the studio can show them. Only where there are very many, most of the small ones
travel together in archives, which :mod:`health_ml.azure.job_start` unpacks on the node: a service that takes a request
for each file is slow with thousands of them. The files that a person would look at stay files.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import health_ml
from health_ml.azure import job_start
from health_ml.errors import SnapshotError
from health_ml.planning.file_hashes import EXECUTABLE_MODE, PLAIN_MODE, Key, SnapshotFile, is_remembered
from health_ml.planning.snapshot import Snapshot, take_snapshot

LAYOUT_VERSION = 2
MAX_SINGLE_FILES = 1000
"""Up to so many small files each are a blob of their own."""
KEPT_SINGLE_FILES = 64
"""Where there are more, so many of them still are."""
PACKED_BELOW = 1 << 20
FILES_PER_PACK = 1024
BYTES_PER_PACK = 16 << 20
"""Several packs are in memory at once."""
READABLE_SUFFIXES = (
    ".py",
    ".ipynb",
    ".sh",
    ".yml",
    ".yaml",
    ".toml",
    ".cfg",
    ".ini",
    ".json",
    ".md",
    ".rst",
    ".txt",
    ".r",
    ".jl",
)
_RUNNER_SOURCE = f"{job_start.FOLDER}/{job_start.PACKAGE}/"
_ZIP_TIME = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class JobCode:
    """The files of a job.

    :param snapshot: The user's files.
    :param folder: Folder of the user's files.
    :param runner: The runner's source; empty if the job has it already.
    :param package: Folder of the runner's source.
    :param own: The files that exist nowhere else, with their content.
    :param cache_folder: Where hashes of files are remembered, or None.
    """

    snapshot: Snapshot
    folder: Path
    runner: Snapshot
    package: Path
    own: Mapping[str, bytes]
    cache_folder: Path | None = None

    @cached_property
    def content_hash(self) -> str:
        """Hash of all that travels, by which the service finds code that it has."""
        own = Snapshot(tuple(self._own_files)).content_hash
        text = f"health_ml code {LAYOUT_VERSION} {self.snapshot.content_hash} {self.runner.content_hash} {own}"
        return hashlib.sha256(text.encode()).hexdigest()

    @cached_property
    def files(self) -> tuple[SnapshotFile, ...]:
        """The manifest of all that travels, in the order of the paths."""
        runner = [file._replace(path=_RUNNER_SOURCE + file.path) for file in self.runner.files]
        return tuple(sorted([*self.snapshot.files, *runner, *self._own_files]))

    @property
    def _own_files(self) -> list[SnapshotFile]:
        return [
            SnapshotFile(path, len(content), PLAIN_MODE, hashlib.sha256(content).hexdigest())
            for path, content in self.own.items()
        ]

    def place(self, file: SnapshotFile) -> Path:
        """Returns where a file is on this machine."""
        if file.path.startswith(_RUNNER_SOURCE):
            return self.package / file.path.removeprefix(_RUNNER_SOURCE)
        return self.folder / file.path

    def is_remembered(self, file: SnapshotFile, key: Key) -> bool:
        """Returns True if a file of the user is remembered with its hash, by what it is known now."""
        if self.cache_folder is None or self.place(file) != self.folder / file.path:
            return False
        return is_remembered(self.folder.resolve(), file, key, cache_folder=self.cache_folder)

    def read(self, file: SnapshotFile) -> bytes:
        """Returns the content of a file.

        :raises SnapshotError: If it is not what the manifest says any more.
        """
        try:
            content = self.own[file.path] if file.path in self.own else self.place(file).read_bytes()
        except OSError as error:
            raise changed(file) from error
        if hashlib.sha256(content).hexdigest() != file.sha256:
            raise changed(file)
        return content


@dataclass(frozen=True)
class StoredBlob:
    """One blob of the code of a job.

    :param name: Its name.
    :param identity: Hash of what it holds: equal ones hold the same.
    :param members: The file that it is, or the files of an archive.
    :param is_pack: True for an archive.
    """

    name: str
    identity: str
    members: tuple[SnapshotFile, ...]
    is_pack: bool = False

    @property
    def size(self) -> int:
        """Number of bytes of the files in it."""
        return sum(file.size for file in self.members)


def job_code(snapshot: Snapshot, folder: Path, *, has_runner: bool, cache_folder: Path | None = None) -> JobCode:
    """Returns the code of a job.

    :param snapshot: The user's files.
    :param folder: The folder that they are in.
    :param has_runner: True if the environment of the job brings this runner, so that its source can stay here.
    :param cache_folder: Where hashes of files are remembered.
    :raises SnapshotError: If a file of the user has the name of one of ours.
    """
    first = bisect_left(snapshot.files, (f"{job_start.FOLDER}/",))
    taken = snapshot.files[first].path if first < len(snapshot.files) else ""
    if taken.startswith(f"{job_start.FOLDER}/"):
        raise SnapshotError(
            f"The folder {job_start.FOLDER} belongs to himl-runner, and cannot travel with your code: {taken}.",
            "Remove it, or name it in .amlignore.",
        )
    package = Path(health_ml.__file__).parent
    runner = Snapshot(()) if has_runner else take_snapshot(package, cache_folder=cache_folder, heeds_git=False)
    executables = [path for path, _, mode, _ in snapshot.files if mode == EXECUTABLE_MODE]
    own = {job_start.START_FILE: Path(job_start.__file__).read_bytes()}
    if executables:
        own[job_start.EXECUTABLES_FILE] = json.dumps(executables).encode()
    return JobCode(snapshot, folder, runner, package, own, cache_folder)


def layout(code: JobCode) -> list[StoredBlob]:
    """Returns the blobs that hold the files."""
    runner = tuple(file for file in code.files if file.path.startswith(_RUNNER_SOURCE))
    others = [file for file in code.files if not file.path.startswith(_RUNNER_SOURCE)]
    small = [file for file in others if file.size < PACKED_BELOW]
    kept = len(small)
    if len(small) > MAX_SINGLE_FILES:
        kept = KEPT_SINGLE_FILES
        small.sort(key=_rank)
    singles = [file for file in others if file.size >= PACKED_BELOW] + small[:kept]
    blobs = [StoredBlob(file.path, file.sha256, (file,)) for file in singles]
    if runner:
        blobs.append(StoredBlob(f"{job_start.PACKS_FOLDER}/runner.zip", _identity(runner), runner, is_pack=True))
    return sorted([*blobs, *_packs(small[kept:])], key=lambda blob: blob.name)


def pack(code: JobCode, blob: StoredBlob) -> bytes:
    """Returns the archive of a blob with several files.

    :raises SnapshotError: If one of them has changed.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for file in blob.members:
            archive.writestr(zipfile.ZipInfo(file.path, _ZIP_TIME), code.read(file), zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def changed(file: SnapshotFile) -> SnapshotError:
    """Returns the error for a file that was written while the job was submitted."""
    return SnapshotError(
        f"The file {file.path} was changed while the job was submitted.",
        "Submit the job again when nothing writes to it, or name the file in .amlignore.",
    )


def _rank(file: SnapshotFile) -> tuple[bool, bool, int, bytes]:
    """Returns the place of a file among those that shall stay files: what starts a job, then what people look at."""
    is_needed = file.path in (job_start.START_FILE, job_start.EXECUTABLES_FILE)
    is_readable = file.path.lower().endswith(READABLE_SUFFIXES)
    return not is_needed, not is_readable, file.path.count("/"), file.path.encode()


def _packs(files: Sequence[SnapshotFile]) -> list[StoredBlob]:
    """Returns archives of about equal size. Which one a file is in depends on its path alone as long as the number of
    archives is the same, so that a change of one file changes one of them.
    """
    if not files:
        return []
    count = 1
    size = sum(file.size for file in files)
    while count * FILES_PER_PACK < len(files) or count * BYTES_PER_PACK < size:
        count *= 2
    groups: dict[int, list[SnapshotFile]] = defaultdict(list)
    for file in sorted(files, key=lambda file: file.path.encode()):
        groups[int(hashlib.sha256(file.path.encode()).hexdigest()[:8], 16) % count].append(file)
    return [
        StoredBlob(f"{job_start.PACKS_FOLDER}/{number:04}.zip", _identity(members), tuple(members), is_pack=True)
        for number, members in sorted(groups.items())
    ]


def _identity(members: Sequence[SnapshotFile]) -> str:
    # Modes are in a file of their own.
    return Snapshot(tuple(_without_mode(file) for file in members)).content_hash


def _without_mode(file: SnapshotFile) -> SnapshotFile:
    """Returns a file of the manifest as blob storage keeps it, which knows no permissions."""
    return file._replace(mode=PLAIN_MODE)
