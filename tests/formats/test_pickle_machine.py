from __future__ import annotations

import pickle
from collections import Counter, OrderedDict, defaultdict
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_ckptcompat import CheckpointError
from pytest_ckptcompat.core.limits import DEFAULT, Limits
from pytest_ckptcompat.formats.pickle_machine import Machine, Truncated
from pytest_ckptcompat.formats.pickle_names import PlainNames
from pytest_ckptcompat.formats.pickle_stubs import Dict, Global, Stub


def described(data: bytes, limits: Limits = DEFAULT, **how: Any) -> Any:
    return Machine(data, names=PlainNames(limits).names, limits=limits, **how).load()


# -- plain data is what pickle gives -----------------------------------------------------------------------

numbers = st.integers(-(1 << 4000), 1 << 4000) | st.integers() | st.floats(allow_nan=False)
scalars = st.none() | st.booleans() | numbers | st.text() | st.binary() | st.complex_numbers(allow_nan=False)
names = st.text() | st.binary() | st.integers(-(1 << 60), 1 << 60) | st.booleans() | st.none()
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(names, inner)
        | st.dictionaries(names, inner).map(OrderedDict)
    ),
    max_leaves=20,
)


@settings(deadline=None)
@given(value=values, protocol=st.integers(0, 5))
def test_plain_data_is_what_pickle_gives(value: Any, protocol: int) -> None:
    data = pickle.dumps(value, protocol=protocol)
    assert repr(described(data)) == repr(plain(value))
    assert described(data + b"more") == plain(value)


def plain(value: Any) -> Any:
    """The value with plain dicts."""
    if isinstance(value, dict):
        made = Dict()
        made.update({key: plain(inner) for key, inner in value.items()})
        return made
    return type(value)(map(plain, value)) if isinstance(value, (list, tuple)) else value


@settings(deadline=None, max_examples=30)
@given(value=values, protocol=st.integers(0, 5))
def test_a_pickle_that_is_cut_is_truncated(value: Any, protocol: int) -> None:
    data = pickle.dumps(value, protocol=protocol)
    for length in range(0, len(data), max(1, len(data) // 20)):
        with pytest.raises(Truncated):
            described(data[:length])


@settings(deadline=None)
@given(value=values, protocol=st.integers(0, 5), cuts=st.sets(st.floats(0, 1), max_size=5))
def test_a_pickle_that_comes_in_pieces(value: Any, protocol: int, cuts: set[float]) -> None:
    data = pickle.dumps(value, protocol=protocol)
    lengths = [int(cut * (len(data) - 1)) for cut in sorted(cuts)]
    machine = Machine(data[: lengths[0]] if lengths else b"", names=PlainNames(DEFAULT).names, limits=DEFAULT)
    for length in [*lengths[1:], len(data)]:
        with pytest.raises(Truncated):
            machine.load()
        machine.extend(data[:length])
    assert repr(machine.load()) == repr(plain(value))
    assert machine.position == len(data)


@pytest.mark.parametrize("protocol", range(6))
def test_containers_of_python(protocol: int) -> None:
    shared = ["shared"]
    cyclic: list[Any] = [shared, shared]
    cyclic.append(cyclic)
    value = {
        "set": {3},
        "frozen": frozenset({4}),
        "default": defaultdict(list, {1: 2}),
        "counter": Counter("aab"),
        "bytearray": bytearray(b"abc"),
        "empty": bytearray(),
        "cyclic": cyclic,
    }
    read = described(pickle.dumps(value, protocol=protocol))
    assert read["set"] == [3]
    assert read["frozen"] == [4]
    assert read["default"] == {1: 2}
    assert read["counter"] == {"a": 2, "b": 1}
    assert read["bytearray"] == b"abc"
    assert read["empty"] == b""
    assert read["cyclic"][0] is read["cyclic"][1]
    assert read["cyclic"][2] is read["cyclic"]


class Thing:
    def __init__(self, **given: Any) -> None:
        self.__dict__.update(given)


class Slotted:
    __slots__ = ("a",)


class Names(dict):  # type: ignore[type-arg]
    pass


@pytest.mark.parametrize("protocol", range(6))
def test_objects_are_described_not_made(protocol: int) -> None:
    thing = described(pickle.dumps(Thing(a=[1]), protocol=protocol))
    assert isinstance(thing, Stub)
    assert thing.attributes == {"a": [1]}
    filled = Names(x=1)
    filled.note = "n"  # type: ignore[attr-defined]
    names = described(pickle.dumps(filled, protocol=protocol))
    assert names.items == {"x": 1}
    assert names.attributes == {"note": "n"}


def test_slots_are_attributes() -> None:
    slotted = Slotted()
    slotted.a = 5  # type: ignore[attr-defined]
    assert described(pickle.dumps(slotted)).attributes == {"a": 5}


def test_attributes_of_an_ordered_dict() -> None:
    state = OrderedDict(a=1)
    state._metadata = OrderedDict(x=2)  # type: ignore[attr-defined]
    assert described(pickle.dumps(state, protocol=2)).attributes == {"_metadata": {"x": 2}}


def test_names_of_python_2_are_translated() -> None:
    assert described(b"c__builtin__\nset\n.").name == "builtins.set"
    assert described(b"ccopy_reg\n_reconstructor\n.").name == "copyreg._reconstructor"
    assert described(b"\x80\x04c__builtin__\nset\n.").name == "__builtin__.set"


def test_strings_of_python_2() -> None:
    assert described(b"U\x03abc.") == "abc"
    assert described(b"U\x02\xc3\xa4.") == "ä"
    assert described(b"U\x02\xff\xfe.") == b"\xff\xfe"
    assert described(b"S'a\\x41\\n'\n.") == "aA\n"


def test_memo_of_python_2_counts_from_one() -> None:
    assert described(b"(lq\x01(lq\x02h\x01a.") == [[]]


# -- keys --------------------------------------------------------------------------------------------------


def test_keys_that_could_be_crafted_to_collide_become_stubs() -> None:
    read = described(pickle.dumps({(1, 2): "a", 1 << 70: "b", "c": 1}))
    kinds = [type(key) for key in read]
    assert kinds == [Stub, Stub, str]
    assert list(read.values()) == ["a", "b", 1]


def test_colliding_integers_take_no_time() -> None:
    step = (1 << 61) - 1
    many = b"".join(pickle.dumps(step * n, protocol=2)[2:-1] + b"N" for n in range(1, 100_001))
    assert len(described(b"}(" + many + b"u.")) == 100_000


# -- what is refused ---------------------------------------------------------------------------------------

DAMAGED = {
    "empty stack": b".",
    "unknown opcode": b"\xff.",
    "no such memo": b"h\x05.",
    "no such long memo": b"j\xff\xff\xff\xff.",
    "no such text memo": b"g5\n.",
    "memo far away": b"Nr\xff\xff\xff\xff.",
    "memo far away in text": b"Np4000000000\n.",
    "negative memo": b"Np-1\n.",
    "tuple without mark": b"Nt.",
    "too few for a pair": b"N\x86.",
    "too few for a triple": b"NN\x87.",
    "append to nothing": b"Na.",
    "append to a string": b"U\x01aNa.",
    "append to a dict": b"}Na.",
    "entry in a list": b"]NNs.",
    "key without value": b"}(Nu.",
    "state for a list": b"]}b.",
    "state for a class": b"cos\nsystem\n}b.",
    "call of nothing": b"R.",
    "persistent id": b"NQ.",
    "persistent id in text": b"P5\n.",
    "extension 1": b"\x82\x01.",
    "extension 2": b"\x83\x01\x00.",
    "extension 4": b"\x84\x01\x00\x00\x00.",
    "out-of-band buffer": b"\x97.",
    "read-only buffer": b"N\x98.",
    "protocol": b"\x80\x06N.",
    "negative length": b"T\xff\xff\xff\xff.",
    "negative long": b"\x8b\xff\xff\xff\xff.",
    "no UTF-8": b"X\x01\x00\x00\x00\xff.",
    "no number": b"Iabc\n.",
    "no float": b"Fabc\n.",
    "endless number": b"I" + b"1" * 5000 + b"\n.",
    "no quotes": b"Sabc\n.",
    "class name that is not a string": b"NN\x93.",
    "a set of a number": b"\x80\x02cbuiltins\nset\nK\x01\x85R.",
    "an ordered dict of a number": b"\x80\x02ccollections\nOrderedDict\nK\x01\x85R.",
    "arguments that are no tuple": b"\x80\x02ccollections\nOrderedDict\nNR.",
    "bytes in a strange encoding": b"\x80\x02c_codecs\nencode\nU\x01aU\x03zip\x86R.",
    "a name in itself": b"ccopyreg\n__newobj__\nq\x00" + b"h\x00" * 1 + b"\x85\x81.",
}


@pytest.mark.parametrize("data", DAMAGED.values(), ids=DAMAGED.keys())
def test_damaged_pickles_are_refused(data: bytes) -> None:
    with pytest.raises(CheckpointError, match=r"its pickle is (damaged at byte \d+|truncated)"):
        described(data)


CAPPED = {
    "pickle_opcodes": b"N0" * 600 + b"N.",
    "nesting": b"(" * 100 + b"N.",
    "global_bytes": b"c" + b"a" * 200 + b"\nb\n.",
    "pickle_memory": b"X" + (120_000).to_bytes(4, "little") + b"a" * 120_000 + b".",
}
SMALL = Limits(pickle_opcodes=1000, nesting=50, global_bytes=100, pickle_memory=100_000)


@pytest.mark.parametrize("cap", CAPPED)
def test_caps(cap: str) -> None:
    with pytest.raises(CheckpointError, match=rf"^limit exceeded: .* \(limit {cap}=\d+\).*ckpt_limits"):
        described(CAPPED[cap], SMALL)
    assert described(CAPPED[cap] if cap != "nesting" else b"N.") != []


COPIES = {
    "a set": b"\x80\x02]q\x00(" + b"N" * 10_000 + b"ecbuiltins\nset\nq\x01",
    "an ordered dict": b"\x80\x02]q\x00(" + b"K\x01K\x02\x86" * 5_000 + b"eccollections\nOrderedDict\nq\x01",
    "a size": b"\x80\x02]q\x00(" + b"K\x01" * 10_000 + b"ectorch\nSize\nq\x01",
}


@pytest.mark.parametrize("what", COPIES)
def test_one_list_copied_over_and_over_is_paid_for(what: str) -> None:
    data = COPIES[what] + b"h\x01h\x00\x85R0" * 1000 + b"N."
    with pytest.raises(CheckpointError, match="limit pickle_memory="):
        described(data, Limits(pickle_memory=20_000_000))


def test_a_name_that_makes_itself_ends() -> None:
    many = b"\x80\x02ccopyreg\n__newobj__\nq\x00h\x00(" + b"h\x00" * 5000 + b"tR."
    with pytest.raises(CheckpointError, match="damaged"):
        described(many)


def test_a_big_number_is_described() -> None:
    big = described(pickle.dumps(1 << 5000))
    assert isinstance(big, Stub)


def test_nothing_is_looked_up() -> None:
    read = described(b"\x80\x02cno.such.module\nno_such_name\n.")
    assert isinstance(read, Global)
    assert read.name == "no.such.module.no_such_name"
