"""A small share of the campaign of faults (`python tests/campaign.py`), and what its rules are."""

import ast
import hashlib
import os
import socket
import subprocess
import zipfile
from pathlib import Path

import pytest
import torch
from faults import damage, home, inputs, kills, load
from toys import ROOT

from tsae_lab import files
from tsae_lab.data import language_model
from tsae_lab.jobs import foreign


@pytest.fixture
def asked(tmp_path, monkeypatch) -> Path:
    """A file with every host that is asked for, by processes that are forked from here, too."""
    path = tmp_path / "asked"

    def note(what):
        def noted(*args, **_):
            with path.open("a") as file:
                file.write(f"{what} {args}\n")
            raise OSError("no network here")

        return noted

    monkeypatch.setattr(socket, "getaddrinfo", note("getaddrinfo"))
    monkeypatch.setattr(socket.socket, "connect", lambda _, address: note("connect")(address))
    return path


def faults_of(rows: list[home.Row]) -> list[str]:
    assert rows
    return [f"{row['what']}: {row['fault']}" for row in rows if not row["ok"]]


def test_killed_runs_end_in_the_same_bits_leave_nothing_and_ask_for_no_host(tmp_path, asked):
    rows = kills.campaign(2, 0, tmp_path, {"run_2": 1.0})
    assert not asked.exists()
    assert faults_of(rows) == []
    assert sum("SIGKILL" in row["what"] for row in rows) == 2


def test_bad_inputs_end_in_a_line_each(tmp_path):
    rows = inputs.campaign(24, 1, tmp_path)
    assert faults_of(rows) == []
    assert len({row["what"] for row in rows}) > 4


def test_damaged_files_are_found_and_named(tmp_path):
    rows = damage.campaign(3, 0, tmp_path, ("run_2", "static", "tsae"))
    assert faults_of(rows) == []
    assert len({row["what"] for row in rows}) == 3


def test_processes_beside_each_other_wait_or_say_who_works(tmp_path):
    assert faults_of(load.campaign(0, 0, tmp_path)) == []


def test_a_wheel_cannot_write_outside_its_folder(tmp_path, monkeypatch):
    packed = tmp_path / "evil-1.whl"
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("../../outside.txt", "x")
        archive.writestr("/absolute.txt", "x")
    wheel = files.Wheel("evil", "1", hashlib.sha256(packed.read_bytes()).hexdigest())

    def download(command, **_):
        place = Path(command[command.index("-d") + 1]) / packed.name
        place.write_bytes(packed.read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", download)
    into = tmp_path / "a" / "b" / "into"
    into.mkdir(parents=True)
    names = {path.resolve() for path in files.unpack_wheel(wheel, lambda _: True, into)}
    assert all(path.is_relative_to(into) for path in names)
    outside = [p for p in tmp_path.rglob("*.txt") if not p.is_relative_to(into)]
    assert outside == []
    assert not Path("/absolute.txt").exists()


class Evil:
    def __reduce__(self):
        return os.mkdir, ("was_run",)


def test_no_pickle_is_run_and_no_code_of_a_folder(tmp_path, monkeypatch, lm_folder):
    monkeypatch.chdir(tmp_path)
    own = home.Home(folder=tmp_path, source=tmp_path)
    (tmp_path / "lm").symlink_to(lm_folder)
    named = dict(inputs.models(own))
    for name in ("pickled weights", "code of its own"):
        place = tmp_path / name
        place.mkdir()
        args = named[name](place)
        (place / "lm" / "own.py").write_text("import os; os.mkdir('was_run')")
        with pytest.raises(ValueError, match="cannot load the language model"):
            language_model.load_lm(args[-1].removeprefix("--lm="))
    torch.save({"bias": Evil()}, tmp_path / "ae.pt")
    with pytest.raises(ValueError, match=r"ae\.pt cannot be read as a file of tensors"):
        foreign.torch_file(tmp_path / "ae.pt")
    assert not (tmp_path / "was_run").exists()


def test_no_call_could_run_code_that_a_file_brings():
    files_of = [*ROOT.glob("*.py"), *(ROOT / "tsae_lab").rglob("*.py")]
    calls = [
        (path.name, ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords})
        for path in files_of
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
    ]
    wanted = {"torch.load": ("weights_only", "True"), "np.load": ("allow_pickle", "False")}
    assert {name for _, name, _ in calls} >= wanted.keys()
    for place, name, options in calls:
        last = name.rpartition(".")[2]
        assert name not in ("pickle.load", "pickle.loads", "pickle.Unpickler", "eval", "exec"), (
            place
        )
        assert last not in ("extractall", "read_pickle", "run_path", "run_module"), place
        assert options.get("trust_remote_code", "False") == "False", place
        if name in wanted:
            option, value = wanted[name]
            assert options.get(option) == value, place
