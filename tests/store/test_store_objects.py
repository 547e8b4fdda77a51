"""Objects: conditional puts, retries, and names and URLs that are refused."""

import uuid

import fsspec
import pytest

from rlcm_cli.errors import ConfigError, ForeignFileError, RemoteStoreError
from rlcm_cli.store.remote import objects
from rlcm_cli.store.remote.objects import ObjectStore, check_url, is_url, open_store


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch):
    monkeypatch.setattr(objects, "FIRST_PAUSE", 0.001)


@pytest.fixture
def store():
    return open_store(f"memory://{uuid.uuid4().hex}/run/")


class Failing:
    """A file system whose operations fail a number of times."""

    def __init__(self, files, failures, error=None):
        self.files, self.failures = files, failures
        self.error = error or ConnectionError("reset by peer at http://x/y?X-Amz-Signature=secret")

    def __getattr__(self, name):
        function = getattr(self.files, name)

        def fail_or_do(*arguments, **options):
            if name in ("pipe_file", "put_file", "cat_file") and self.failures:
                self.failures -= 1
                raise self.error
            return function(*arguments, **options)

        return fail_or_do


@pytest.mark.parametrize("as_file", [True, False])
def test_a_name_is_created_once(store, tmp_path, as_file):
    def content(data):
        (tmp_path / "file").write_bytes(data)
        return tmp_path / "file" if as_file else data

    assert store.create("a/b.json", content(b"first"))
    assert not store.create("a/b.json", content(b"second"))
    assert store.read("a/b.json") == b"first"
    store.replace("a/b.json", content(b"third one"))
    store.replace("a/c/d", b"d")
    assert store.sizes() == {"a/b.json": 9, "a/c/d": 1}
    assert store.folders("a") == ["c"]


def test_what_is_not_there_is_none(store, tmp_path):
    assert store.read("x") is None
    assert store.size("x") is None
    assert store.sizes("folder") == {}
    assert store.folders("folder") == []
    assert not store.download("x", tmp_path / "x")
    assert not store.move("x", "y")
    store.remove("x")
    assert list(tmp_path.iterdir()) == []


def test_a_download_is_whole_or_not_there(store, tmp_path):
    store.replace("x", b"content")
    assert store.download("x", tmp_path / "deep/x")
    assert [file.name for file in (tmp_path / "deep").iterdir()] == ["x"]
    assert (tmp_path / "deep/x").read_bytes() == b"content"


def test_a_store_that_fails_twice_is_asked_again(store):
    failing = ObjectStore(store.url, Failing(store.files, 2), store.root)
    assert failing.create("x", b"content")
    failing = ObjectStore(store.url, Failing(store.files, 2), store.root)
    assert failing.read("x") == b"content"


def test_a_store_that_goes_on_failing_is_one_line_without_what_a_signed_address_holds(store):
    failing = ObjectStore(store.url, Failing(store.files, 99), store.root)
    with pytest.raises(RemoteStoreError, match="run the same command again") as caught:
        failing.read("x")
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert f"{store.url}/x" in str(caught.value)


def test_a_refusal_is_not_repeated(store):
    failing = Failing(store.files, 99, PermissionError("Access Denied"))
    with pytest.raises(RemoteStoreError, match="Access Denied"):
        ObjectStore(store.url, failing, store.root).read("x")
    assert failing.failures == 98


def test_an_upload_that_arrives_cut_is_done_again(store, monkeypatch):
    whole, puts = store.files.pipe_file, []

    def cut_the_first(path, value, **options):
        puts.append(path)
        whole(path, value[:3] if len(puts) == 1 else value, **options)

    monkeypatch.setattr(store.files, "pipe_file", cut_the_first)
    assert store.create("x", b"content")
    assert store.read("x") == b"content"
    assert len(puts) == 2


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/x", "a//x", "", "a\\b", "./x"])
def test_a_name_that_leads_out_of_the_run_is_refused(store, tmp_path, name):
    with pytest.raises(ForeignFileError, match="is not a name of a file of a run"):
        store.download(name, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_a_listing_with_a_name_that_leads_out_is_refused(store):
    store.replace("a", b"1")
    store.files.store[f"{store.root}/../../evil"] = store.files.store[f"{store.root}/a"]
    try:
        with pytest.raises(ForeignFileError, match=r"\.\./\.\./evil"):
            store.sizes()
    finally:
        del store.files.store[f"{store.root}/../../evil"]


@pytest.mark.parametrize(
    "url",
    [
        "s3://AKIA:secret@bucket/run",
        "s3://AKIA:sec/ret@bucket/run",
        "s3://token@bucket/run",
        "https://host/run?sig=secret",
        "gs://bucket/run#secret",
    ],
)
def test_a_url_with_credentials_is_refused_without_showing_them(url):
    with pytest.raises(ConfigError, match="environment") as caught:
        check_url(url)
    assert "sec" not in str(caught.value)
    assert "token" not in str(caught.value)


@pytest.mark.parametrize("url", ["s3://", "s3://b/../x", "simplecache::s3://b/x", "s3://b//x"])
def test_a_url_that_names_no_folder_is_refused(url):
    with pytest.raises(ConfigError, match="names no place"):
        check_url(url)


def test_what_is_a_url():
    assert is_url("s3://bucket/run")
    assert is_url("hf://datasets/owner/name/run")
    assert not is_url("runs/a")
    assert not is_url("file:///runs/a")
    assert check_url("hdfs://host:8020/run/") == "hdfs://host:8020/run"


def test_an_unknown_protocol_and_a_missing_backend_say_what_to_do(monkeypatch):
    with pytest.raises(ConfigError, match="not a protocol"):
        open_store("nonsense://bucket/run")

    def missing(url):
        raise ImportError("Install gcsfs")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(ConfigError, match=r"pip install 'rlcm\[gcs\]'"):
        open_store("gs://bucket/run")
