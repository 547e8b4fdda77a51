import os
import pickle
import resource

import numpy
import pytest

from rlcm_cli.rewards.judges.llava_server.pickles import RefusedPickleError, read_pickle

LIMIT = 4 * 1024**2
PROTOCOLS = [3, 4, 5]


def read(data):
    return read_pickle(data, LIMIT)


def refusal(data) -> str:
    with pytest.raises(RefusedPickleError) as caught:
        read(data)
    assert "\n" not in str(caught.value)
    return str(caught.value)


class TestPlainData:
    @pytest.mark.parametrize("protocol", PROTOCOLS)
    @pytest.mark.parametrize(
        "value",
        [
            None,
            True,
            False,
            0,
            255,
            -70_000,
            2**80,
            0.1,
            float("inf"),
            "",
            "Löwe \U0001f981\n",
            "x" * 300,
            b"",
            b"\x00\xff" * 400,
            [],
            (),
            {},
            (1,),
            (1, 2, 3, 4),
            [[1, [2.5, None]], ("a", b"b")],
            {"outputs": [["a cat"], ["a dog"]], "recall": [[0.5], [0.25]]},
            list(range(3000)),
            {str(i): i for i in range(3000)},
        ],
    )
    def test_it_comes_back(self, value, protocol):
        got = read(pickle.dumps(value, protocol=protocol))
        assert got == value
        assert type(got) is type(value)

    def test_bytearrays_come_back(self):
        assert read(pickle.dumps(bytearray(b"abc"), protocol=5)) == b"abc"

    @pytest.mark.parametrize("protocol", PROTOCOLS)
    def test_shared_and_recursive_lists_come_back(self, protocol):
        loop = ["text"]
        loop.append(loop)
        shared = ["one"]
        got = read(pickle.dumps([loop, shared, shared], protocol=protocol))
        assert got[0][1] is got[0]
        assert got[1] is got[2]

    def test_the_answer_of_the_published_server(self):
        # Values and shape as app.py of kvablack/LLaVA-server gives them.
        recall = numpy.array([0.75, 0.5], dtype=numpy.float32).reshape((2, 1)).tolist()
        answer = {"outputs": [["a cat"], ["a dog"]], "precision": recall, "recall": recall, "f1": recall}
        assert read(pickle.dumps(answer)) == answer


class TestNumpy:
    @pytest.mark.parametrize("protocol", PROTOCOLS)
    @pytest.mark.parametrize(
        "array",
        [
            numpy.arange(6, dtype=numpy.float32).reshape(2, 3),
            numpy.asfortranarray(numpy.arange(6, dtype=numpy.int64).reshape(2, 3)),
            numpy.arange(3, dtype=">i4"),
            numpy.array([True, False]),
            numpy.array([["a cat"], ["Löwe"]]),
            numpy.array([b"ab", b"c"]),
            numpy.zeros(0, dtype=numpy.float64),
            numpy.ones((1, 1, 2), dtype=numpy.float16),
        ],
        ids=lambda array: f"{array.dtype}{array.shape}",
    )
    def test_arrays_come_as_lists(self, array, protocol):
        data = pickle.dumps({"a": array, "again": [array]}, protocol=protocol)
        assert read(data) == {"a": array.tolist(), "again": [array.tolist()]}

    @pytest.mark.parametrize("protocol", PROTOCOLS)
    def test_scalars_come_as_numbers(self, protocol):
        values = [numpy.float32(0.5), numpy.float64(0.25), numpy.int64(-3), numpy.bool_(True)]
        got = read(pickle.dumps(values, protocol=protocol))
        assert got == [0.5, 0.25, -3, True]
        assert [type(value) for value in got] == [float, float, int, bool]

    def test_numpy_1_names_are_read_as_those_of_numpy_2(self):
        array = numpy.arange(4, dtype=numpy.float64)
        data = pickle.dumps(array, protocol=3).replace(b"cnumpy._core.multiarray", b"cnumpy.core.multiarray")
        assert b"numpy.core.multiarray" in data
        assert read(data) == array.tolist()

    @pytest.mark.parametrize("protocol", PROTOCOLS)
    @pytest.mark.parametrize(
        "array",
        [
            numpy.array(["a", None, 3], dtype=object),
            numpy.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]),
            numpy.array(["2020-01-01"], dtype="datetime64[D]"),
            numpy.array([1j]),
            numpy.void(b"abcd"),
        ],
        ids=["object", "structured", "datetime", "complex", "void"],
    )
    def test_other_arrays_are_refused(self, array, protocol):
        refusal(pickle.dumps(array, protocol=protocol))

    def test_a_wrong_shape_is_refused(self):
        class Lie:
            def __reduce__(self):
                return numpy._core.numeric._frombuffer, (b"12345678", numpy.dtype("f4"), (10**12,), "C")

        assert "does not fit its bytes" in refusal(pickle.dumps(Lie(), protocol=4))

    def test_a_shape_that_would_fill_the_memory_with_empty_lists_is_refused(self):
        class Lie:
            def __reduce__(self):
                return numpy._core.numeric._frombuffer, (b"", numpy.dtype("f4"), (10**12, 0), "C")

        assert "impossible shape" in refusal(pickle.dumps(Lie(), protocol=4))

    @pytest.mark.parametrize("order", "<>")
    def test_text_that_is_no_unicode_is_refused(self, order):
        data = pickle.dumps(numpy.array(["abc"], dtype=f"{order}U3"), protocol=4)
        letter = "b".encode("utf-32-le" if order == "<" else "utf-32-be")
        assert "not Unicode" in refusal(data.replace(letter, b"\xff\xff\xff\xff"))

    def test_an_announced_array_without_content_is_refused(self):
        class Announced:
            def __reduce__(self):
                return numpy._core.multiarray._reconstruct, (numpy.ndarray, (0,), b"b")

        refusal(pickle.dumps(Announced(), protocol=4))

    @pytest.mark.parametrize("part", [numpy.dtype("f4"), numpy.ndarray, numpy.dtype], ids=str)
    def test_parts_of_arrays_are_no_data(self, part):
        for value in (part, [part], (part,), [(part,)], {"a": part}):
            refusal(pickle.dumps(value, protocol=4))


class Call:
    """Pickles as the call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class TestHostilePickles:
    """Each would leave a file behind if it were unpickled."""

    @pytest.fixture
    def left(self, tmp_path):
        return tmp_path / "left"

    @pytest.fixture(
        params=["system", "open", "eval", "getattr", "nested in data", "in an object array", "as a state", "as a key"]
    )
    def hostile(self, request, left):
        system = Call(os.system, f"touch {left}")
        if request.param == "system":
            return system
        if request.param == "open":
            return Call(open, str(left), "w")
        if request.param == "eval":
            return Call(eval, f"open({str(left)!r}, 'w').close()")
        if request.param == "getattr":
            return Call(Call(getattr, os, "system"), f"touch {left}")
        if request.param == "nested in data":
            return {"outputs": [["a cat"], ["a dog", (1, {"deep": system})]]}
        if request.param == "in an object array":
            return numpy.array(["a cat", system], dtype=object)
        if request.param == "as a state":
            return Stateful(system)
        return {system: "a cat"}

    @pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
    def test_they_are_refused_and_leave_nothing(self, hostile, left, protocol):
        try:
            data = pickle.dumps(hostile, protocol=protocol)
        except (TypeError, pickle.PicklingError):
            # Modules and uncalled calls cannot be pickled by name: write them by hand.
            data = b"cbuiltins\ngetattr\n(cos\n__dict__\nVget\ntR(Vsystem\ntR(Vtouch " + str(left).encode() + b"\ntR."
        message = refusal(data)
        assert not left.exists()
        assert "pickle" in message

    def test_the_payloads_work(self, left):
        """Otherwise the tests above would show nothing."""
        pickle.loads(pickle.dumps(Call(os.system, f"touch {left}")))  # noqa: S301
        assert left.exists()

    @pytest.mark.parametrize(
        "data",
        [
            b"\x80\x04cbuiltins\ngetattr\n.",
            b"\x80\x04cnumpy\nload\n.",
            b"\x80\x04cnumpy.testing._private.utils\nrunstring\n(VX\nVY\ntR.",
            b"\x80\x04cnumpy\ndtype\n)\x81.",  # NEWOBJ
            b"\x80\x04cnumpy\ndtype\n)}\x92.",  # NEWOBJ_EX
            b"(inumpy\nndarray\n.",  # INST
            b"(cnumpy\nndarray\no.",  # OBJ
            b"\x80\x04Vid\nQ.",  # BINPERSID
            b"\x80\x04\x82\x01.",  # EXT1
            b"\x80\x05\x97.",  # NEXT_BUFFER
            b"\x80\x04}N(VX\nN\x86b.",  # BUILD on nothing of numpy
            b"\x80\x04cnumpy\nndarray\n(VX\nN\x86b.",  # BUILD on a name
        ],
    )
    def test_other_ways_to_objects_are_refused(self, data):
        refusal(data)

    @pytest.mark.parametrize(
        "data", [b"", b".", b"\x80\x04", b"\x80\x04]", b"garbage", b"<html>", b"\x80\x04K\x01K\x02."]
    )
    def test_damaged_pickles_are_refused(self, data):
        refusal(data)

    @pytest.mark.parametrize(
        "data",
        [
            b"\x80\x04t.",
            b"\x80\x04(.",
            b"\x80\x04e.",
            b"\x80\x04](u.",
            b"\x80\x04h\x07.",
            b"\x80\x04K\x01a.",
            b"\x80\x04R.",
        ],
    )
    def test_short_stacks_are_refused(self, data):
        refusal(data)

    def test_every_cut_of_a_good_pickle_is_refused(self):
        data = pickle.dumps({"outputs": [["a cat"]], "recall": numpy.ones((1, 1))}, protocol=4)
        for length in range(len(data)):
            refusal(data[:length])

    def test_a_huge_pickle_is_refused_unread(self):
        with pytest.raises(RefusedPickleError, match="101 bytes, more than 100"):
            read_pickle(b"\x80" * 101, 100)

    def test_a_few_bytes_cannot_fill_the_memory(self):
        """Python's own unpickler makes a memo of 2 ** 32 places for the first of these."""
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert read(b"\x80\x04Nr\xff\xff\xff\x7f.") is None
        refusal(b"\x80\x04\x8e\xff\xff\xff\xff\x0f\x00\x00\x00.")
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024

    def test_doubled_references_stay_references(self):
        """The billion laughs: two references a level, 200 levels."""
        levels = b"".join(b"\x94\x68" + bytes([level]) + b"\x86" for level in range(200))
        assert len(read(b"\x80\x04]" + levels + b".")) == 2

    def test_the_same_bytes_cannot_become_many_arrays(self):
        class Many:
            def __reduce__(self):
                return numpy._core.numeric._frombuffer, (raw, dtype, (len(raw),), "C")

        raw, dtype = b"x" * 1_000_000, numpy.dtype("u1")
        data = pickle.dumps([Many() for _ in range(100)], protocol=4)
        assert len(data) < 1_100_000
        assert "larger than itself" in refusal(data)

    def test_numbers_as_keys_are_refused(self):
        assert "int as a key" in refusal(pickle.dumps({1: 2}))


class Stateful:
    def __init__(self, state):
        self.state = state


@pytest.mark.parametrize("protocol", [0, 1, 2, 6, 200, 255])
def test_another_protocol_is_refused(protocol):
    assert f"protocol {protocol}" in refusal(b"\x80" + bytes([protocol]) + b"N.")


@pytest.mark.parametrize("protocol", [0, 1])
def test_a_pickle_of_no_protocol_is_refused(protocol):
    assert "names no protocol" in refusal(pickle.dumps([1, None], protocol=protocol))
