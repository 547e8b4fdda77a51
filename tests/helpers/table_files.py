"""The same table in a file of every kind."""

from __future__ import annotations

import json
from pathlib import Path

KINDS = ("csv", "tsv", "jsonl", "json", "parquet")


def write_text(path: Path, text: str) -> Path:
    """Write a file with the ends of lines as they are."""
    path.write_bytes(text.encode())
    return path


def write_tables(folder: Path) -> Path:
    """Write `t[1].KIND` of every kind, with the columns id and caption; give the folder."""
    import pyarrow
    import pyarrow.parquet

    # "NA" and the brackets in the name are what a less literal reader trips over.
    rows = [{"id": 1, "caption": "NA"}, {"id": 2, "caption": ' a "big", cat\t'}, {"id": 3, "caption": "NA"}]
    write_text(folder / "t[1].csv", 'id,caption\n1,NA\n2," a ""big"", cat "\n3,NA\n\n,\n')
    write_text(folder / "t[1].tsv", 'id\tcaption\n1\tNA\n2\t"a ""big"", cat"\n')
    write_text(folder / "t[1].json", json.dumps(rows, indent=2))
    write_text(folder / "t[1].jsonl", "\n".join(json.dumps(row) for row in rows) + "\n\n")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "t[1].parquet")
    return folder
