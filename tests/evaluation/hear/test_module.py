"""A module that lacks parts of the HEAR API is refused before any embedding, and every part is named."""

import pytest

from hear_m2d.evaluation.hear.module import check_module, resolve_model
from hear_m2d.evaluation.hear.settings import Evaluation
from hear_m2d.utils.errors import InputError

FUNCTIONS = {
    "load_model": "def load_model(path='', rate=16000): return Model(path, rate)",
    "get_scene_embeddings": "def get_scene_embeddings(audio, model): raise RuntimeError('embedded')",
    "get_timestamp_embeddings": "def get_timestamp_embeddings(audio, model): raise RuntimeError('embedded')",
}
ATTRIBUTES = {
    "sample_rate": "self.sample_rate = rate",
    "scene_embedding_size": "self.scene_embedding_size = 4",
    "timestamp_embedding_size": "self.timestamp_embedding_size = 4",
}


@pytest.fixture
def write_module(tmp_path, monkeypatch):
    """Write a module with the whole API but some parts; return its name."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(name, without=()):
        attributes = [line for key, line in ATTRIBUTES.items() if key not in without]
        body = ["self.path = path", *attributes]
        lines = ["class Model:", "  def __init__(self, path, rate):", *(f"    {line}" for line in body)]
        lines += [line for key, line in FUNCTIONS.items() if key not in without]
        (tmp_path / f"{name}.py").write_text("\n".join(lines) + "\n")
        return name

    return write


def test_a_whole_module_gives_its_model_loaded_with_path_and_options(write_module):
    name = write_module("whole_api")
    assert check_module(name).sample_rate == 16000
    model = check_module(name, "weights.pt", {"rate": 48000})
    assert (model.path, model.sample_rate) == ("weights.pt", 48000)


@pytest.mark.parametrize("part", [*FUNCTIONS, *ATTRIBUTES])
def test_a_missing_part_is_named(write_module, part):
    with pytest.raises(InputError, match=rf"\b{part}\b") as error:
        check_module(write_module(f"without_{part}", [part]))
    others = ({*FUNCTIONS} if part in FUNCTIONS else {*ATTRIBUTES}) - {part}
    assert not any(other in str(error.value).split(": ")[1] for other in others)


def test_all_missing_parts_are_named_at_once(write_module):
    parts = ["get_timestamp_embeddings", "sample_rate", "timestamp_embedding_size"]
    with pytest.raises(InputError) as error:
        check_module(write_module("without_three", parts))
    assert all(part in str(error.value) for part in parts)


def test_a_module_that_is_not_there_is_an_import_error():
    with pytest.raises(ImportError, match="no_such_hear_module"):
        check_module("no_such_hear_module")


def test_a_module_can_resolve_a_name_to_a_path(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "weights").mkdir()
    code = f"def resolve_model(name): return {str(tmp_path)!r} + '/weights'\n"
    (tmp_path / "knows_names.py").write_text(code)
    assert resolve_model("knows_names", "owner/tiny") == tmp_path / "weights"
    settings = Evaluation(tasks_dir=tmp_path, out=tmp_path, model="owner/tiny", module="knows_names")
    assert (settings.model, settings.name) == (tmp_path / "weights", "tiny")


@pytest.mark.parametrize("module", ["json", "no_such_hear_module"])
def test_a_model_that_is_not_there_is_refused(tmp_path, module):
    with pytest.raises(InputError, match="there is no checkpoint at nothing"):
        resolve_model(module, "nothing")
    assert resolve_model(module, tmp_path) == tmp_path
