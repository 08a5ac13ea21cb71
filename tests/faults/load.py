"""Several processes at once, dead holders, full and read-only disks, large and odd texts."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

from faults import home as base
from faults.home import WORDS, Home, Row

FULL = {"run_2": 12, "run_3": 5, "run_4": 3}  # moments at which the disk of a run is full
LARGE_TOKENS, LONG_LINE = 10**7, 10**9  # of one document, of one line in bytes
CEILING = 2.1  # bytes of memory per byte of a text of less than 64 MB
LINE_CEILING = 0.1  # of a longer one, of which a part of a line is held
BESIDE = 50e6  # bytes beyond that, and beyond what a small text takes


def campaign(n: int, _: int, folder: Path) -> list[Row]:
    """Two processes at once and a dead holder; with `n` from 1 on also four, disks, texts that are
    odd or large, which takes gigabytes.
    """
    home = base.new_home(folder / "home")
    for name in FULL if n else ("run_2",):
        code, output = base.call(home, home.run(name))
        assert code == 0, output[-2000:]
    rows = [_one_cache(home, folder, 2), _one_run(home, folder, 2), _dead_holder(home, folder)]
    if n == 0:
        return rows
    rows += [_one_cache(home, folder, 4), _one_run(home, folder, 4)]
    rows += [row for name in FULL for row in _full_disk(home, folder, name)]
    rows += [*_read_only(home, folder), _short_documents(home, folder), _flat(home, folder)]
    return rows + _large(home, folder)


def _row(what: str, *faults: str) -> Row:
    told = "; ".join(fault for fault in faults if fault)
    return {"what": what, "ok": not told, "fault": told[:2000]}


# ------------------------------------------------------------------------------------- company


def _one_cache(home: Home, folder: Path, n: int) -> Row:
    """Several runs at once extract the same activations: one does, the others wait for it."""
    with base.scratch(folder, "company") as place:
        homes = [base.copy_of(home, place / str(i)) for i in range(n)]
        for own in homes:
            (own.folder / "cache").symlink_to(place / "cache")
        (place / "cache").mkdir()
        codes = [base.ended(pid) for pid in [base.start(own, own.run("run_2")) for own in homes]]
        runs = [(own.folder / "run_2", home.folder / "run_2") for own in homes]
        odd = [line for both in runs for line in base.differences(*both)]
        ended = re.compile(r"^activations: (\d+)/\1\b", re.MULTILINE)
        made = sum(len(ended.findall(own.log.read_text())) for own in homes)
        stores = len(list((place / "cache" / "activations").glob("*/manifest.json")))
        left = base.left_over(place)
    faults = [f"exit codes {codes}"] * any(codes) + odd + left
    return _row(
        f"{n} processes, one cache",
        *faults,
        f"{made} extracted for {stores} stores" if made != stores else "",
    )


def _one_run(home: Home, folder: Path, n: int) -> Row:
    """Several processes on one directory: one works, the others say who holds it."""
    with base.scratch(folder, "company") as place:
        homes = [base.copy_of(home, place / str(i), "cache") for i in range(n)]
        args = homes[0].run("run_2")
        codes = [base.ended(pid) for pid in [base.start(own, args) for own in homes]]
        said = [own.log.read_text() for own in homes]
        odd = base.differences(homes[0].folder / "run_2", home.folder / "run_2") + base.left_over(
            place
        )
        refused = [text for text, code in zip(said, codes, strict=True) if code]
    told = "is being made by another process (pid"
    wrong = [f"not said: {text[-200:]}" for text in refused if told not in text]
    return _row(f"{n} processes, one run", *odd, *wrong, "all refused" if all(codes) else "")


def _dead_holder(home: Home, folder: Path) -> Row:
    """The lock of a killed process does not hold up the next."""
    with base.scratch(folder, "company") as place:
        own = base.copy_of(home, place)
        pid = base.start(own, own.run("run_2"))
        while not (own.folder / "run_2" / ".lock").exists() and base.ended(pid, 0.005) is None:
            pass
        base.send(pid, signal.SIGKILL)
        base.ended(pid)
        held = (own.folder / "run_2" / ".lock").exists()
        code, output = base.call(own, own.run("run_2"))
        left = base.left_over(place)
    faults = [output[-300:]] * (code != 0) + ["it held no lock"] * (not held)
    return _row("a dead holder's lock", *faults, *left)


# ---------------------------------------------------------------------------------------- disks


def _mounted(folder: Path, options: str) -> bool:
    folder.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _full_disk(home: Home, folder: Path, name: str) -> list[Row]:
    """A run on a disk that is full at so many moments ends in a line that names the file, and goes
    on where there is room.

    The disk is a tmpfs of so many bytes: without the right to mount, nothing is said.
    """
    size = sum(len(data) for data in base.contents(home.folder / name).values())
    rows = []
    for i in range(FULL[name]):
        place = folder / "disk"
        n_bytes = 8192 + int(size * i / FULL[name])
        if not _mounted(place, f"size={n_bytes}"):
            return []
        try:
            parts = ("cache", "run_2") if name == "run_3" else ("cache",)
            own = base.copy_of(home, folder / "full", *parts)
            (own.folder / name).symlink_to(place)
            code, output = base.call(own, own.run(name))
            faults = [] if _is_clear(code, output) else [f"exit code {code}: {output[-300:]}"]
            subprocess.run(["mount", "-o", "remount,size=1g", str(place)], check=True)
            code, output = base.call(own, own.run(name))
            faults += [output[-300:]] * (code != 0) + base.left_over(place)
            faults += base.differences(own.folder / name, home.folder / name)
        finally:
            subprocess.run(["umount", str(place)], check=True)
            shutil.rmtree(folder / "full")
        rows.append(_row(f"disk full, {name}", *faults) | {"bytes": n_bytes})
    return rows


def _is_clear(code: int, output: str) -> bool:
    """Whether one line says which file found no room; of the report alone it is no error."""
    told = [line for line in output.splitlines() if "No space left" in line]
    last = "no report was written: " if code == 0 else "error: "
    return len(told) == 1 and told[0].startswith(last) and "not written" in told[0]


def _read_only(home: Home, folder: Path) -> list[Row]:
    """A read-only cache serves what is in it, and says in a line that nothing can be added."""
    place = folder / "read_only"
    if not _mounted(place, "size=100m"):
        return []
    try:
        own = base.copy_of(home, folder / "beside")
        shutil.copytree(home.cache, place / "cache")
        (own.folder / "cache").symlink_to(place / "cache")
        subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
        code, output = base.call(own, own.run("run_2"))
        odd = base.differences(own.folder / "run_2", home.folder / "run_2") if code == 0 else []
        served = _row("read-only cache, activations in it", *([output[-300:]] * (code != 0)), *odd)
        shutil.rmtree(own.folder / "run_2")
        code, output = base.call(own, own.run("run_2", "--seq=20"))
        errors = [line for line in output.splitlines() if line.startswith("error:")]
        clear = code == 1 and len(errors) == 1 and "Read-only" in errors[0]
        said = _row("read-only cache, nothing in it", "" if clear else output[-300:])
    finally:
        subprocess.run(["umount", str(place)], check=True)
    return [served, said]


# ---------------------------------------------------------------------------------------- texts


def _peak(home: Home, args: list[str]) -> tuple[int, str, float]:
    """Exit code, output and the process's peak memory in bytes."""
    pid = base.start(home, args)
    _, status, used = os.wait4(pid, 0)
    return os.waitstatus_to_exitcode(status), home.log.read_text()[-2000:], used.ru_maxrss * 1024


def _short_documents(home: Home, folder: Path) -> Row:
    """100,000 documents of one token are read and measured."""
    with base.scratch(folder, "short") as place:
        own = base.copy_of(home, place, "run_2")
        rows = place / "short.jsonl"
        rows.write_text("".join(json.dumps({"text": WORDS[i % len(WORDS)]}) + "\n"
                                for i in range(100_000)))  # fmt: skip
        began = time.monotonic()
        args = ["lifetimes", str(own.seed / "tsae"), f"--text={rows}", "--tokens=2000"]
        code, output, peak = _peak(own, args)
    row = _row("100,000 documents of one token", *([output[-300:]] * (code != 0)))
    return row | {"seconds": time.monotonic() - began, "bytes": peak}


def _large(home: Home, folder: Path) -> list[Row]:
    """One document of 10^7 tokens, lines of 1 GB: memory within the ceiling."""
    texts = {
        f"one document of {LARGE_TOKENS:,} tokens": (LARGE_TOKENS * 5, "", CEILING),
        f"one line of {LONG_LINE:,} bytes": (LONG_LINE, "", LINE_CEILING),
        f"one line of {LONG_LINE:,} bytes, one letter of it 😀": (LONG_LINE, "😀", LINE_CEILING),
    }
    least, rows = _peak(home, home.run("run_2"))[2], []
    for what, (size, letter, ceiling) in texts.items():
        with base.scratch(folder, "large") as place:
            own = base.copy_of(home, place)
            text = place / "large.txt"
            line = " ".join(WORDS[i * i % len(WORDS)] for i in range(50_000)) + " "
            with text.open("w") as file:
                file.write(letter)
                for _ in range(size // len(line) + 1):
                    file.write(line)
            n_bytes, began = text.stat().st_size, time.monotonic()
            code, output, peak = _peak(own, [*own.run("run_2"), f"--datasets={text}"])
            took, left = time.monotonic() - began, base.left_over(place)
        each = (peak - least - BESIDE) / n_bytes
        faults = [output[-300:]] * (code != 0)
        faults += [f"{each:.1f} bytes a byte"] * (each > ceiling)
        row = {"bytes": peak, "bytes_per_byte": each, "seconds": took}
        rows.append(_row(what, *faults, *left) | row)
    return rows


def _flat(home: Home, folder: Path) -> Row:
    """Ten times the activations take no more memory than a tenth more."""
    peaks = []
    with base.scratch(folder, "flat") as place:
        long = place / "long.jsonl"
        place.mkdir()
        long.write_text("".join(
            json.dumps({"text": " ".join(WORDS[(i * j + j) % len(WORDS)] for j in range(200))
                        + f" {i}"}) + "\n" for i in range(900)))  # fmt: skip
        for n in (10_000, 100_000):
            own = base.copy_of(home, place / str(n))
            args = [*own.run("run_2"), f"--datasets={long}", f"--train_tokens={n}", "--steps=8"]
            code, output, peak = _peak(own, args)
            assert code == 0, output
            peaks.append(peak)
    grown = peaks[1] / peaks[0]
    row = _row("ten times the activations", f"memory times {grown:.2f}" if grown > 1.1 else "")
    return row | {"bytes": peaks[1], "times": grown}
