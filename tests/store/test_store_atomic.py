import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rlcm_cli.errors import StorageFullError, StoreError
from rlcm_cli.store import atomic
from rlcm_cli.store.atomic import (
    publish_bytes,
    publish_folder,
    remove_folder,
    remove_stale,
    replace_bytes,
    replace_file,
    set_aside,
)

OLD, NEW = b"old" * 1000, b"new" * 1000


def publish_one_file_folder(path: Path, data: bytes) -> None:
    with publish_folder(path) as folder:
        (folder / "file").write_bytes(data)


WRITERS = {"publish_bytes": publish_bytes, "replace_bytes": replace_bytes, "publish_folder": publish_one_file_folder}
each_writer = pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS.keys())


def fail_with(code: int):
    def fail(*arguments, **options):
        raise OSError(code, os.strerror(code))

    return fail


@pytest.fixture(params=["hard links", "no hard links"])
def file_system(request, monkeypatch):
    if request.param == "no hard links":
        monkeypatch.setattr(os, "link", fail_with(errno.EOPNOTSUPP))


@pytest.mark.usefixtures("file_system")
class TestPublishBytes:
    def test_creates_the_file_and_the_folders_above_it(self, tmp_path):
        path = tmp_path / "a" / "b" / "file"
        assert publish_bytes(path, NEW)
        assert path.read_bytes() == NEW
        assert os.listdir(path.parent) == ["file"]

    def test_leaves_a_file_that_is_there(self, tmp_path):
        path = tmp_path / "file"
        path.write_bytes(OLD)
        assert not publish_bytes(path, NEW)
        assert path.read_bytes() == OLD
        assert os.listdir(tmp_path) == ["file"]

    def test_leaves_a_file_that_another_process_published_meanwhile(self, tmp_path, monkeypatch):
        path, flush = tmp_path / "file", os.fsync

        def another_process_is_quicker(descriptor):
            path.write_bytes(OLD)
            flush(descriptor)

        monkeypatch.setattr(os, "fsync", another_process_is_quicker)
        assert not publish_bytes(path, NEW)
        assert path.read_bytes() == OLD

    def test_gives_the_name_only_to_a_file_that_is_whole_and_flushed(self, tmp_path, monkeypatch):
        path, flushed = tmp_path / "file", []

        def look(descriptor):
            if not path.exists():
                flushed.append(os.fstat(descriptor).st_size)

        monkeypatch.setattr(os, "fsync", look)
        publish_bytes(path, NEW)
        assert flushed == [len(NEW)]


def test_of_many_publishers_at_once_exactly_one_creates_the_file(tmp_path):
    script = (
        "import sys, time, pathlib\n"
        "from rlcm_cli.store.atomic import publish_bytes\n"
        "folder, name = pathlib.Path(sys.argv[1]), sys.argv[2]\n"
        "(folder / f'ready-{name}').touch()\n"
        "while not (folder / 'go').exists(): time.sleep(0.0005)\n"
        "print(publish_bytes(folder / 'run' / 'file', name.encode() * 300_000))\n"
    )
    publishers = {
        name: subprocess.Popen([sys.executable, "-c", script, tmp_path, name], stdout=subprocess.PIPE, text=True)
        for name in "abcd"
    }
    while len(list(tmp_path.glob("ready-*"))) < len(publishers):
        assert all(process.poll() is None for process in publishers.values())
    (tmp_path / "go").touch()
    created = [name for name, process in publishers.items() if process.communicate()[0].strip() == "True"]
    assert len(created) == 1
    assert (tmp_path / "run" / "file").read_bytes() == created[0].encode() * 300_000
    assert os.listdir(tmp_path / "run") == ["file"]


@each_writer
def test_a_writer_killed_before_the_rename_leaves_no_file_and_hinders_nobody(write, tmp_path):
    path = tmp_path / "thing"
    script = (
        "import os, signal, sys, pathlib\n"
        "from test_store_atomic import WRITERS\n"
        "die = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)\n"
        "os.link = os.replace = os.rename = die\n"
        "WRITERS[sys.argv[1]](pathlib.Path(sys.argv[2]), b'half')\n"
    )
    name = next(name for name, writer in WRITERS.items() if writer is write)
    status = subprocess.run([sys.executable, "-c", script, name, path], cwd=Path(__file__).parent, check=False)
    assert status.returncode == -signal.SIGKILL
    (leftover,) = os.listdir(tmp_path)
    assert leftover.startswith(".thing.")
    assert leftover.endswith(".tmp")

    write(path, NEW)
    assert (path / "file" if path.is_dir() else path).read_bytes() == NEW


def test_replace_bytes_puts_the_new_content_in_place_of_the_old(tmp_path):
    path = tmp_path / "file"
    replace_bytes(path, OLD)
    replace_bytes(path, NEW)
    assert path.read_bytes() == NEW
    assert os.listdir(tmp_path) == ["file"]


class TestPublishFolder:
    def test_nothing_is_there_before_the_block_ends(self, tmp_path):
        path = tmp_path / "folder"
        with publish_folder(path) as folder:
            (folder / "file").write_bytes(NEW)
            assert not path.exists()
        assert (path / "file").read_bytes() == NEW
        assert os.listdir(tmp_path) == ["folder"]

    def test_a_folder_that_is_there_stays(self, tmp_path):
        publish_one_file_folder(tmp_path / "folder", OLD)
        publish_one_file_folder(tmp_path / "folder", NEW)
        assert (tmp_path / "folder" / "file").read_bytes() == OLD
        assert os.listdir(tmp_path) == ["folder"]

    def test_an_error_in_the_block_leaves_nothing(self, tmp_path):
        def fill_and_fail():
            with publish_folder(tmp_path / "folder") as folder:
                (folder / "file").write_bytes(NEW)
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fill_and_fail()
        assert os.listdir(tmp_path) == []

    def test_a_file_in_its_place_is_an_error(self, tmp_path):
        (tmp_path / "folder").write_bytes(OLD)
        with pytest.raises(StoreError, match="folder: not written"):
            publish_one_file_folder(tmp_path / "folder", NEW)
        assert (tmp_path / "folder").read_bytes() == OLD


def test_a_removed_folder_loses_its_name_before_its_files(tmp_path, monkeypatch):
    path = tmp_path / "folder"
    publish_one_file_folder(path, OLD)
    monkeypatch.setattr(atomic.shutil, "rmtree", lambda *arguments, **options: None)  # dies here
    remove_folder(path)
    (leftover,) = os.listdir(tmp_path)
    assert leftover.endswith(".tmp")


class TestDisk:
    @each_writer
    @pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
    def test_a_full_disk_is_one_line_that_names_the_file_and_the_remedy(self, write, code, tmp_path, monkeypatch):
        monkeypatch.setattr(os, "fsync", fail_with(code))
        with pytest.raises(StorageFullError) as caught:
            write(tmp_path / "file", NEW)
        message = str(caught.value)
        assert message.startswith(f"{tmp_path / 'file'}: not written, the disk is full; free some space")
        assert "\n" not in message
        assert os.listdir(tmp_path) == []

    @each_writer
    @pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.EPERM])
    def test_a_place_that_is_not_writable_is_one_line(self, write, code, tmp_path, monkeypatch):
        monkeypatch.setattr(Path, "mkdir", fail_with(code))
        with pytest.raises(StorageFullError) as caught:
            write(tmp_path / "file", NEW)
        assert str(caught.value).startswith(f"{tmp_path / 'file'}: not written, the place is not writable")
        assert "\n" not in str(caught.value)

    def test_a_disk_that_fills_up_while_writing_leaves_the_old_content(self, tmp_path, monkeypatch):
        path = tmp_path / "file"
        replace_bytes(path, OLD)
        open_file = Path.open

        def open_on_a_full_disk(*arguments, **options):
            return FullDisk(open_file(*arguments, **options))

        class FullDisk:
            def __init__(self, stream):
                self.stream = stream

            def __enter__(self):
                return self

            def __exit__(self, *arguments):
                self.stream.close()

            def fileno(self):
                return self.stream.fileno()

            def write(self, data):
                self.stream.write(data[: len(data) // 2])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patch:
            patch.setattr(Path, "open", open_on_a_full_disk)
            for write in (publish_bytes, replace_bytes):
                with pytest.raises(StorageFullError, match="the disk is full"):
                    write(path, NEW)
        assert path.read_bytes() == OLD
        assert os.listdir(tmp_path) == ["file"]

    @each_writer
    def test_any_other_fault_of_the_system_is_not_called_a_full_disk(self, write, tmp_path, monkeypatch):
        monkeypatch.setattr(os, "fsync", fail_with(errno.EIO))
        with pytest.raises(OSError, match="Input/output error"):
            write(tmp_path / "file", NEW)

    @each_writer
    def test_a_naming_that_fails_leaves_nothing(self, write, tmp_path, monkeypatch):
        for name in ("link", "replace", "rename"):
            monkeypatch.setattr(os, name, fail_with(errno.ENOSPC))
        with pytest.raises(StorageFullError):
            write(tmp_path / "file", NEW)
        assert os.listdir(tmp_path) == []


class TestLeftovers:
    def left_behind(self, folder: Path, write: str) -> Path:
        """Have a process die in the middle of writing."""
        script = (
            "import os, signal, sys, pathlib\n"
            "from test_store_atomic import WRITERS\n"
            "os.link = os.replace = os.rename = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)\n"
            "WRITERS[sys.argv[1]](pathlib.Path(sys.argv[2]), b'half')\n"
        )
        command = [sys.executable, "-c", script, write, folder / "thing"]
        subprocess.run(command, cwd=Path(__file__).parent, check=False)
        (left,) = folder.iterdir()
        return left

    @pytest.mark.parametrize("write", ["publish_bytes", "publish_folder"])
    def test_what_a_killed_process_left_is_removed(self, write, tmp_path):
        left = self.left_behind(tmp_path, write)
        assert remove_stale(tmp_path) == [left]
        assert os.listdir(tmp_path) == []

    def test_what_a_living_process_writes_stays(self, tmp_path):
        with publish_folder(tmp_path / "folder") as folder, replace_file(tmp_path / "file") as file:
            (folder / "half").write_bytes(NEW)
            file.write_bytes(NEW)
            assert remove_stale(tmp_path) == []
        assert (tmp_path / "folder" / "half").read_bytes() == (tmp_path / "file").read_bytes() == NEW

    @pytest.mark.parametrize("write", [publish_bytes, replace_bytes])
    def test_a_file_is_locked_until_it_has_its_name(self, write, tmp_path, monkeypatch):
        flush, removed = os.fsync, []

        def sweep_meanwhile(descriptor):
            removed.extend(remove_stale(tmp_path))
            flush(descriptor)

        monkeypatch.setattr(os, "fsync", sweep_meanwhile)
        write(tmp_path / "file", NEW)
        assert removed == []
        assert (tmp_path / "file").read_bytes() == NEW

    def test_a_file_of_the_user_with_such_an_ending_stays(self, tmp_path):
        for name in ("notes.tmp", ".hidden.tmp", ".x.77-abc.tmp", ".file.theirs.tmp"):
            (tmp_path / name).write_bytes(OLD)
        assert remove_stale(tmp_path) == []
        assert len(os.listdir(tmp_path)) == 4

    @pytest.mark.parametrize(("days", "stays"), [(0, True), (2, False)])
    def test_without_locks_only_what_has_not_changed_for_a_day_is_removed(self, days, stays, tmp_path, monkeypatch):
        left = tmp_path / ".000001.77-abcdef01.tmp"
        left.mkdir()
        then = left.stat().st_mtime - days * 24 * 3600
        os.utime(left, (then, then))
        monkeypatch.setattr(atomic.fcntl, "flock", fail_with(errno.ENOLCK))
        remove_stale(tmp_path)
        assert left.exists() is stays


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_files_of_a_folder_have_the_mode_of_the_umask(mask, mode, tmp_path):
    before = os.umask(mask)
    try:
        with publish_folder(tmp_path / "folder") as folder:
            (folder / "inner").mkdir()
            for name in ("secret", "inner/secret"):
                (folder / name).write_bytes(NEW)
                (folder / name).chmod(0o600)
    finally:
        os.umask(before)
    for name in ("secret", "inner/secret"):
        assert (tmp_path / "folder" / name).stat().st_mode & 0o777 == mode


def test_a_link_to_a_place_that_is_gone_is_named_with_its_target(tmp_path):
    (tmp_path / "runs").symlink_to(tmp_path / "scratch" / "runs")
    for write in WRITERS.values():
        with pytest.raises(StoreError, match=r"runs is a link to .*scratch/runs, which is not there"):
            write(tmp_path / "runs" / "a" / "file", NEW)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="a file system in which nothing can be made")
def test_a_place_in_which_nothing_can_be_made_is_one_line():
    with pytest.raises(StoreError, match=r"^/proc/x/file: not written .*No such file"):
        publish_bytes(Path("/proc/x/file"), NEW)


def test_what_is_set_aside_overwrites_nothing(tmp_path):
    for content in (b"1", b"2", b"3"):
        (tmp_path / "file").write_bytes(content)
        set_aside(tmp_path / "file", tmp_path / "aside" / "file")
    kept = {path.name: path.read_bytes() for path in (tmp_path / "aside").iterdir()}
    assert kept == {"file": b"1", "file.1": b"2", "file.2": b"3"}
