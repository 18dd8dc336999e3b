"""Reads tables of columns (.parquet), with DuckDB: the columns that are asked for, a few rows at a time."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from retro_demo.documents.records import Record, record_rows
from retro_demo.documents.rows import FIELDS, File, Row, find_column
from retro_demo.errors import UserError

MAGIC = b"PAR1"
LOCKED = b"PARE"
MEMORY = "1GB"  # of DuckDB, which refuses what would take more
ROWS = 16
NESTED = ("STRUCT", "MAP", "UNION", "VARIANT")
PLAIN = (str, int, float, bool, type(None))
SETTINGS = {
    "threads": 1,
    "memory_limit": MEMORY,
    "temp_directory": "",
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
}


def read_parquet(file: File) -> Iterator[Row]:
    """One document a row. Raises UserError for columns of nested values that are asked for."""
    start = file.stream.peek()[:4]
    if not start:
        return
    if start != MAGIC:
        reason = "it is encrypted" if start == LOCKED else "it does not begin as one"
        raise _unreadable(file.label, reason)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.parquet"
        with path.open("wb") as copy:
            shutil.copyfileobj(file.stream, copy)
        yield from record_rows(_records(path, file), file)


def _records(path: Path, file: File) -> Iterator[Record]:
    import duckdb  # takes 0.1 s, and most have no use for it

    names = {file.fields.get(name, name): name for name in FIELDS}
    # Older writers do not mark which of their bytes are text.
    table = "read_parquet(?, binary_as_string=true)"
    try:
        with duckdb.connect(":memory:", config=SETTINGS) as database:
            about = database.execute(f"DESCRIBE SELECT * FROM {table}", [str(path)]).fetchall()
            kinds = {column: kind for column, kind, *_ in about}
            asked = {find_column(column, list(kinds)): name for column, name in names.items()}
            asked.pop("", None)
            for column, name in asked.items():
                _check_kind(kinds[column], column, name, file.label)
            named = ", ".join('"' + column.replace('"', '""') + '"' for column in asked)
            rows = database.execute(f"SELECT {named or 'NULL'} FROM {table}", [str(path)])
            number = 0
            while block := rows.fetchmany(ROWS):
                for values in block:
                    number += 1
                    file.unpacker.count(sum(len(value) for value in values if isinstance(value, str)))
                    found = zip(asked, values[: len(asked)], strict=True)
                    yield (
                        number,
                        f"Row {number:,} of {file.label}",
                        dict.fromkeys(kinds) | {column: _plain(value) for column, value in found},
                    )
    except duckdb.OutOfMemoryException as error:
        raise UserError(
            f"{file.label} takes more than {MEMORY} of memory to read: write it with smaller row groups, "
            "or as .jsonl."
        ) from error
    except (duckdb.Error, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0][:200].replace(str(path), file.label)
        raise _unreadable(file.label, reason) from error


def _unreadable(label: str, reason: str) -> UserError:
    return UserError(f"{label} is not a .parquet file that can be read ({reason}).")


def _check_kind(kind: str, column: str, name: str, label: str) -> None:
    if kind.endswith("]") or kind.startswith(NESTED):
        raise UserError(
            f"{label} has nested values ({kind[:40]}) in its column {column!r}, the {name}: "
            f"name a plain column with --fields {name}=NAME."
        )


def _plain(value: object) -> object:
    """Dates, decimals and their like as text; what else there is stays what it is."""
    return value if isinstance(value, PLAIN) else str(value)
