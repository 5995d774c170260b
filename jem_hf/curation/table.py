"""A table in a file that grows part by part: interrupted, nothing of it is lost, and nothing stands in it twice."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow

ROWS_A_PART = 2000
FORMATS = (".parquet", ".csv", ".jsonl")
ERROR = "error"  # the column of rows that failed, and are tried again


class Table:
    """
    Rows of fixed columns in a parquet, csv or jsonl file.

    Until [`finish`] the rows stand in parts beside it, in the folder `FILE.parts`; each part is there whole or not at
    all. What made the rows stays in `FILE.about.json`.

    Args:
        path (`str` or `Path`): The file; rows that it has stay.
        columns (`Mapping[str, type]`): Names and types (bool, float, int, str), the first being the key.
        about (`Mapping`, *optional*): What made the rows; rows of something else are not gone on with.

    Raises:
        ValueError: another ending, a folder of that name, or rows of other columns or of something else.
    """

    def __init__(self, path: str | Path, columns: Mapping[str, type], about: Mapping | None = None):
        self.path = checked_path(path)
        self.parts, self.about_path = Path(f"{path}.parts"), Path(f"{path}.about.json")
        self.schema, self.about = schema_of(columns), dict(about or {})
        self._rows: dict[str, list] = {name: [] for name in columns}
        self._check()

    def names(self) -> set:
        """The keys of all rows but those that failed."""
        return {name for keys, errors in self._keys() for name, error in zip(keys, errors) if not error}

    def add(self, rows: Mapping[str, Sequence]) -> None:
        """Rows, a sequence a column."""
        for name, values in self._rows.items():
            values += rows[name]
        if len(values) >= ROWS_A_PART:
            self.keep()

    def keep(self) -> None:
        """Write what was added as a part."""
        import pyarrow.parquet

        rows = pyarrow.table(self._rows, schema=self.schema)
        if not len(rows):
            return
        self.parts.mkdir(parents=True, exist_ok=True)
        if not self.about_path.exists():
            self._write_about()
        part = self.parts / f"{len(self._files()):06}.parquet"
        pyarrow.parquet.write_table(rows, part.with_suffix(".unfinished"))
        os.replace(part.with_suffix(".unfinished"), part)
        for values in self._rows.values():
            values.clear()

    def finish(self) -> None:
        """Write the file anew, with all rows; of those of one key the last."""
        self.keep()
        if self.path.exists() and not self._files():
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        last = {key: i for i, (keys, _) in enumerate(self._keys()) for key in keys}
        unfinished = self.path.with_name(f".{self.path.name}.unfinished")
        with _Writer(unfinished, self.path.suffix, self.schema) as writer:
            for i, rows in enumerate(self._batches()):
                kept = [row for row, key in enumerate(rows.column(0).to_pylist()) if last.get(key) == i]
                writer.write(rows.take(kept))
        self._write_about()
        os.replace(unfinished, self.path)
        shutil.rmtree(self.parts, ignore_errors=True)

    def _files(self) -> list[Path]:
        return sorted(self.parts.glob("*.parquet"))

    def _batches(self) -> Iterator["pyarrow.RecordBatch"]:
        """All rows, some at a time, the same at every call."""
        for file in ([self.path] if self.path.exists() else []) + self._files():
            yield from _read(file, self.schema)

    def _keys(self) -> Iterator[tuple[list, list]]:
        """Keys of all rows, some at a time, and why they failed."""
        for rows in self._batches():
            keys = rows.column(0).to_pylist()
            yield keys, rows.column(ERROR).to_pylist() if ERROR in self.schema.names else [None] * len(keys)

    def _write_about(self) -> None:
        unfinished = self.about_path.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(self.about))
        os.replace(unfinished, self.about_path)

    def _check(self) -> None:
        if not (self.path.exists() or self._files()):
            self.about_path.unlink(missing_ok=True)
        elif self.about_path.exists() and (found := json.loads(self.about_path.read_text())) != self.about:
            different = sorted(key for key in {*found, *self.about} if found.get(key) != self.about.get(key))
            raise ValueError(f"{str(self.path)!r} was made with another {', '.join(different)}: name another file")
        found = _column_names(self.path) if self.path.exists() else self.schema.names
        if found != self.schema.names:
            different = sorted({*found} ^ {*self.schema.names})
            raise ValueError(f"{str(self.path)!r} has other columns ({', '.join(different[:3])}): name another file")


def checked_path(path: str | Path) -> Path:
    """The path of a table. Raises `ValueError` for a folder, or another ending."""
    path = Path(path)
    if path.suffix not in FORMATS:
        raise ValueError(f"{str(path)!r} is no name of a table: let it end in {', '.join(FORMATS)}")
    if path.is_dir():
        raise ValueError(f"{str(path)!r} is a folder: name a file in it, such as {str(path / 'tags.parquet')!r}")
    return path


def schema_of(columns: Mapping[str, type]) -> "pyarrow.Schema":
    """Of columns by name and type."""
    import pyarrow

    types = {bool: pyarrow.bool_(), float: pyarrow.float64(), int: pyarrow.int64(), str: pyarrow.string()}
    return pyarrow.schema([(name, types[kind]) for name, kind in columns.items()])


def _column_names(path: Path) -> list[str]:
    from pyarrow import csv, parquet

    if path.suffix == ".parquet":
        return parquet.read_schema(path).names
    if path.suffix == ".csv":
        with csv.open_csv(path) as reader:
            return reader.schema.names
    with open(path, encoding="utf-8") as lines:
        return list(json.loads(next(lines, "{}")))


def _read(path: Path, schema: "pyarrow.Schema") -> Iterator["pyarrow.RecordBatch"]:
    """The rows of a table of any format, some at a time."""
    import pyarrow
    from pyarrow import csv, parquet

    if path.suffix == ".parquet":
        with parquet.ParquetFile(path) as file:
            yield from file.iter_batches(ROWS_A_PART)
    elif path.suffix == ".csv":
        options = csv.ConvertOptions(column_types=schema, strings_can_be_null=True, quoted_strings_can_be_null=False)
        parsing = csv.ParseOptions(newlines_in_values=True)
        with csv.open_csv(path, convert_options=options, parse_options=parsing) as reader:
            yield from reader
    else:
        with open(path, encoding="utf-8") as lines:
            while rows := [json.loads(line) for line in islice(lines, ROWS_A_PART)]:
                yield pyarrow.RecordBatch.from_pylist(rows, schema=schema)


class _Writer:
    """Writes rows to a file of some format."""

    def __init__(self, path: Path, ending: str, schema: "pyarrow.Schema"):
        from pyarrow import csv, parquet

        self.file = open(path, "wb")  # noqa: SIM115
        writers = {".parquet": parquet.ParquetWriter, ".csv": csv.CSVWriter}
        self.writer = writers[ending](self.file, schema) if ending in writers else None

    def __enter__(self) -> "_Writer":
        return self

    def write(self, rows: "pyarrow.RecordBatch") -> None:
        if self.writer is None:
            self.file.writelines(f"{json.dumps(row)}\n".encode() for row in rows.to_pylist())
        else:
            self.writer.write_batch(rows)

    def __exit__(self, *error) -> None:
        if self.writer is not None:
            self.writer.close()
        self.file.close()
