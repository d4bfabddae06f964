"""`data.exclude`: photos that are left out of training, and of training alone."""

from pathlib import Path
from typing import Any

import pytest

from binsweep.data.errors import UserError
from binsweep.data.manifest import Manifest, load_manifest
from binsweep.data.split import Split
from binsweep.search.cli.data import _read_ids
from binsweep.search.spec.parser import parse_spec
from binsweep.search.spec.sweep_spec import SweepSpec
from binsweep.search.workflows.sweep_data import spec_manifest


def spec_of(bins: Path, file: Path) -> SweepSpec:
    data: dict[str, Any] = {"source": str(bins), "exclude": str(file)}
    return parse_spec({"name": "small", "data": data, "space": {"lr": [0.1, 0.2]}, "budget": {"trials": 2}})


def test_photos_are_left_out_of_train_and_of_train_alone(
    bins: Path, manifest: Manifest, tmp_path: Path
) -> None:
    gone, kept, tested = (manifest.split(name)[0].id for name in ("train", "validation", "test"))
    file = tmp_path / "exclude.csv"
    file.write_text(f"id,label\n{gone},1\n{kept},2\n{tested},2\n")
    less = spec_manifest(spec_of(bins, file), tmp_path)
    assert {item.id for item in manifest.items} - {item.id for item in less.items} == {gone}
    assert less.fingerprint != manifest.fingerprint and less.full_fingerprint == manifest.fingerprint
    assert less.split("test") == manifest.split("test")
    assert [one.reason for one in less.skipped] == [f"excluded by {file}"]


@pytest.mark.parametrize("text", ["id,label\r\n{gone},1\r\n", "id;label\r\n{gone};1\r\n"])
def test_a_file_that_excel_saved(bins: Path, manifest: Manifest, tmp_path: Path, text: str) -> None:
    gone, file = manifest.split("train")[0].id, tmp_path / "exclude.csv"
    file.write_bytes(text.format(gone=gone).encode("utf-8-sig"))
    less = spec_manifest(spec_of(bins, file), tmp_path)
    assert {item.id for item in manifest.items} - {item.id for item in less.items} == {gone}
    file.write_text(f"{gone}\r\n", encoding="utf-8-sig")
    assert _read_ids(file) == (gone,)


@pytest.mark.parametrize(
    ("text", "said"),
    [("name\nx\n", "no column `id`"), ("", "no column `id`"), ("id\nnobody\n", "names no photo")],
)
def test_a_file_of_no_use_is_refused(bins: Path, tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "exclude.csv"
    file.write_text(text)
    with pytest.raises(UserError, match=said):
        spec_manifest(spec_of(bins, file), tmp_path)
    with pytest.raises(UserError, match="cannot read"):
        spec_manifest(spec_of(bins, tmp_path / "absent.csv"), tmp_path)


def test_without_a_file_nothing_is_left_out(bins: Path, manifest: Manifest, tmp_path: Path) -> None:
    raw = {"name": "small", "data": {"source": str(bins)}, "space": {"lr": [0.1, 0.2]}}
    spec = parse_spec({**raw, "budget": {"trials": 2}})
    assert spec_manifest(spec, tmp_path) == load_manifest(str(bins), None, Split(), tmp_path) == manifest
