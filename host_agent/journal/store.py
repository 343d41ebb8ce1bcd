"""The SQLite file with the records: its schema and versions, and the errors of its disk under our names.

SQLite runs in WAL mode with synchronous=FULL: a commit returns when the WAL is on the disk. Checkpoints are our own,
so that a failing one is noticed: SQLite's automatic ones keep their errors to themselves.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Self

import apsw

from host_agent.journal.directory import sync_directory
from host_agent.journal.errors import DamagedError, StorageFailedError, StorageFullError, VersionError
from host_agent.journal.mark import BadMarkError, Mark, read_mark

#: "fpst", so that `file` and SQLite's own tools can tell whose it is.
APPLICATION_ID: Final = 0x66707374
SCHEMA_VERSION: Final = 1
#: Older ones can lose a commit when a checkpoint resets the WAL. Source: sqlite.org/wal.html, "The WAL-Reset Bug".
SQLITE_MIN: Final = (3, 51, 3)
DATABASE: Final = "journal.sqlite"

_FULL_ERRNOS: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
#: An entry of the books: the number of a record and its CRC.
_PLACE: Final = struct.Struct("<QI")
_SCHEMA: Final = """
CREATE TABLE record (n INTEGER PRIMARY KEY, body BLOB NOT NULL);
CREATE TABLE book (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE probe (body BLOB NOT NULL);
"""


def check_sqlite_version(version: str = "") -> None:
    """Refuse a SQLite that can lose commits. Raises ``VersionError``."""
    found = version or apsw.sqlite_lib_version()
    if tuple(int(part) for part in found.split(".")) < SQLITE_MIN:
        least = ".".join(str(part) for part in SQLITE_MIN)
        raise VersionError(f"SQLite {found} can lose commits: a state directory needs {least} (pip install -U apsw)")


def _acknowledged(directory: Path) -> tuple[tuple[int, int], str]:
    """What the mark says, or why it says nothing."""
    try:
        return read_mark(directory) or (0, 0), ""
    except BadMarkError as error:
        return (0, 0), str(error)


def _make_private(path: Path) -> None:
    """SQLite gives what lies beside its file the file's own mode."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))


class Store:
    """The SQLite file of a directory, open. Whoever writes holds the ``DirectoryLock`` as well.

    Errors of the disk come out as ``StorageFullError`` and ``StorageFailedError``, those of the file as
    ``DamagedError`` and ``VersionError``.
    """

    def __init__(self, directory: Path, *, write: bool, vfs: str = "") -> None:
        """Open it, and make it where it is to be written and does not exist."""
        check_sqlite_version()
        self.directory = directory
        self.path = directory / DATABASE
        self._write = write
        #: Pages in the WAL after the last commit of this connection.
        self.wal_pages = 0
        flags = apsw.SQLITE_OPEN_READWRITE | (apsw.SQLITE_OPEN_CREATE if write else 0)
        if write:
            _make_private(self.path)
        #: What was acknowledged before this looked at anything: a number and a CRC. (0, 0) where nobody has said.
        self.acknowledged, self.bad_mark = _acknowledged(directory)
        self._mark = Mark(directory) if write else None
        with _disk_errors(None):
            self.connection = apsw.Connection(str(self.path), flags=flags, vfs=vfs or None)
        with self.errors():
            self._open()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close it, and leave the files as they are: a damaged log is evidence, and a checkpoint would end it."""
        self.connection.close()
        if self._mark is not None:
            self._mark.close()
            self._mark = None

    def close_in_peace(self) -> None:
        """Close it; where this is the last connection, the log is brought into the file and is no more."""
        with self.errors():
            self.connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 0)
        self.close()

    def errors(self) -> _disk_errors:
        """Give SQLite's errors our names within a block."""
        return _disk_errors(self.connection)

    def _open(self) -> None:
        self.connection.set_busy_timeout(10_000)
        self.connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        application, version = self._pragma("application_id"), self._pragma("user_version")
        if self._write and application == 0 and version == 0 and not self._tables():
            self._create()
        elif application != APPLICATION_ID:
            raise VersionError(f"{self.path} is not a journal of fpstated")
        elif version != SCHEMA_VERSION:
            raise VersionError(
                f"{self.path} has schema version {version}; this release reads {SCHEMA_VERSION} (docs/storage.md says "
                "how to upgrade and how to go back)"
            )
        self.connection.pragma("synchronous", "FULL")
        self.connection.set_wal_hook(self._committed)  # in place of SQLite's own checkpoints

    def _committed(self, _connection: apsw.Connection, _name: str, pages: int) -> int:
        self.wal_pages = pages
        return apsw.SQLITE_OK

    def _pragma(self, name: str) -> int:
        return int(self.connection.pragma(name))

    def _tables(self) -> int:
        return int(self.connection.execute("SELECT count(*) FROM sqlite_schema").get)

    def _create(self) -> None:
        self.connection.pragma("journal_mode", "WAL")
        with self.connection:
            self.connection.execute(_SCHEMA)
            self.connection.pragma("application_id", APPLICATION_ID)
            self.connection.pragma("user_version", SCHEMA_VERSION)
            self._note("base", 0, 0)
            self._note("tail", 0, 0)
        sync_directory(self.path.parent)

    # -- reading -------------------------------------------------------------------------------------------------------

    def tail(self) -> tuple[int, int]:
        """The number and the CRC of the last record, as the books have them."""
        return self._noted("tail")

    def base(self) -> tuple[int, int]:
        """The number and the CRC of the last record that was forgotten; 0 and 0 where none was."""
        return self._noted("base")

    def _noted(self, name: str) -> tuple[int, int]:
        with self.errors():
            value = self.connection.execute("SELECT CAST(value AS BLOB) FROM book WHERE name = ?", (name,)).get
        if not isinstance(value, bytes) or len(value) != _PLACE.size:
            raise DamagedError(0, f"{self.path}: the journal's books have no good entry {name!r}")
        n, crc = _PLACE.unpack(value)
        return n, crc

    def first(self) -> int:
        """The number of the oldest record that is kept; 0 where there is none."""
        with self.errors():
            return int(self.connection.execute("SELECT min(n) FROM record").get or 0)

    def last(self) -> int:
        """The number of the last record that is there; 0 where there is none."""
        with self.errors():
            return int(self.connection.execute("SELECT max(n) FROM record").get or 0)

    def crc(self, n: int) -> int | None:
        """The CRC that record ``n`` ends with; None where there is no such record."""
        with self.errors():
            body = self.connection.execute("SELECT CAST(body AS BLOB) FROM record WHERE n = ?", (n,)).get
        return int.from_bytes(body[-4:], "little") if isinstance(body, bytes) else None

    def bodies(self, after: int, *, through: int | None = None) -> Iterator[tuple[int, bytes]]:
        """Yield (number, bytes) of the records after a number, in order."""
        end = through if through is not None else (1 << 63) - 1
        # A damaged type byte makes a blob a text, and a text that is none cannot even be read.
        query = "SELECT n, CAST(body AS BLOB) FROM record WHERE n > ? AND n <= ? ORDER BY n"
        with self.errors():
            for n, body in self.connection.execute(query, (after, end)):
                if not isinstance(n, int) or not isinstance(body, bytes):
                    raise DamagedError(after + 1, f"{self.path}: a row after record {after} is no record")
                yield n, body

    @contextmanager
    def reading(self) -> Iterator[None]:
        """See the store as it is at the first read, whatever is committed meanwhile."""
        with self.errors():
            self.connection.execute("BEGIN")
        try:
            yield
        finally:
            self.connection.execute("ROLLBACK")

    # -- writing -------------------------------------------------------------------------------------------------------

    def append(self, records: Iterable[tuple[int, bytes]], last: int, crc: int) -> None:
        """Commit records; they are on the disk when this returns. ``last`` and ``crc`` are the last one's."""
        with self.errors(), self.connection:
            self.connection.executemany("INSERT INTO record VALUES (?, ?)", records)
            self._note("tail", last, crc)
        self._put_mark(last, crc)

    def _put_mark(self, n: int, crc: int) -> None:
        assert self._mark is not None, "opened for reading"
        self._mark.put(n, crc)

    def _note(self, name: str, n: int, crc: int) -> None:
        self.connection.execute("INSERT OR REPLACE INTO book VALUES (?, ?)", (name, _PLACE.pack(n, crc)))

    def probe(self, size_bytes: int) -> None:
        """Try whether there is room for so many bytes. Raises what ``append`` would."""
        with self.errors():
            with self.connection:
                self.connection.execute("INSERT INTO probe VALUES (zeroblob(?))", (size_bytes,))
            with self.connection:
                self.connection.execute("DELETE FROM probe")

    def checkpoint(self) -> int:
        """Bring what is in the WAL into the file; returns the pages that stay there because somebody reads them."""
        with self.errors():
            pages, done = self.connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
        return max(0, pages - done)

    def forget(self, through: int, *, at_most: int) -> int:
        """Delete the oldest records up to a number, so many at most; returns how many it were.

        The books keep the number and the CRC of the last one that went: what is left is chained to it.
        """
        end = min(through, self.first() + at_most - 1)
        gone = 0
        with self.errors(), self.connection:
            crc = self.crc(end)
            if crc is not None:
                self._note("base", end, crc)
                self.connection.execute("DELETE FROM record WHERE n <= ?", (end,))
                gone = self.connection.changes()
        return gone

    def take(self, other: Store) -> None:
        """Become a copy of another store as it is at one moment, whatever is committed there meanwhile."""
        with self.errors(), self.connection.backup("main", other.connection, "main") as backup:
            while not backup.done:
                backup.step(-1)

    def branch(self) -> None:
        """Note that from here on this is another history than the one it was copied from, or was before."""
        n, crc = self.tail()
        with self.errors(), self.connection:
            self._note("branch", n, crc)

    def branched(self) -> bool:
        """Whether nothing has been recorded since ``branch``."""
        with self.errors():
            found = self.connection.execute("SELECT count(*) FROM book WHERE name = 'branch'").get
        return bool(found) and self._noted("branch") == self.tail()

    def truncate(self, after: int, crc: int) -> int:
        """Delete every record after a number, whose CRC is ``crc``; returns how many it were. See ``branch``."""
        with self.errors(), self.connection:
            self.connection.execute("DELETE FROM record WHERE n > ?", (after,))
            gone = self.connection.changes()
            self._note("tail", after, crc)
            self._note("branch", after, crc)
        self._put_mark(after, crc)
        return gone

    def integrity(self) -> str:
        """What SQLite finds wrong with the file: "ok", or the first complaints."""
        with self.errors():
            rows = [str(row[0]) for row in self.connection.execute("PRAGMA integrity_check(5)")]
        return "; ".join(rows)


class _disk_errors:  # noqa: N801 -- reads as a statement: ``with store.errors():``
    """Turns apsw's exceptions into ours, by what is to be done about them."""

    def __init__(self, connection: apsw.Connection | None) -> None:
        self._connection = connection

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if not isinstance(error, apsw.Error):
            return
        number = self._connection.system_errno if self._connection is not None else 0
        detail = f"{type(error).__name__}: {error}" + (f" ({os.strerror(number)})" if number else "")
        if isinstance(error, apsw.FullError) or (isinstance(error, apsw.IOError) and number in _FULL_ERRNOS):
            raise StorageFullError(f"the disk is full: {detail}") from error
        if isinstance(error, apsw.CorruptError | apsw.NotADBError | apsw.FormatError | apsw.SQLError):
            raise DamagedError(0, f"the journal's file is damaged: {detail}") from error
        raise StorageFailedError(f"the journal cannot be written or read: {detail}") from error
