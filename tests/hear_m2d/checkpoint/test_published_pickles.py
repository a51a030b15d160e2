"""What a .pth may hold besides tensors: allowed types as plain values, any other one refused by name."""

import argparse
import collections
import datetime
import io
import pickle
import struct
import threading
import types
import warnings
import zipfile
from pathlib import Path, PosixPath, PurePosixPath, PureWindowsPath

import numpy as np
import pytest
import torch

import hear_m2d
from hear_m2d.checkpoint.published import _tensors, read_published
from hear_m2d.checkpoint.torch_files import load_torch_file

ARGUMENTS = {
    "float": (np.float64(1.5), 1.5), "int": (np.int32(-3), -3), "bool": (np.bool_(True), True),
    "half": (np.float16(2), 2.0), "text": (np.str_("hé"), "hé"), "big-endian": (np.dtype(">i4").type(7), 7),
    "path": (PosixPath("/data/x/y.csv"), PurePosixPath("/data/x/y.csv")),
    "windows": (PureWindowsPath("C:/x/y"), PureWindowsPath("C:/x/y")),
    "pure": (PurePosixPath("a/b"), PurePosixPath("a/b")),
    "set": ({1, 2}, {1, 2}),
    "size": (torch.Size([2, 3]), torch.Size([2, 3])),
    "ordered": (collections.OrderedDict(a=1), collections.OrderedDict(a=1)),
    "bytes": (b"abc\xff", b"abc\xff"), "long": (2**70, 2**70),
    "nested": ([(1, {"b": None})], [(1, {"b": None})]),
}  # fmt: skip


@pytest.mark.parametrize("layout", [{}, {"_use_new_zipfile_serialization": False}])
def test_allowed_types_become_plain_values(tmp_path, layout):
    path = tmp_path / "x.pth"
    arguments = argparse.Namespace(**{name: stored for name, (stored, _) in ARGUMENTS.items()})
    torch.save({"args": arguments}, path, **layout)
    found = vars(load_torch_file(str(path))["args"])
    for name, (_, wanted) in ARGUMENTS.items():
        assert found[name] == wanted, name
        assert type(found[name]) is type(wanted), name


def of_pickle(tmp_path, pickled):
    """Load a .pth with that pickle in it."""
    path = tmp_path / "x.pth"
    torch.save({}, path)
    rewritten(path, pickled)
    return load_torch_file(str(path))


@pytest.mark.parametrize("module", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_numpy_scalars_of_both_numpy_versions_read(tmp_path, module):
    """As numpy 1 and numpy 2 write them."""
    data = struct.pack("<d", 0.25).decode("latin1").encode()
    pickled = (
        b"\x80\x02c" + module.encode() + b"\nscalar\ncnumpy\ndtype\nX\x02\x00\x00\x00f8\x89\x88\x87R"
        b"(K\x03X\x01\x00\x00\x00<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"c_codecs\nencode\nX" + struct.pack("<I", len(data)) + data + b"X\x06\x00\x00\x00latin1\x86R\x86R."
    )  # fmt: skip
    assert of_pickle(tmp_path, pickled) == 0.25


@pytest.mark.parametrize("name", ["PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath", "Path"])
@pytest.mark.parametrize("module", ["pathlib", "pathlib._local"])
def test_paths_of_any_system_and_python_read(tmp_path, module, name):
    pickled = f"\x80\x02c{module}\n{name}\n".encode("latin1") + b"X\x01\x00\x00\x00aX\x01\x00\x00\x00b\x86R."
    assert of_pickle(tmp_path, pickled).parts == ("a", "b")


REFUSED = {
    "collections.defaultdict": collections.defaultdict(list),
    "datetime.date": datetime.date(2024, 1, 1),
    "types.SimpleNamespace": types.SimpleNamespace(a=1),
    "functools.partial": __import__("functools").partial(print, 1),
    f"{np.zeros(3).__reduce__()[0].__module__}._reconstruct": np.zeros(3),  # numpy 2 moved it
    "numpy values of type 'O8'": np.dtype("O"),
    "numpy values of type 'V8'": np.dtype([("a", "f8")]),
    "fractions.Fraction": __import__("fractions").Fraction(1, 2),
    "torch.nn.modules.linear.Linear": torch.nn.Linear(1, 1),
    "getattr": Path.stat,
    "print": print,  # named, not called
}


@pytest.mark.parametrize("name", REFUSED)
def test_any_other_type_is_refused_by_name(tmp_path, name):
    path = tmp_path / "other.pth"
    torch.save({"model": {}, "args": REFUSED[name]}, path)
    with pytest.raises(ValueError, match=r"other\.pth is not a readable checkpoint: it holds ") as caught:
        hear_m2d.load_model(path)
    assert name in str(caught.value)


def rewritten(path, pickled):
    """Put another pickle into a .pth."""
    out = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            new.writestr(name, pickled if name.endswith("data.pkl") else old.read(name))
    path.write_bytes(out.getvalue())


HOSTILE = {
    "a memo of four billion places": b"\x80\x02Nr\xff\xff\xff\xffj\xfe\xff\xff\xff.",
    "a text of four gigabytes": b"\x80\x02X\xff\xff\xff\xffabc.",
    "a text of a million terabytes": b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x0fabc.",
    "a call of a dict": b"\x80\x02})R.",
    "a state for a type": b"\x80\x02cargparse\nNamespace\n}b.",
    "a state of slots": b"\x80\x02cargparse\nNamespace\n)\x81N}\x86b.",
    "an attribute of a type": b"\x80\x04\x8c\x08argparse\x8c\x12Namespace.__init__\x93.",
    "an extension": b"\x80\x02\x82\x01.",
    "nothing": b"\x80\x02.",
    "too much": b"\x80\x02NN.",
    "no end": b"\x80\x02N",
    "marks without an end": b"\x80\x02" + b"(" * 1000 + b".",
    "a pop of nothing": b"\x80\x020.",
    "a path of numbers": b"\x80\x02cpathlib\nPosixPath\nK\x01\x85R.",
    "a bytes of no encoding": b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00bz2\x86R.",
}


@pytest.mark.parametrize("pickled", HOSTILE.values(), ids=HOSTILE)
def test_hostile_pickles_are_refused_at_once(tmp_path, pickled):
    path = tmp_path / "hostile.pth"
    torch.save({}, path)
    rewritten(path, pickled)
    with pytest.raises(ValueError, match=r"hostile\.pth is "):
        hear_m2d.load_model(path)


class Claims:
    """Pickles as a tensor that says of itself what it likes."""

    def __init__(self, *, count=4, offset=0, shape=(2, 2), stride=(2, 1), key="0"):
        self.storage = types.SimpleNamespace(pid=("storage", torch.FloatStorage, key, "cpu", count))
        self.view = (offset, shape, stride, False, collections.OrderedDict())

    def __reduce__(self):
        return torch._utils._rebuild_tensor_v2, (self.storage, *self.view)

    def pickled(self):
        """The pickle of {"t": self}."""
        out = io.BytesIO()
        pickler = pickle.Pickler(out, 2)
        pickler.persistent_id = lambda value: getattr(value, "pid", None)
        pickler.dump({"t": self})
        return out.getvalue()


def read_published_tensors(path):
    return _tensors(load_torch_file(str(path)))


@pytest.mark.parametrize(
    "claims",
    [
        {"count": 3}, {"offset": 1}, {"offset": 2**40}, {"shape": (2, 3)},
        {"shape": (2**40,), "stride": (0,)}, {"stride": (3, 1)}, {"key": "1"}, {"key": "../data.pkl"},
        {"shape": (2,)}, {"shape": (-1, 2)}, {"offset": -1}, {"stride": (-1, 1)}, {"count": -4},
    ],
)  # fmt: skip
def test_a_tensor_with_a_wrong_size_or_stride_is_refused(tmp_path, claims):
    path = tmp_path / "lies.pth"
    torch.save({"t": torch.arange(4.0)}, path)
    rewritten(path, Claims().pickled())
    assert read_published_tensors(path)["t"].tolist() == [[0, 1], [2, 3]]
    rewritten(path, Claims(**claims).pickled())
    with pytest.raises(ValueError, match=r"\w+ \w+ \w+"):  # a sentence
        read_published_tensors(path)


@pytest.fixture
def contents(make_model):
    """What a training file holds."""
    state = dict(make_model(heads=1).encoder.state_dict())
    return {"model": state, "args": argparse.Namespace(lr=np.float64(0.1))}


@pytest.fixture
def published(contents, tmp_path):
    """Its file, with a published name."""
    path = tmp_path / "m2d_vit_base-80x64p16x16-240101" / "checkpoint-300.pth"
    path.parent.mkdir()
    torch.save(contents, path)
    return path


def test_views_and_shared_storages_read_right(published, contents):
    state = contents["model"]
    state["norm.weight"] = torch.arange(192.0)[32:160:2]
    state["norm.bias"] = torch.arange(128.0).reshape(64, 2)[:, 1]
    both = torch.arange(128.0)
    state["blocks.0.norm1.weight"], state["blocks.0.norm1.bias"] = both[:64], both[64:]
    state["blocks.0.mlp.fc1.weight"] = torch.arange(64.0 * 256).reshape(64, 256).T
    for layout in (True, False):
        torch.save(contents, published, _use_new_zipfile_serialization=layout)
        found = read_published(published).tensors
        for name, tensor in state.items():
            assert torch.equal(found[name], tensor), name
        model = hear_m2d.load_model(published)
        assert torch.equal(model.encoder.blocks[0].mlp.fc1.weight, state["blocks.0.mlp.fc1.weight"])


def test_loading_leaves_torchs_and_pythons_settings_alone(published):
    torch.serialization.add_safe_globals([collections.defaultdict])
    try:
        safe, filters = torch.serialization.get_safe_globals(), list(warnings.filters)
        hear_m2d.load_model(published)
        assert torch.serialization.get_safe_globals() == safe
        assert warnings.filters == filters
    finally:
        torch.serialization.clear_safe_globals()


def test_threads_load_at_once(published):
    expected = read_published(published).tensors
    wrong = []

    def load():
        for _ in range(5):
            found = read_published(published).tensors
            wrong.extend(name for name in expected if not torch.equal(found[name], expected[name]))

    threads = [threading.Thread(target=load) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_damage_to_a_tensors_bytes_is_noticed(published):
    data = bytearray(published.read_bytes())
    with zipfile.ZipFile(published) as archive:
        info = max(archive.infolist(), key=lambda info: info.file_size)
    data[info.header_offset + 200] ^= 1
    published.write_bytes(data)
    with pytest.raises(ValueError, match="CRC"):
        read_published(published)


@pytest.mark.parametrize("name", ["norm.weight\x1b[2J", "naïve", "x" * 300, ""])
def test_names_that_are_no_tensors_names_are_refused_unprinted(published, name):
    torch.save({name: torch.zeros(1)}, published)
    with pytest.raises(ValueError, match="not a state dict") as caught:
        read_published(published)
    assert str(caught.value).isprintable()


def test_one_tensor_under_two_names_is_refused(published, contents):
    twice = {f"backbone.{name}": tensor for name, tensor in contents["model"].items()}
    torch.save(twice | {"norm.bias": torch.zeros(64)}, published)
    with pytest.raises(ValueError, match=r"norm\.bias twice"):
        read_published(published)
