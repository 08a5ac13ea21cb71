import csv
import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
import zlib
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import json_values

from tsae_lab import files

on_disk = settings(max_examples=50, deadline=None)  # every example waits for the disk to sync


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("files")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("TSAE_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.delenv("TSAE_DATA", raising=False)


def temporary_files(folder):
    return [path.name for path in folder.iterdir() if path.name.endswith(".tmp")]


# ---------------------------------------------------------------- reading


@on_disk
@given(st.text(st.sampled_from("aé🙂 \n")), st.booleans(), st.booleans())
def test_a_text_is_read_without_byte_order_mark_and_carriage_returns(folder, text, mark, windows):
    data = text.replace("\n", "\r\n") if windows else text
    (folder / "text").write_bytes(b"\xef\xbb\xbf" * mark + data.encode())
    assert files.read_text(folder / "text") == text


@on_disk
@given(st.binary(max_size=12))
def test_bytes_are_decoded_exactly_or_the_first_wrong_one_is_named(data):
    good = max(n for n in range(len(data) + 1) if is_text(data[:n]))
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        with pytest.raises(ValueError, match=r"^it is not UTF-8 text: it begins as UTF-16 does$"):
            files.decode_text(data, "it")
        return
    if good == len(data) and b"\0" in data:
        with pytest.raises(ValueError, match=rf"text: NUL byte at offset {data.index(0)} "):
            files.decode_text(data, "it")
        return
    if good == len(data):
        assert files.decode_text(data, "it").encode() == data
        return
    with pytest.raises(
        ValueError, match=r"it is not UTF-8 text: byte 0x[0-9a-f]{2} at offset "
    ) as caught:
        files.decode_text(data, "it")
    offset = int(str(caught.value).rpartition(" ")[2])
    assert offset == good
    assert f"0x{data[offset]:02x}" in str(caught.value)


def is_text(data):
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def test_a_file_that_cannot_be_read_is_an_error_of_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"absent does not exist"):
        files.read_text(tmp_path / "absent")
    with pytest.raises(ValueError, match=r"cannot be read: it is a directory"):
        files.read_text(tmp_path)


# ---------------------------------------------------------------- writing


def half_then(error):
    def write(path):
        path.write_bytes(b"half")
        raise error

    return write


@pytest.mark.parametrize("before", [None, b"old"])
@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        ValueError("two\nlines"),
        KeyboardInterrupt(),
    ],
)
def test_a_write_that_fails_half_way_leaves_what_was_there_and_no_other_file(
    tmp_path, before, error
):
    path = tmp_path / "a.json"
    if before is not None:
        path.write_bytes(before)
    with pytest.raises(type(error)) as caught:
        files.write_atomic(path, half_then(error))
    assert [(f.name, f.read_bytes()) for f in tmp_path.iterdir()] == (
        [] if before is None else [("a.json", before)]
    )
    if isinstance(error, OSError):
        assert caught.value.errno == errno.ENOSPC
    if not isinstance(error, KeyboardInterrupt):
        assert f"{path} not written" in str(caught.value)
        assert "\n" not in str(caught.value)


ENV = {**os.environ, "PYTHONPATH": str(Path(files.__file__).parents[1])}
KILLED = """
import pathlib, sys, time
from tsae_lab import files
def write(temporary):
    with temporary.open("wb") as file:
        file.write(b"half"); file.flush(); print("half", flush=True); time.sleep(60)
files.write_atomic(pathlib.Path(sys.argv[1]), write)
"""


def test_a_process_killed_in_the_middle_of_a_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, env=ENV
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"half\n"
        files.write_atomic(path, lambda temporary: temporary.write_bytes(b"new"))
        [left] = temporary_files(tmp_path)  # of a process that still writes
        process.send_signal(signal.SIGKILL)
    assert path.read_bytes() == b"new"
    with monkeypatch.context() as patch:
        patch.setattr("socket.gethostname", lambda: "elsewhere")
        files.write_atomic(path, lambda temporary: temporary.write_bytes(b"newer"))
        assert temporary_files(tmp_path) == [left]  # another machine may still write it
    files.write_atomic(path, lambda temporary: temporary.write_bytes(b"newest"))
    assert [(f.name, f.read_bytes()) for f in tmp_path.iterdir()] == [("a", b"newest")]


def test_a_draft_of_another_machine_is_removed_when_nothing_was_written_for_an_hour(tmp_path):
    draft, path = tmp_path / ".a.elsewhere.7.tmp", tmp_path / "a"
    draft.write_bytes(b"half")
    long_ago = time.time() - 7200
    os.utime(draft, (long_ago, long_ago))
    files.write_atomic(path, lambda temporary: temporary.write_bytes(b"new"))
    assert [f.name for f in tmp_path.iterdir()] == ["a"]


def test_a_missing_folder_is_an_error_with_the_name_of_the_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"b/c\.json not written: No such file"):
        files.write_json(tmp_path / "b" / "c.json", {})


@on_disk
@given(json_values)
def test_json_is_read_back_as_it_was_written(folder, obj):
    files.write_json(folder / "any.json", obj)
    assert json.loads((folder / "any.json").read_text()) == obj


def test_csv_is_read_back_as_it_was_written(tmp_path):
    rows = [
        {"word": 'a "quoted", one', "n": 1},
        {"word": "two\nlines", "n": -2},
        {"word": "[東]", "n": 3},
    ]
    files.write_csv(tmp_path / "rows.csv", rows)
    with (tmp_path / "rows.csv").open(newline="", encoding="utf-8") as file:
        assert [{**row, "n": int(row["n"])} for row in csv.DictReader(file)] == rows
    with pytest.raises(ValueError, match=r"rows\.csv"):
        files.write_csv(tmp_path / "rows.csv", [{"a": 1}, {"b": 2}])
    assert "quoted" in (tmp_path / "rows.csv").read_text()
    files.write_csv(tmp_path / "rows.csv", [])
    assert (tmp_path / "rows.csv").read_text() == ""


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), -float("inf")])
def test_json_with_nan_or_infinity_is_refused_with_its_place(tmp_path, odd):
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(ValueError, match=rf"a\.json not written: means\.loss\.1 is {odd}"):
        files.write_json(path, {"n": 1, "means": {"loss": [0.5, odd]}})
    with pytest.raises(ValueError, match="not written: it is"):
        files.write_json(path, odd)
    assert path.read_text() == "old"


def test_an_object_that_json_does_not_know_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"a\.json not written: Object of type Tensor"):
        files.write_json(tmp_path / "a.json", {"loss": torch.tensor(1.0)})


def test_too_little_space_is_an_error_with_needed_and_free_bytes(tmp_path):
    files.require_space(tmp_path / "not" / "yet" / "there", 1)
    with pytest.raises(
        OSError, match=r"a needs 1,000,000,000,000,000,000 bytes of disk, [\d,]+ are free"
    ) as caught:
        files.require_space(tmp_path / "a", 10**18)
    assert caught.value.errno == errno.ENOSPC


@pytest.mark.parametrize("n_bytes", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1])
def test_size_and_checksum_of_a_file_are_those_of_its_bytes(tmp_path, n_bytes):
    data = bytes(i * i % 251 for i in range(n_bytes))
    (tmp_path / "a").write_bytes(data)
    assert files.size_and_crc(tmp_path / "a") == [n_bytes, zlib.crc32(data)]


def test_what_is_no_regular_file_is_not_read_as_a_text(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
        with pytest.raises(
            ValueError, match=f"^{path} cannot be read: it is (a directory|no regular file)"
        ):
            files.read_bytes(path)


@pytest.mark.parametrize(
    ("name", "text"),
    [("cfg.json", "{}"), ("config.json", "{}"), ("log.jsonl", ""), ("a.safetensors", ""),
     ("final_info.json", '{"a": {"checksum": "0"}}')],
)  # fmt: skip
def test_no_output_takes_the_place_of_a_file_of_a_model_or_run(tmp_path, name, text):
    path = tmp_path / name
    files.check_outputs([path], [])
    path.write_text(text)
    with pytest.raises(ValueError, match=f"{name} is a file of a saved model or run"):
        files.check_outputs([path], [])
    own = tmp_path / "own.json"
    own.write_text('{"numbers": {}}')
    files.check_outputs([own], [])
    with pytest.raises(ValueError, match=r"outputs need files of their own; got .*own.json, .*own"):
        files.check_outputs([own, own], [])


def test_an_error_of_a_full_disk_names_the_file(tmp_path):
    for error, said in (
        (OSError(errno.ENOSPC, "No space"), "log not written: No space"),
        (OSError("3 requested and 1 written"), "log not written: 3 requested and 1 written"),
        (OSError(errno.ENOSPC, "a not written: No space"), "a not written: No space"),
        (FileNotFoundError(errno.ENOENT, "No such file", "b"), "No such file: 'b'"),
    ):
        with pytest.raises(OSError, match=said) as caught, files.naming(tmp_path / "log"):
            raise error
        assert str(caught.value).count("not written") == ("written" in said)
    if Path("/dev/full").exists():
        with (
            pytest.raises(OSError, match="/dev/full not written: No space left"),
            files.appended(Path("/dev/full")) as file,
        ):
            file.write("line\n")


def test_what_is_appended_stands_behind_what_was_there_and_is_synced(tmp_path, monkeypatch):
    synced, sync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(os.fstat(fd).st_size), sync(fd)))
    for line in ("one\n", "two\n"):
        with files.appended(tmp_path / "log") as file:
            file.write(line)
            files.sync(file)
    assert (tmp_path / "log").read_text() == "one\ntwo\n"
    assert synced == [4, 8]


def test_a_file_is_synced_before_it_is_moved_and_its_folder_after(tmp_path, monkeypatch):
    events, sync, move = [], os.fsync, os.replace

    def record_sync(descriptor):
        events.append(os.fstat(descriptor).st_ino)
        sync(descriptor)

    def record_move(draft, path):
        events.append("moved")
        move(draft, path)

    monkeypatch.setattr(os, "fsync", record_sync)
    monkeypatch.setattr(os, "replace", record_move)
    files.write_atomic(tmp_path / "a", lambda draft: draft.write_bytes(b"new"))
    assert events == [(tmp_path / "a").stat().st_ino, "moved", tmp_path.stat().st_ino]
    events.clear()
    with files.staged(tmp_path / "stage") as stage:
        (stage / "b").write_bytes(b"new")
    stage = tmp_path / "stage"
    assert events == [path.stat().st_ino for path in (stage / "b", stage, tmp_path)]


def test_of_several_files_none_is_changed_if_the_last_cannot_be_written(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_bytes(b"old")
    second.write_bytes(b"old")
    with pytest.raises(ValueError, match="second not written: it is odd"):
        files.write_all(
            {first: lambda p: p.write_bytes(b"new"), second: half_then(ValueError("it is odd"))}
        )
    assert [path.read_bytes() for path in (first, second)] == [b"old", b"old"]
    files.write_all({path: lambda p: p.write_bytes(b"new") for path in (first, second)})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "second"]
    assert [path.read_bytes() for path in (first, second)] == [b"new", b"new"]


@on_disk
@given(json_values)
def test_the_text_of_json_is_what_python_reads(obj):
    assert json.loads(files.json_text(Path("any"), obj)) == obj


def test_outputs_without_a_folder_and_figures_of_another_kind_are_refused(tmp_path):
    files.check_outputs([tmp_path / "a.json", None], [tmp_path / "a.png", tmp_path / "b.svg"])
    with pytest.raises(ValueError, match="cannot be written: there is no folder"):
        files.check_outputs([tmp_path / "absent" / "a.json"], [])
    with pytest.raises(ValueError, match="there is no folder"):
        files.check_outputs([], [tmp_path / "absent" / "a.png"])
    with pytest.raises(ValueError, match=r"a figure is written as \.png or \.svg; got .*a\.pdf"):
        files.check_outputs([], [tmp_path / "a.pdf"])


def test_a_directory_is_made_with_those_above_or_refused_in_one_line(tmp_path):
    assert files.make_dir(tmp_path / "a" / "b").is_dir()
    assert files.make_dir(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    (tmp_path / "file").touch()
    with pytest.raises(
        ValueError, match=r"cannot make the directory .*file/below: Not a directory"
    ):
        files.make_dir(tmp_path / "file" / "below")


HOLDER = """
import pathlib, sys, time
from tsae_lab import files
with files.locked(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
    pathlib.Path(sys.argv[1]).with_suffix(".done").touch()
"""


@pytest.mark.parametrize(("killed", "soon"), [(False, 2), (False, 600), (True, 2)])
def test_a_lock_is_waited_for_and_free_when_its_holder_ends_or_dies(
    tmp_path, capsys, monkeypatch, killed, soon
):
    """In silence where it is free soon."""
    monkeypatch.setattr(files, "SOON", soon)
    lock = tmp_path / "it.lock"
    command = [sys.executable, "-c", HOLDER, str(lock), "60" if killed else "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=ENV) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        if killed:
            process.kill()
            process.wait()
        with files.locked(lock):
            assert lock.with_suffix(".done").exists() != killed
    waited = f"waiting for another process that makes {lock.with_suffix('')}"
    assert (waited in capsys.readouterr().err) == (not killed and soon == 2)


SOLE = """
import pathlib, sys, time
from tsae_lab import files
with files.sole(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_directory_is_held_by_one_process_and_free_when_that_dies(tmp_path):
    folder = tmp_path / "a" / "run_2"
    with subprocess.Popen(
        [sys.executable, "-c", SOLE, str(folder)], stdout=subprocess.PIPE, env=ENV
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        who = rf"run_2 is being made by another process \(pid {process.pid} on \S+ since 2.*\)"
        with pytest.raises(ValueError, match=who), files.sole(folder):
            raise AssertionError("it was taken twice")
        process.kill()
    assert [path.name for path in folder.iterdir()] == [files.LOCK]
    with files.sole(folder):
        (folder / "mine").touch()
    assert [path.name for path in folder.iterdir()] == ["mine"]


def test_a_directory_that_was_made_and_stayed_empty_is_removed(tmp_path):
    with pytest.raises(KeyboardInterrupt), files.sole(tmp_path / "a" / "b"):
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())
    (tmp_path / "old").mkdir()
    with files.sole(tmp_path / "old"):
        pass
    assert not list((tmp_path / "old").iterdir())
    (tmp_path / "file").touch()
    with (
        pytest.raises(ValueError, match="cannot make the directory"),
        files.sole(tmp_path / "file"),
    ):
        pass


# ---------------------------------------------------------------- fetching


@pytest.mark.parametrize("name", ["one.txt", "one.zip"])
def test_a_source_is_found_in_the_folder_that_is_named_else_in_the_cache(
    tmp_path, monkeypatch, name
):
    content = b"some text"
    (tmp_path / "one.txt").write_bytes(content)
    with zipfile.ZipFile(tmp_path / "one.zip", "w") as archive:
        archive.writestr("one", content)
    source = files.Source(
        files=(name,),
        url="http://127.0.0.1:9/one",
        n_bytes=len(content),
        algorithm="md5",
        digest=hashlib.md5(content).hexdigest(),
    )
    with pytest.raises(ValueError, match="cannot download"):
        files.find_source("one", source)
    monkeypatch.setenv("TSAE_DATA", str(tmp_path))
    path = files.find_source("one", source)
    assert path.read_bytes() == content
    if name == "one.txt":
        assert path == tmp_path / "one.txt"
    else:  # unpacked into the cache: found again without the archive
        (tmp_path / "one.zip").unlink()
        assert files.find_source("one", source) == path
        path.write_bytes(b"same size")
        with pytest.raises(ValueError, match="one has the wrong checksum"):
            files.find_source("one", source)


@pytest.fixture
def wheel_house(tmp_path, monkeypatch):
    """A folder with one tiny wheel that pip finds there and nowhere else."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    file = folder / "tsae_sample_texts-1.0-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("tsae_sample_texts/data/one.txt", "one")
        archive.writestr("tsae_sample_texts/__init__.py", "")
        info = "tsae_sample_texts-1.0.dist-info"
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: tsae-sample-texts\nVersion: 1.0\n"
        )
        archive.writestr(
            f"{info}/WHEEL",
            "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        archive.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_a_wheel_is_fetched_with_the_users_pip_settings_checked_and_unpacked(wheel_house, tmp_path):
    wheel = files.Wheel("tsae-sample-texts", "1.0", wheel_house)
    unpacked = files.unpack_wheel(wheel, lambda n: n.endswith(".txt"), tmp_path / "out")
    assert [f.read_text() for f in unpacked] == ["one"]
    assert [p.name for p in (tmp_path / "out").rglob("*") if p.is_file()] == ["one.txt"]


@pytest.mark.parametrize(
    ("name", "message"), [("tsae-sample-texts", "wrong checksum"), ("tsae-absent", "pip could not")]
)
def test_a_wheel_that_is_absent_or_another_is_a_one_line_error(
    wheel_house, tmp_path, name, message
):
    wheel = files.Wheel(name, "1.0", wheel_house[::-1])
    with pytest.raises(ValueError, match=message) as caught:
        files.unpack_wheel(wheel, lambda _: True, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_failed_or_interrupted_stage_leaves_nothing(tmp_path):
    def broken() -> None:
        with files.staged(tmp_path / "target") as stage:
            (stage / "half").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken()
    assert not list(tmp_path.glob("*target*"))
    with files.staged(tmp_path / "target") as stage:
        (stage / "whole").write_text("whole")
    assert (tmp_path / "target" / "whole").read_text() == "whole"


def test_a_folder_is_made_once_and_again_where_a_file_is_not_what_it_was(tmp_path, capsys):
    target, made = tmp_path / "texts-1.0", []

    def make(stage):
        made.append(stage)
        (stage / "below").mkdir()
        (stage / "below" / "a.txt").write_text("some text")
        (stage / "b.txt").write_text("another")

    def damaged(act):
        act(target)
        n = len(made)
        assert files.whole_folder(target, make, "it") == target
        assert len(made) == n + 1
        return capsys.readouterr().err

    assert files.whole_folder(target, make, "it") == target
    assert capsys.readouterr().err == "fetching it\n"
    files.whole_folder(target, make, "it")
    assert (len(made), capsys.readouterr().err) == (1, "")
    text = "below/a.txt"
    for act, problem in (
        (lambda t: (t / text).write_text("some"), f"{text} is damaged"),
        (lambda t: (t / text).write_text("some tex\0"), f"{text} is damaged"),
        (lambda t: (t / text).unlink(), f"{text} is missing"),
        (lambda t: (t / "more.txt").touch(), "more.txt is not of it"),
        (lambda t: (t / files.CONTENTS).unlink(), "it has no readable list"),
        (lambda t: (t / files.CONTENTS).write_text("[1]"), "it has no readable list"),
    ):
        [line] = damaged(act).splitlines()
        assert line.startswith(f"{target} is refused: {problem}")
        assert (target / text).read_text() == "some text"
        assert sorted(p.name for p in target.iterdir()) == [files.CONTENTS, "b.txt", "below"]


def test_a_damaged_folder_that_cannot_be_made_again_is_an_error_and_stays(tmp_path):
    target = tmp_path / "texts-1.0"
    target.mkdir()
    (target / "a.txt").write_text("of an earlier version")

    def fails(stage):
        (stage / "half").touch()
        raise ValueError("pip could not fetch it")

    for folder, before in ((target, "texts-1.0 is refused: .*: "), (tmp_path / "new", "^")):
        with pytest.raises(ValueError, match=f"{before}pip could not fetch it") as caught:
            files.whole_folder(folder, fails, "it")
        assert "\n" not in str(caught.value)
    assert [p.name for p in target.iterdir()] == ["a.txt"]
    assert not [p for p in tmp_path.iterdir() if p.is_dir() and p != target]


def test_stages_that_killed_processes_left_are_removed_when_nothing_was_written_for_an_hour(
    tmp_path,
):
    names = [f".target.{name}.7.tmp" for name in ("old", "young", "busy")]  # of other machines
    old, young, busy = (tmp_path / name for name in names)
    for folder in (old, young, busy):
        (folder / "below").mkdir(parents=True)
        (folder / "below" / "file").touch()
    long_ago = time.time() - 7200
    for path in (*old.rglob("*"), old, busy, busy / "below"):
        os.utime(path, (long_ago, long_ago))
    with files.staged(tmp_path / "target"):
        pass
    assert {p.name for p in tmp_path.iterdir()} == {*names[1:], "target"}


def test_a_cache_directory_that_is_given_wins_over_the_users(tmp_path, monkeypatch):
    monkeypatch.setenv("TSAE_CACHE", str(tmp_path / "users"))
    with files.cache_at(str(tmp_path / "given")):
        assert files.cache_dir() == tmp_path / "given"
    with files.cache_at(""):
        assert files.cache_dir() == tmp_path / "users"
        files.use_cache(str(tmp_path / "inside"))
        assert files.cache_dir() == tmp_path / "inside"
    files.use_cache("")
    assert files.cache_dir() == tmp_path / "users"


def test_an_output_that_is_no_regular_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    for path in (tmp_path / "pipe.json", tmp_path):
        with pytest.raises(ValueError, match="is no regular file"):
            files.check_outputs([path], [])
