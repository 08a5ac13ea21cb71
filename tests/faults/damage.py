"""Files damaged at a random place: every one has to be found and named, or made again and said."""

import json
import random
import shutil
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import toys

from faults.home import Home, Row, call, copy_of, differences, ended, new_home, send, start

Change = Callable[[bytes, random.Random, bytes], bytes]  # content, and that of another run's file


RUNS = ("run_2", "run_3", "run_4", "static", "tsae", "report")
SMALL = {"run_4": ("--systems=static,posthoc_ema",)}
SEED = "letters/seed_0"
MANY = 10  # damages, from which on another run is made
# of a home: the file, and the command that reads it
FILES = {
    "store": ("cache/activations/*/data.bf16", "run_2"),
    "store's tokens": ("cache/activations/*/ids.npy", "run_2"),
    "store's manifest": ("cache/activations/*/manifest.json", "run_2"),
    "checkpoint": (f"killed/run_2/{SEED}/static.checkpoint.safetensors", "killed"),
    "start": (f"killed/run_2/{SEED}/pretrained.safetensors", "killed"),
    "SAE's weights": (f"run_2/{SEED}/static/sae_weights.safetensors", "static"),
    "TSAE's weights": (f"run_2/{SEED}/tsae/temporal.safetensors", "tsae"),
    "SAE's cfg.json": (f"run_2/{SEED}/static/cfg.json", "static"),
    "TSAE's cfg.json": (f"run_2/{SEED}/tsae/cfg.json", "tsae"),
    "config.json": ("run_2/config.json", "run_2"),
    "measures.json": (f"run_2/{SEED}/measures.json", "run_2"),
    "a section's JSON": (f"run_3/{SEED}/stability.json", "run_3"),
    "a section's table": (f"run_3/{SEED}/*.csv", "run_3"),
    "a table of the report": (f"run_3/{SEED}/*.csv", "report"),
    "tokenizer": ("lm/tokenizer.json", "run_2"),
    "a system's JSON": (f"run_4/{SEED}/static.json", "run_4"),
    "final_info.json": ("run_2/final_info.json", "report"),
    "language model": ("lm/model.safetensors", "run_2"),
    "language model's config.json": ("lm/config.json", "run_2"),
    "text": ("letters/07.txt", "run_2"),
}


def campaign(n: int, seed: int, folder: Path, runs: Sequence[str] = RUNS) -> list[Row]:
    """`n` damages: every kind of file in turn, with every kind of damage that it can have.

    A small share does without the files of another run.
    """
    home = _finished(folder / "home", 0, runs)
    other = _finished(folder / "other", 1, runs) if n >= MANY else home
    rng, rows = random.Random(seed), []
    whole = folder / "whole"
    shutil.copytree(home.folder, whole)
    kinds = [what for what, (_, command) in FILES.items() if command in (*runs, "killed")]
    rng.shuffle(kinds)
    for i in range(n):
        rows.append(_damaged(home, other, kinds[i % len(kinds)], rng, whole))
        shutil.rmtree(home.folder)
        shutil.copytree(whole, home.folder)
    return rows


def _finished(folder: Path, text: int, runs: Sequence[str]) -> Home:
    """A home with finished runs, and a run_2 that was killed; of another text where asked for."""
    home = new_home(folder)
    if text:
        letter = home.text / "00.txt"
        letter.write_text(" ".join(reversed(letter.read_text().split())) + "\n")
    made = [name for name in runs if name.startswith("run_")]
    if made[-1] == "run_4":
        made.append("run_3")  # again: its report shows what is beside it
    for name in made:
        code, output = call(home, home.run(name, *SMALL.get(name, ())))
        assert code == 0, output[-2000:]
        if name == "run_2":  # of either split; damage to what is not read changes nothing
            assert output.count("the text has no more") == 2, output[-2000:]
    killed = copy_of(home, folder / "killed", "cache")
    path = killed.seed / "static.checkpoint.safetensors"
    pid = start(killed, killed.run("run_2"))
    parts = (path, path.with_name(f"before.{path.name}"), killed.seed / "pretrained.safetensors")
    while not all(part.exists() for part in parts):
        if ended(pid, 0.005) is not None:
            raise RuntimeError(f"not killed in time: {killed.log.read_text()[-500:]}")
    send(pid, signal.SIGKILL)
    ended(pid)
    return home


# --------------------------------------------------------------------------------------- changes


def flip(data: bytes, rng: random.Random, _: bytes) -> bytes:
    place = rng.randrange(len(data))
    return data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :]


def truncate(data: bytes, rng: random.Random, _: bytes) -> bytes:
    return data[: rng.randrange(len(data))]


def zero(data: bytes, rng: random.Random, _: bytes) -> bytes:
    place = rng.randrange(len(data))
    n = len(data[place : place + 64])
    return data[:place] + bytes(n) + data[place + n :]


def swap(data: bytes, rng: random.Random, _: bytes) -> bytes:
    size = max(1, min(512, len(data) // 4))
    first, second = sorted(rng.sample(range(len(data) // size), 2))
    blocks = [data[i : i + size] for i in range(0, len(data), size)]
    blocks[first], blocks[second] = blocks[second], blocks[first]
    return b"".join(blocks)


def others(_: bytes, __: random.Random, other: bytes) -> bytes:
    return other


def version(data: bytes, rng: random.Random, _: bytes) -> bytes:
    """A number or a name in a JSON file as another version would have it, its checksum kept."""
    content = json.loads(data)
    place = content
    while isinstance(place, dict) and any(isinstance(v, dict) and v for v in place.values()):
        place = rng.choice([v for v in place.values() if isinstance(v, dict) and v])
    name = rng.choice(sorted(place))
    place[f"{name}_of_2"] = place.pop(name)
    return json.dumps(content).encode()


CHANGES: tuple[Change, ...] = (flip, truncate, zero, swap, others, version)


def _damaged(home: Home, other: Home, what: str, rng: random.Random, whole: Path) -> Row:
    """One damage in the home, whose files are those of `whole`, and what its reader says."""
    pattern, command = FILES[what]
    path = rng.choice(sorted(p for p in home.folder.glob(pattern) if p.stat().st_size))
    theirs = rng.choice(sorted(other.folder.glob(pattern))).read_bytes()
    data, damaged = path.read_bytes(), path.read_bytes()
    fit = [change for change in CHANGES if change is not version or path.suffix == ".json"]
    if _content(path, theirs) == _content(path, data):
        fit.remove(others)
    change = rng.choice(fit)
    for _ in range(100):
        damaged = change(data, rng, theirs)
        if _content(path, damaged) != _content(path, data):
            break
    path.write_bytes(damaged)
    fault = _found(home, whole, command, path)
    row = {"what": what, "damage": change.__name__, "at": str(path.relative_to(home.folder))}
    return row | {"ok": not fault, "fault": f"{change.__name__}: {fault}" if fault else ""}


def _content(path: Path, data: bytes) -> object:
    """What a reader takes from a file: of JSON not its blanks."""
    if path.suffix == ".json":
        try:
            return json.loads(data)
        except ValueError:
            return data
    return data


def _found(own: Home, whole: Path, command: str, path: Path) -> str:
    """What is wrong with how the damage ended; "" where it was named, or all was made again."""
    if command in ("static", "tsae"):
        args = ["evolution", str(own.seed / command), "--tokens=9"]
        code, output = call(own, args)
        return "" if code and named(path, output) else f"exit code {code}: {output[-300:]}"
    if command == "report":
        code, output = call(own, own.run("report"))
        if code:
            return f"exit code {code}: {output[-300:]}"
        missing = toys.data_of((own.folder / "report.html").read_text())["missing"]
        said = any("damaged" in line and path.name in line for line in missing)
        return "" if said else f"not said in the page: {missing}"
    run = Home(folder=own.folder / "killed", source=own.source) if command == "killed" else own
    name = "run_2" if command == "killed" else command  # what it ends with is run_2's
    code, output = call(run, run.run(name, *SMALL.get(name, ())))
    if code:
        return "" if named(path, output) else f"not named: {output[-300:]}"
    odd = differences(run.folder / name, whole / name)
    return "" if named(path, output) and not odd else f"not named: {output[-300:]}; {odd}"


def named(path: Path, output: str) -> bool:
    """Whether the output says what is wrong: the file, its folder, or what it is."""
    said = "activation store" in output if "activations" in path.parts else False
    words = (path.name, path.parent.name, "other validation tokens", "other training tokens")
    words += ("another language model", "another tokenizer", "weights of the language model")
    lines = [line for line in output.splitlines() if any(word in line for word in BAD)]
    return said or any(word in line for line in lines for word in words)


BAD = ("error:", "refused", "damaged", "truncated", "made again", "going on from")
