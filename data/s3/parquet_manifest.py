"""manifest.parquet: one row for each image of a data set, column by column, readable by everything."""

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
_ROWS = 10_000
_LABEL = SCHEMA.get_field_index("label")
_QUERY = """
select c.id, min(i.name), c.label, c.split, i.sha256, i.width, i.height, i.size, d.names, d.quantities
from chosen c join listed l using (id) join images i on i.name = l.name left join documents d on d.id = c.id
where l.layout = ? and i.reason = '' group by c.id order by c.id
"""


def ledger_rows(ledger: PullState, layout: Layout, uri: str) -> Iterator[tuple[Any, ...]]:
    """The rows of the readable images that a ledger has chosen, by ascending id.

    The split is the folder's where the layout has one, else what a sweep without `data.split` would give.
    """
    for id, name, label, split, sha256, width, height, size, names, quantities in ledger.rows(
        _QUERY, (layout,)
    ):
        where = split or assign(Split(), split_key(id, name), label)
        goods = json.loads(names or "[]"), json.loads(quantities or "[]")
        yield (id, f"{uri}/{name}", label, where, sha256, width, height, size, *goods)


def write_table(path: Path, rows: Iterable[tuple[Any, ...]]) -> dict[int, int]:
    """Write rows, each as long as the SCHEMA, to a Parquet file; returns how many each label has."""
    counts: Counter[int] = Counter()
    with pq.ParquetWriter(path, SCHEMA, compression="zstd") as writer:
        waiting: list[tuple[Any, ...]] = []
        for row in rows:
            waiting.append(row)
            counts[row[_LABEL]] += 1
            if len(waiting) == _ROWS:
                writer.write_batch(_batch(waiting))
                waiting.clear()
        writer.write_batch(_batch(waiting))
    return dict(sorted(counts.items()))


def _batch(rows: list[tuple[Any, ...]]) -> pa.RecordBatch:
    columns = list(zip(*rows, strict=True)) or [() for _ in SCHEMA]
    arrays = [pa.array(column, kind.type) for column, kind in zip(columns, SCHEMA, strict=True)]
    return pa.record_batch(arrays, schema=SCHEMA)
