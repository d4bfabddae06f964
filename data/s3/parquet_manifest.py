"""manifest.parquet: one row for each image of a data set."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from binsweep.data.labels import Label, LabelKind, sorted_labels
from binsweep.data.s3.pull_state import PullState
from binsweep.data.sources.object_names import Layout, split_key
from binsweep.data.split import Split, assign

_COLUMNS = (
    ("id", pa.string()),
    ("uri", pa.string()),
    ("label", pa.int32()),  # or a string, where classes have names
    ("split", pa.string()),
    ("sha256", pa.string()),
    ("width", pa.int32()),
    ("height", pa.int32()),
    ("bytes", pa.int64()),
    ("item_names", pa.list_(pa.string())),
    ("item_quantities", pa.list_(pa.int64())),
)
_BATCH_ROWS = 10_000
_LABEL = [name for name, _ in _COLUMNS].index("label")
_QUERY = """
select c.id, min(i.name), c.label, c.split, i.sha256, i.width, i.height, i.size, d.names, d.quantities
from chosen c join listed l using (id) join images i on i.name = l.name left join documents d on d.id = c.id
where l.layout = ? and i.reason = '' group by c.id order by c.id
"""


def manifest_rows(state: PullState, layout: Layout, uri: str) -> Iterator[tuple[Any, ...]]:
    """The rows of the chosen, readable images, by ascending id.

    The split is the folder's if the layout has one, otherwise the one of a sweep without `data.split`.
    """
    for id, name, label, split, sha256, width, height, size, names, quantities in state.rows(
        _QUERY, (layout,)
    ):
        split_name = split or assign(Split(), split_key(id, name), label)
        items = json.loads(names or "[]"), json.loads(quantities or "[]")
        yield (id, f"{uri}/{name}", label, split_name, sha256, width, height, size, *items)


def schema(kind: LabelKind) -> pa.Schema:
    """The columns of a manifest whose labels are of this kind."""
    schema = pa.schema(_COLUMNS)
    return schema if kind == "counts" else schema.set(_LABEL, pa.field("label", pa.string()))


def write_table(path: Path, rows: Iterable[tuple[Any, ...]], kind: LabelKind = "counts") -> dict[Label, int]:
    """Write rows in the columns of `schema` to a Parquet file; returns the number of rows of each label."""
    counts: Counter[Label] = Counter()
    columns = schema(kind)
    with pq.ParquetWriter(path, columns, compression="zstd") as writer:
        batch_rows: list[tuple[Any, ...]] = []
        for row in rows:
            batch_rows.append(row)
            counts[row[_LABEL]] += 1
            if len(batch_rows) == _BATCH_ROWS:
                writer.write_batch(_batch(batch_rows, columns))
                batch_rows.clear()
        writer.write_batch(_batch(batch_rows, columns))
    return {label: counts[label] for label in sorted_labels(counts)}


def _batch(rows: list[tuple[Any, ...]], schema: pa.Schema) -> pa.RecordBatch:
    columns = list(zip(*rows, strict=True)) or [() for _ in schema]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
    return pa.record_batch(arrays, schema=schema)
