import pytest
from store_samples import contents, make_manifest, write_checkpoint, write_rollout, write_run

from rlcm_cli.errors import ConfigError, MissingFileError
from rlcm_cli.store.layout import receipt_path
from rlcm_cli.store.quarantine import quarantine


@pytest.fixture
def layout(tmp_path):
    return write_run(tmp_path / "run")


def test_a_record_moves_with_its_receipt_and_is_made_again_with_the_same_bytes(layout):
    path = layout.shard(0, 1, 2)
    before = contents(layout.root)
    record, receipt = path.read_bytes(), receipt_path(path).read_bytes()
    path.write_bytes(b"damaged")
    moved = quarantine(path)
    assert {file.name: file.read_bytes() for file in moved} == {
        path.name: b"damaged",
        receipt_path(path).name: receipt,
    }
    assert all(file.is_relative_to(layout.quarantine / "rollouts" / "000000") for file in moved)
    assert not path.exists()
    assert not receipt_path(path).exists()

    write_rollout(layout, make_manifest())
    assert path.read_bytes() == record
    after = contents(layout.root)
    assert {name: after[name] for name in before} == before


def test_the_receipt_goes_first_so_that_no_reader_takes_the_record_for_lost(layout):
    path = layout.shard(0, 0, 2)
    assert [file.name for file in quarantine(path)] == [receipt_path(path).name, path.name]


def test_nothing_in_quarantine_is_overwritten(layout):
    path = layout.shard(0, 0, 2)
    for content in (b"first", b"second", b"third"):
        path.write_bytes(content)
        quarantine(path)
        write_rollout(layout, make_manifest())
    kept = [file.read_bytes() for file in layout.quarantine.rglob("shard-00000*.safetensors*")]
    assert sorted(kept) == [b"first", b"second", b"third"]


def test_a_folder_moves_whole(layout):
    before = contents(layout.checkpoint(1))
    (moved,) = quarantine(layout.checkpoint(1))
    assert contents(moved) == before
    assert layout.checkpoints() == [0]
    write_checkpoint(layout, 1, 2.0)
    assert layout.checkpoints() == [0, 1]


def test_a_receipt_alone_or_a_manifest_can_be_named(layout):
    receipt = receipt_path(layout.shard(0, 0, 2))
    assert [file.name for file in quarantine(receipt)] == [receipt.name]
    assert [file.name for file in quarantine(layout.manifest(0))] == ["manifest.json"]


def test_a_path_outside_a_run_is_refused_and_stays(layout, tmp_path):
    outside = tmp_path / "file"
    outside.write_text("mine")
    for path in (outside, layout.rollout(0) / ".." / ".." / ".." / "file"):
        with pytest.raises(ConfigError, match="lies in no run directory"):
            quarantine(path)
    link = layout.root / "link"
    link.symlink_to(outside)
    assert quarantine(link) == [layout.quarantine / "link"]  # the link, not what it points to
    assert outside.read_text() == "mine"


def test_the_run_itself_and_what_is_in_quarantine_are_refused(layout):
    with pytest.raises(ConfigError, match="is a whole run"):
        quarantine(layout.root)
    (moved,) = quarantine(layout.manifest(0))
    with pytest.raises(ConfigError, match="is in quarantine already"):
        quarantine(moved)
    assert moved.exists()


@pytest.mark.parametrize("name", ["config.jsn", "config", "config.toml", "metrics/000001.jsonl"])
def test_a_file_of_another_kind_takes_no_other_along_as_its_receipt(layout, name):
    (layout.root / name).with_suffix(".json").parent.mkdir(exist_ok=True)
    (layout.root / name).with_suffix(".json").touch()
    with pytest.raises(MissingFileError, match="nothing to move"):
        quarantine(layout.root / name)
    assert not layout.quarantine.exists()

    (layout.root / name).touch()
    assert quarantine(layout.root / name) == [layout.quarantine / name]
    assert (layout.root / name).with_suffix(".json").exists()


def test_a_file_that_is_not_there_is_an_error(layout):
    with pytest.raises(MissingFileError, match="nothing to move"):
        quarantine(layout.rollout(0) / "no-such.safetensors")
