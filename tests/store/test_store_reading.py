"""Opening the files of a run: whatever lies in their place, a reader gets the file or one line."""

from __future__ import annotations

import errno
import json
import os
import socket

import pytest

from rlcm_cli.errors import (
    CorruptFileError,
    ForeignFileError,
    FormatVersionError,
    MissingFileError,
    RlcmError,
    UnreadableFileError,
)
from rlcm_cli.store import reading
from rlcm_cli.store.layout import FORMAT_VERSION
from rlcm_cli.store.reading import (
    DEEPEST,
    REMEDY,
    Record,
    check_version,
    describe_fault,
    explain_reading,
    open_file,
    parse_json,
    parse_object,
    parse_record,
    read_bytes,
    read_json,
    read_object,
)


class Plan(Record):
    """A record with a version."""

    format_version: int
    shards: list[int]


class Note(Record):
    """A record without one."""

    text: str


@pytest.fixture
def file(tmp_path):
    return tmp_path / "plan.json"


def refusal(kind: type[RlcmError], work) -> str:
    with pytest.raises(RlcmError) as caught:
        work()
    assert type(caught.value) is kind
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_the_remedy_can_be_typed_as_it_stands(tmp_path):
    assert REMEDY.format(path=tmp_path / "a b.json") == (
        f"move it away with `rlcm quarantine '{tmp_path / 'a b.json'}'` and run the phase again"
    )


class TestOpening:
    def test_a_file_is_given_to_be_read_and_closed(self, file):
        file.write_bytes(b"content")
        with open_file(file) as stream:
            assert stream.read() == b"content"
        assert stream.closed

    @pytest.mark.parametrize("kind", ["a folder", "a fifo", "a socket", "a device"])
    def test_anything_else_is_refused_without_waiting(self, file, monkeypatch, kind):
        server = None
        if kind == "a folder":
            file.mkdir()
        elif kind == "a fifo":
            os.mkfifo(file)
        elif kind == "a device":
            file.symlink_to("/dev/null")
        else:
            monkeypatch.chdir(file.parent)  # the path of a socket is short
            server = socket.socket(socket.AF_UNIX)
            server.bind(file.name)

        def read():
            with open_file(file):
                pytest.fail("opened")

        if kind == "a socket":  # which the system itself refuses to open
            assert "cannot be read: " in refusal(UnreadableFileError, read)
        else:
            assert refusal(CorruptFileError, read) == f"{file}: is {kind}, not a file; {REMEDY.format(path=file)}"
        if server:
            server.close()

    def test_no_descriptor_is_left_open(self, file, monkeypatch):
        opened, really = [], os.open

        def note(*arguments):
            opened.append(really(*arguments))
            return opened[-1]

        monkeypatch.setattr(os, "open", note)
        file.mkdir()
        with pytest.raises(CorruptFileError), open_file(file):
            pass
        (descriptor,) = opened
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)

    def test_what_is_missing_is_said_to_be(self, file, tmp_path):
        (tmp_path / "x").touch()
        for path in (file, tmp_path / "no" / "plan.json", tmp_path / "x" / "plan.json"):
            assert refusal(MissingFileError, lambda path=path: read_bytes(path, 10)) == f"{path}: not there"

    def test_the_remedy_of_the_caller_takes_the_place_of_the_usual_one(self, file):
        file.mkdir()
        assert refusal(CorruptFileError, lambda: read_bytes(file, 10, "draw again")).endswith("not a file; draw again")

    @pytest.mark.parametrize("code", [errno.EACCES, errno.EIO, errno.ELOOP])
    def test_what_the_system_refuses_is_one_line(self, file, code):
        def read():
            with explain_reading(file):
                raise OSError(code, os.strerror(code))

        assert refusal(UnreadableFileError, read) == (
            f"{file}: cannot be read: {os.strerror(code)}; check its permissions and the disk that it is on"
        )

    def test_an_error_in_the_reader_s_own_work_passes(self, file):
        file.touch()
        with pytest.raises(KeyError), open_file(file):
            raise KeyError("own")

    def test_a_file_is_read_up_to_a_limit(self, file):
        file.write_bytes(b"12345")
        assert read_bytes(file, 5) == b"12345"
        message = refusal(CorruptFileError, lambda: read_bytes(file, 4))
        assert message.startswith(f"{file}: is larger than 4 bytes, so it is not what should be there; move it away")


class TestJson:
    @pytest.mark.parametrize(
        ("text", "value"),
        [
            ('{"a": [1, 2.5, "é", null, true]}', {"a": [1, 2.5, "é", None, True]}),
            (str(2**64 - 1), 2**64 - 1),
            (str(-(2**63)), -(2**63)),
            ('"\\ud83d\\udc3b"', "\U0001f43b"),
            ("[" * DEEPEST + "]" * DEEPEST, json.loads("[" * DEEPEST + "]" * DEEPEST)),
            ("1e308", 1e308),
        ],
    )
    def test_what_any_reader_can_take_is_read(self, text, value):
        assert parse_json(text) == value
        assert parse_json(text.encode()) == value

    @pytest.mark.parametrize(
        ("text", "fault"),
        [
            ("", "Expecting value"),
            ("{", "Expecting property name"),
            ("NaN", "^NaN is "),
            ('{"a": -Infinity}', "^-Infinity is "),
            ("1e309", "a number is too large"),
            (str(2**64), "an integer has more than 64 bits"),
            (str(-(2**63) - 1), "an integer has more than 64 bits"),
            ("9" * 10_000, "an integer has more than 64 bits"),
            ("[" * (DEEPEST + 1) + "]" * (DEEPEST + 1), "nested too deep"),
            ('{"a":' * (DEEPEST + 1) + "1" + "}" * (DEEPEST + 1), "nested too deep"),
            ("[" * 100_000, "nested too deep"),
            ('"\\ud83d"', "surrogates not allowed"),
            ('{"\\ud83d": 1}', "surrogates not allowed"),
            (b'"\xff"', "invalid start byte"),
        ],
    )
    def test_anything_else_is_a_value_error(self, text, fault):
        with pytest.raises(ValueError, match=fault):
            parse_json(text)

    def test_a_fault_is_described_without_the_text(self):
        with pytest.raises(ValueError, match="surrogates") as caught:
            parse_json('"\\ud83d secret"')
        assert describe_fault(caught.value) == "its text is not Unicode"
        assert describe_fault(ValueError("x" * 1000)) == "x" * 200

    @pytest.mark.parametrize(
        ("data", "said"),
        [
            (b"{", "is not JSON (Expecting property name"),
            (b"\xff", "is not JSON (its text is not Unicode)"),
            (b"[1]", "holds no JSON object"),
            (b"", "is not JSON (Expecting value"),
        ],
    )
    def test_what_is_no_object_is_refused_by_name(self, file, data, said):
        file.write_bytes(data)
        message = refusal(CorruptFileError, lambda: read_json(file))
        assert message.startswith(f"{file}: {said}")
        assert message.endswith(REMEDY.format(path=file))
        assert refusal(CorruptFileError, lambda: parse_object(data, file, "draw again")).endswith("; draw again")

    def test_a_file_that_is_too_large_is_not_parsed(self, file, monkeypatch):
        monkeypatch.setattr(reading, "LARGEST_JSON", 10)
        file.write_text('{"a":    1}')
        assert "is larger than 10 bytes" in refusal(CorruptFileError, lambda: read_json(file))
        file.write_text('{"a":   1}')
        assert read_json(file) == {"a": 1}


class TestVersions:
    def test_this_version_and_earlier_ones_pass(self, file):
        for version in range(1, FORMAT_VERSION + 1):
            check_version(version, file)

    @pytest.mark.parametrize("version", [None, "1", 1.0, True, 0, -1, [1]])
    def test_what_is_no_version_is_foreign(self, file, version):
        message = refusal(ForeignFileError, lambda: check_version(version, file))
        assert message == f"{file}: states no format version; {REMEDY.format(path=file)}"

    def test_that_of_a_newer_rlcm_is_told(self, file):
        message = refusal(FormatVersionError, lambda: check_version(FORMAT_VERSION + 1, file))
        assert message.startswith(f"{file}: has format version {FORMAT_VERSION + 1}, ")
        assert message.endswith(f", this rlcm reads up to {FORMAT_VERSION}; install a newer rlcm")

    def test_of_any_object_the_version_is_checked_where_it_states_one(self, file):
        assert parse_object(b'{"a": 1}', file) == {"a": 1}
        refusal(FormatVersionError, lambda: parse_object(b'{"format_version": 999}', file))
        refusal(ForeignFileError, lambda: parse_object(b'{"format_version": "x"}', file))


class TestRecords:
    def test_a_record_is_read_and_frozen(self, file):
        file.write_text('{"format_version": 1, "shards": [1, 2]}')
        plan = read_object(file, Plan, "plan")
        assert plan == Plan(format_version=1, shards=[1, 2])
        with pytest.raises(ValueError, match="frozen"):
            plan.shards = []

    @pytest.mark.parametrize(
        ("values", "fault"),
        [
            ({"format_version": 1}, "shards: Field required"),
            ({"format_version": 1, "shards": [1, "2"]}, "shards.1: Input should be a valid integer"),
            ({"format_version": 1, "shards": [], "more": 1}, "more: Extra inputs are not permitted"),
            ({"shards": []}, "format_version: Field required"),
            ({"format_version": 1, "shards": [], "x" * 200: 1}, "x" * 80 + ": Extra inputs"),
        ],
    )
    def test_the_first_value_at_fault_is_named(self, file, values, fault):
        message = refusal(CorruptFileError, lambda: parse_record(values, Plan, file, "plan"))
        assert message.startswith(f"{file}: cannot be read as plan ({fault}")
        assert message.endswith(REMEDY.format(path=file))
        assert refusal(CorruptFileError, lambda: parse_record(values, Plan, file, "plan", "x")).endswith("); x")

    def test_a_record_that_states_a_version_has_one_that_can_be_read(self, file):
        refusal(FormatVersionError, lambda: parse_record({"format_version": 99, "shards": []}, Plan, file, "plan"))
        assert parse_record({"text": "x"}, Note, file, "note") == Note(text="x")
