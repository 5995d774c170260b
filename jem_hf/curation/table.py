"""A table in a file that grows part by part: interrupted, nothing of it is lost, and nothing stands in it twice."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow

ROWS_A_PART = 2000
FORMATS = (".parquet", ".csv", ".jsonl")


class Table:
    """
    Rows of fixed columns in a parquet, csv or jsonl file.

    Until [`finish`] the rows stand in parts beside it, in the folder `FILE.parts`; each part is there whole or not at
    all.

    Args:
        path (`str` or `Path`): The file; rows that it has stay.
        columns (`Mapping[str, type]`): Names and types (bool, float, int, str), the first being the key.
        about (`Mapping`, *optional*): What made the rows; rows of something else are not gone on with.

    Raises:
        ValueError: another ending, or rows of other columns or of something else.
    """

    def __init__(self, path: str | Path, columns: Mapping[str, type], about: Mapping | None = None):
        self.path = Path(path)
        if self.path.suffix not in FORMATS:
            raise ValueError(f"{str(path)!r} is no name of a table: let it end in {', '.join(FORMATS)}")
        self.parts, self.schema, self.about = Path(f"{path}.parts"), _schema(columns), dict(about or {})
        self._rows: dict[str, list] = {name: [] for name in columns}
        self._check()

    def names(self) -> set:
        """The keys of all rows."""
        key = self.schema.names[0]
        return {name for part in self._tables() for name in part[key].to_pylist()}

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
        (self.parts / "about.json").write_text(json.dumps(self.about))
        part = self.parts / f"{len(self._files()):06}.parquet"
        pyarrow.parquet.write_table(rows, part.with_suffix(".unfinished"))
        os.replace(part.with_suffix(".unfinished"), part)
        for values in self._rows.values():
            values.clear()

    def finish(self) -> None:
        """Write the file anew, with all rows."""
        self.keep()
        if self.path.exists() and not self._files():
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self.path.with_name(f".{self.path.name}.unfinished")
        with _writer(unfinished, self.path.suffix, self.schema) as write:
            for part in self._tables():
                write(part)
        os.replace(unfinished, self.path)
        shutil.rmtree(self.parts, ignore_errors=True)

    def _files(self) -> list[Path]:
        return sorted(self.parts.glob("*.parquet"))

    def _tables(self) -> Iterator["pyarrow.Table"]:
        import pyarrow.parquet

        if self.path.exists():
            yield _read(self.path, self.schema)
        for part in self._files():
            yield pyarrow.parquet.read_table(part)

    def _check(self) -> None:
        about = self.parts / "about.json"
        if about.is_file() and json.loads(about.read_text()) != self.about:
            raise ValueError(
                f"{str(self.path)!r} was begun with other settings: name another file, or delete {self.parts}"
            )
        if self.path.exists():
            found = _read(self.path, None).schema.names
            if found != self.schema.names:
                other = sorted({*found} ^ {*self.schema.names})
                raise ValueError(f"{str(self.path)!r} has other columns ({', '.join(other[:3])}): name another file")


def _schema(columns: Mapping[str, type]) -> "pyarrow.Schema":
    import pyarrow

    types = {bool: pyarrow.bool_(), float: pyarrow.float64(), int: pyarrow.int64(), str: pyarrow.string()}
    return pyarrow.schema([(name, types[kind]) for name, kind in columns.items()])


def _read(path: Path, schema: "pyarrow.Schema | None") -> "pyarrow.Table":
    """A table of any format, in the types of the schema where there is one."""
    from pyarrow import csv, json, parquet

    if path.suffix == ".parquet":
        return parquet.read_table(path)
    if path.suffix == ".csv":
        options = csv.ConvertOptions(column_types=schema, strings_can_be_null=True, quoted_strings_can_be_null=False)
        return csv.read_csv(path, convert_options=options)
    return json.read_json(path, parse_options=json.ParseOptions(explicit_schema=schema))


class _writer:
    """A function that writes tables to a file of some format, one after the other."""

    def __init__(self, path: Path, ending: str, schema: "pyarrow.Schema"):
        from pyarrow import csv, parquet

        self.file = open(path, "wb")  # noqa: SIM115
        self.writer = None
        if ending == ".parquet":
            self.writer = parquet.ParquetWriter(self.file, schema)
        elif ending == ".csv":
            self.writer = csv.CSVWriter(self.file, schema)

    def __enter__(self):
        return self.write

    def write(self, rows: "pyarrow.Table") -> None:
        if self.writer is not None:
            self.writer.write_table(rows)
        else:
            self.file.writelines(f"{json.dumps(row)}\n".encode() for row in rows.to_pylist())

    def __exit__(self, *error):
        if self.writer is not None:
            self.writer.close()
        self.file.close()
