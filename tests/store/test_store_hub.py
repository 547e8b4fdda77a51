"""Uploads to a hub that is served on this machine."""

import pytest
from fake_hub import TOKEN, serving
from huggingface_hub import constants

from rlcm_cli.errors import ConfigError, RemoteStoreError
from rlcm_cli.store.remote.model_repository import check_repository, upload_folder


@pytest.fixture
def hub(monkeypatch):
    with serving() as served:
        monkeypatch.setattr(constants, "ENDPOINT", served.address)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield served


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "export").mkdir()
    (tmp_path / "export/README.md").write_text("# A card\n")
    (tmp_path / "export/x.safetensors").write_bytes(b"weights")
    return tmp_path / "export"


@pytest.mark.parametrize("public", [False, True])
def test_a_folder_becomes_a_repository_private_unless_asked_otherwise(hub, folder, public):
    check_repository("ann/x", public=public, overwrite=False)
    assert hub.repositories == {}
    address = upload_folder(folder, "ann/x", public=public, message="a test")
    assert address == f"{hub.address}/ann/x"
    assert hub.repositories["ann/x"]["private"] is not public
    assert hub.repositories["ann/x"]["files"] == {"README.md": b"# A card\n", "x.safetensors": b"weights"}


def test_what_is_there_is_not_overwritten_or_shown_to_all_unless_asked(hub):
    hub.add("ann/new", files={".gitattributes": b""})
    check_repository("ann/new", public=False, overwrite=False)
    hub.add("ann/full", files={"README.md": b""})
    with pytest.raises(ConfigError, match="ann/full: holds files already; add --overwrite"):
        check_repository("ann/full", public=False, overwrite=False)
    check_repository("ann/full", public=False, overwrite=True)
    hub.add("ann/open", private=False)
    with pytest.raises(ConfigError, match="ann/open: is there and public; add --public"):
        check_repository("ann/open", public=False, overwrite=True)
    check_repository("ann/open", public=True, overwrite=False)


@pytest.mark.parametrize("name", ["x", "ann/x/y", "https://a/b", "ann/x y"])
def test_a_name_that_cannot_be_is_refused_without_asking(name):
    with pytest.raises(ConfigError, match="write OWNER/NAME"):
        check_repository(name, public=False, overwrite=False)


def test_a_refused_token_is_one_line_without_it(hub, folder):
    hub.refuses = True
    for work in (
        lambda: check_repository("ann/x", public=False, overwrite=False),
        lambda: upload_folder(folder, "ann/x", public=False, message="a test"),
    ):
        with pytest.raises(RemoteStoreError, match=r"refuses the token \(status 401\)") as raised:
            work()
        assert TOKEN not in str(raised.value)


def test_no_token_no_network_and_offline_are_one_line_each(hub, monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(RemoteStoreError, match="there is no token; run `hf auth login`"):
        check_repository("ann/x", public=False, overwrite=False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(RemoteStoreError, match=r"cannot be reached \(ConnectError\)"):
        check_repository("ann/x", public=False, overwrite=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(RemoteStoreError, match="HF_HUB_OFFLINE is set"):
        check_repository("ann/x", public=False, overwrite=False)
