"""manifest.parquet: one row for each image of a data set."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from binsweep.data.s3.pull_state import PullState
from binsweep.data.sources.object_names import Layout, split_key
from binsweep.data.split import Split, assign

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("uri", pa.string()),
        ("label", pa.int32()),
        ("split", pa.string()),
        ("sha256", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("bytes", pa.int64()),
        ("item_names", pa.list_(pa.string())),
        ("item_quantities", pa.list_(pa.int64())),
    ]
)
_BATCH_ROWS = 10_000
_LABEL = SCHEMA.get_field_index("label")
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


def write_table(path: Path, rows: Iterable[tuple[Any, ...]]) -> dict[int, int]:
    """Write rows in the columns of SCHEMA to a Parquet file; returns the number of rows of each label."""
    counts: Counter[int] = Counter()
    with pq.ParquetWriter(path, SCHEMA, compression="zstd") as writer:
        batch_rows: list[tuple[Any, ...]] = []
        for row in rows:
            batch_rows.append(row)
            counts[row[_LABEL]] += 1
            if len(batch_rows) == _BATCH_ROWS:
                writer.write_batch(_batch(batch_rows))
                batch_rows.clear()
        writer.write_batch(_batch(batch_rows))
    return dict(sorted(counts.items()))


def _batch(rows: list[tuple[Any, ...]]) -> pa.RecordBatch:
    columns = list(zip(*rows, strict=True)) or [() for _ in SCHEMA]
    arrays = [pa.array(column, kind.type) for column, kind in zip(columns, SCHEMA, strict=True)]
    return pa.record_batch(arrays, schema=SCHEMA)
