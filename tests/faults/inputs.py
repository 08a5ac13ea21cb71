"""Bad inputs by kind: each has to end in one line, before any long work, and overwrite nothing."""

import gzip
import json
import os
import random
import shutil
import subprocess
import sys
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors.torch import load_file, save_file
from toys import ROOT
from typer.testing import CliRunner

import experiment
from faults.home import Home, Row, call, contents, new_home
from tsae_lab import files
from tsae_lab.data import store
from tsae_lab.jobs import identity, training
from tsae_lab.jobs.plan import Config

# what was not clear when it was first tried
FOUND = (
    "minimal-pairs deep.jsonl", "probe deep.jsonl", "deep.json", "deep.jsonl --text",
    "code of its own", "NaN weights", "fewer embeddings", "threads=-1", "{'plan': 3}",
    "model's '{}'", "bench --k=0", "metadata=[]", "config '[]'", "--d_sae=1000000000",
    "--hidden_enc=1000000000", "--threads=100000000", "a pipe", "a device",
    "links in a circle", "--lm=a b", "--lm=a--b", "--json=cfg.json", "--html=final_info.json",
    "--json and --csv",
)  # fmt: skip
Case = tuple[str, Callable[[Path], list[str]]]  # a name, and the command, made in a folder
SUBPROCESSES = 40  # of so many cases one is run as its user would, of the kinds in PLAIN
PLAIN = ("options", "names", "texts")
ODD_JSON = ("", "[]", "3", "null", '"text"', "{", "[" * 100_000, "\x00", "{}")


def campaign(n: int, seed: int, folder: Path) -> list[Row]:
    """`n` bad inputs of all kinds, as many of each as it has; beyond that, drawn at random."""
    home = new_home(folder / "home")
    code, output = call(home, home.run("run_2"))
    assert code == 0, output[-2000:]
    cases = [(kind, *case) for kind, make in KINDS.items() for case in make(home)]
    random.Random(seed).shuffle(cases)
    kept = sorted(cases, key=lambda case: case[1] not in FOUND)[:n]
    rows = []
    for i, (kind, name, make) in enumerate(kept):
        place = folder / f"case_{i}"
        place.mkdir()
        alone = i % SUBPROCESSES == SUBPROCESSES - 1 and kind in PLAIN
        rows.append({"what": kind, "case": name} | _ended(home, make(place), place, alone=alone))
        shutil.rmtree(place)
    return rows


def _ended(home: Home, args: list[str], place: Path, *, alone: bool) -> dict[str, Any]:
    """How the command ended: clear, or what is wrong with its end."""
    before = contents(home.folder, place)
    worked: list[str] = []
    if alone:
        command = [sys.executable, str(ROOT / "experiment.py"), *args]
        own = {**os.environ, "TSAE_CACHE": str(home.cache)}
        done = subprocess.run(command, capture_output=True, text=True, cwd=place, env=own)
        code, output, error = done.returncode, done.stdout + done.stderr, None
    else:
        with (
            mock.patch.dict(os.environ, {"TSAE_CACHE": str(home.cache)}),
            mock.patch.object(identity, "_commit", return_value=None),
            mock.patch.object(store, "block_of", _noting(worked, "extracted")),
            mock.patch.object(training, "train_step", _noting(worked, "trained")),
        ):
            done = CliRunner().invoke(experiment.app, args)
        code, output = done.exit_code, done.output
        error = None if isinstance(done.exception, SystemExit) else done.exception
    lines = [line for line in output.splitlines() if line.strip()]
    faults = [f"{type(error).__name__}: {error}"] * (error is not None)
    faults += ["exit code 0"] * (code == 0) + ["a traceback"] * ("Traceback" in output)
    if error is None and (not lines or not lines[-1].startswith("error: ") or len(
        [line for line in lines if line.startswith("error: ")]) != 1):  # fmt: skip
        faults.append(f"no line: {lines[-1:]}")
    after = contents(home.folder, place)
    faults += [f"changed: {p}" for p in before if after.get(p) != before[p]]
    # token ids of a text that was read are right whatever came after
    made = [p for p in after.keys() - before.keys() if p.parent.parent.name != "tokens"]
    faults += [f"made: {p}" for p in made] + worked[:1]
    return {"ok": not faults, "fault": "; ".join(faults)[:1000], "line": (lines or [""])[-1][:400]}


def _noting(worked: list[str], what: str) -> Callable[..., None]:
    return lambda *_, **__: worked.append(what)


# --------------------------------------------------------------------------------------- options


def options(home: Home) -> Iterator[Case]:
    """Every option of a number with what is none, and with numbers out of its range."""
    hints = typing.get_type_hints(Config)
    for name, kind in hints.items():
        if kind in (int, float):
            for value in ("x", "", "-1") if kind is int else ("x", "nan", "-1", "inf"):
                if (name, value) != ("decay", "inf"):
                    yield f"{name}={value}", _run(home, f"--{name}={value}")
    for option in ("--no-such-option=1", "--k", "--k=9999", "--window=0", "--steps=1",
                   "--pieces=25", "--seq=1", "--seq=1000", "--pretrain=0.9", "--device=gpu",
                   "--device=cuda", "--device=cpu:x", "--batch=5000", "--share=0",
                   "--d_sae=1000000000", "--hidden_enc=1000000000", "--threads=100000000",
                   "--batch=1000000000000"):  # fmt: skip
        yield option, _run(home, option)
    for option in ("--batch=0", "--k=0", "--d_in=x", "--repeats=0", "--window=-1"):
        yield f"bench {option}", lambda _, option=option: ["bench", option]
    for option in ("--tokens=0", "--tokens=5", "--hook=x", "--lm=/nowhere"):
        yield f"stability {option}", _on_model(home, "stability", option)
    for option in ("--feature=64", "--feature=-1", "--edit=x", "--value=nan", "--good=a",
                   "--position=3", "--text=a"):  # fmt: skip
        yield f"intervene {option}", _on_model(home, "intervene", option)


def _run(home: Home, *more: str, name: str = "run_2") -> Callable[[Path], list[str]]:
    return lambda place: [f"--out_dir={place / name}", *home.options(), *more]


def _on_model(home: Home, command: str, *more: str) -> Callable[[Path], list[str]]:
    return lambda _: [command, str(home.seed / "tsae"), *more]


# ----------------------------------------------------------------------------------------- names


def names(home: Home) -> Iterator[Case]:
    """Names of nothing: texts, models, hooks, sections, systems, commands, runs."""
    for option in ("--datasets=nonsense", "--datasets=", "--datasets=/nowhere/a.txt",
                   "--lm=/nowhere", "--lm=a/b/c", "--lm=a b", "--lm=a--b",
                   "--hook=blocks.9.hook_resid_post", "--hook=blocks.x.y", "--hook=",
                   "--scale=huge", "--precision=int8", "--sinks=some", "--static_sae=/nowhere",
                   "--data_dir=/nowhere"):  # fmt: skip
        yield option, _run(home, option)
    yield "sections", _run(home, "--sections=stability,nonsense", name="run_3")
    yield "no sections", _run(home, "--sections=", name="run_3")
    for systems in ("nonsense", "", "tsae@", "tsae@x", "tsae@0", "tsae@9999"):
        yield f"systems={systems}", _run(home, f"--systems={systems}", name="run_4")
    run = str(home.folder / "run_2")
    for args in (["nonsense"], ["report", "/nowhere"], ["report", __file__], ["stability"],
                 ["stability", "/nowhere"], ["stability", run], ["tradeoff", "/nowhere"],
                 ["tradeoff", run, "--dataset=x"], ["tradeoff", run, "--seed=7"],
                 ["tradeoff", run, f"--dataset={home.text}", "--betas=x"],
                 ["tradeoff", run, f"--dataset={home.text}", "--betas=-1"],
                 ["tradeoff", run, f"--dataset={home.text}", "--ks=0,4"],
                 ["tradeoff", run, f"--dataset={home.text}", "--ks=a"]):  # fmt: skip
        yield " ".join(args)[-60:], lambda _, args=args: args
    yield "no out_dir", lambda _: home.options()


# ----------------------------------------------------------------------------------------- files


def outputs(home: Home) -> Iterator[Case]:
    """Files that cannot be written, or that are others'."""
    for option in ("--json=/nowhere/a.json", "--csv=/", "--png=a.pdf", "--png=/nowhere/a.png"):
        yield option, _on_model(home, "stability", option)
    yield "--html=/", _on_model(home, "evolution", "--html=/")
    model, run = home.seed / "tsae", home.folder / "run_2"
    yield "--json=cfg.json", _on_model(home, "stability", f"--json={model / 'cfg.json'}")
    yield "--html=final_info.json", lambda _: ["report", str(run), f"--html={run}/final_info.json"]
    yield "--json and --csv", lambda place: _on_model(
        home, "stability", f"--json={place / 'a'}", f"--csv={place / 'a'}")(place)  # fmt: skip
    yield "report --html", lambda _: [*home.run("report")[:2], "--html=/nowhere/a.html"]

    def taken(place: Path, name: str, text: str) -> list[str]:
        path = place / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return [f"--out_dir={place / 'run_2'}", *home.options()]

    yield "out_dir is a file", lambda place: taken(place, "run_2", "mine")
    yield "foreign files", lambda place: taken(place, "run_2/thesis.tex", "mine")
    yield "out_dir below a file", lambda _: [f"--out_dir={__file__}/run_2", *home.options()]


# ----------------------------------------------------------------------------------------- texts


def texts(home: Home) -> Iterator[Case]:
    """Texts that are none, or too short, or not in the form that their names say."""
    long = "the quick brown fox jumps over the lazy dog. " * 40
    of_files: dict[str, str | bytes] = {
        "empty.txt": "", "blank.txt": " \n" * 999, "short.txt": "a", "nul.txt": long + "\0",
        "utf16.txt": long.encode("utf-16"), "latin.txt": ("é" * 2_000).encode("latin-1"),
        "gz.txt.gz": b"no gzip", "cut.txt.gz": gzip.compress(long.encode() * 99)[:-50],
        "zst.txt.zst": b"x" * 50, "a.pdf": b"%PDF" + bytes(99), "rows.jsonl": '{"text": "a"}\n{',
        "numbers.jsonl": "1\n2\n", "column.jsonl": '{"body": "a"}\n', "null.json": "null",
        "number.json": '{"text": 3}', "deep.json": "[" * 100_000, "dict.json": '{"a": {"b": 1}}',
        "column.csv": "a,b\n1,2\n", "ragged.csv": "text,b\na,b,c\n1", "empty.csv": "",
        "binary.parquet": b"PAR1" + bytes(99), "empty.parquet": b"", "tabs.tsv": "a\tb\n1\t2\n",
        "same.jsonl": '{"text": "again"}\n' * 400, "deep.jsonl": '{"a":' * 100_000,
    }  # fmt: skip

    def text(place: Path, name: str, content: str | bytes) -> list[str]:
        data = content if isinstance(content, bytes) else content.encode()
        (place / name).write_bytes(data)
        return [f"--out_dir={place / 'run_2'}", *home.options(), f"--datasets={place / name}"]

    for name, content in of_files.items():
        yield name, lambda place, name=name, content=content: text(place, name, content)
        if name.endswith((".jsonl", ".csv", ".json")) and name != "same.jsonl":
            yield f"{name} --text", lambda place, name=name, content=content: [
                "stability", str(home.seed / "tsae"),
                text(place, name, content)[-1].replace("--datasets", "--text"),
            ]  # fmt: skip

    def folder(place: Path, **inside: str) -> list[str]:
        (place / "folder").mkdir()
        for name, content in inside.items():
            (place / "folder" / name.replace("__", ".")).write_text(content)
        return [f"--out_dir={place / 'run_2'}", *home.options(), f"--datasets={place / 'folder'}"]

    def odd(place: Path, make: Callable[[Path], object]) -> list[str]:
        make(place / "odd.txt")
        return [*_run(home)(place), f"--datasets={place / 'odd.txt'}"]

    yield "a pipe", lambda place: odd(place, os.mkfifo)
    yield "a device", lambda place: odd(place, lambda path: path.symlink_to("/dev/zero"))
    yield "links in a circle", lambda place: odd(place, lambda path: path.symlink_to(path))
    yield "a name of 300 letters", _run(home, f"--datasets={'a' * 300}")
    yield "empty folder", lambda place: folder(place)
    yield "folder of others", lambda place: folder(place, a__png="x")
    yield "saved dataset", lambda place: folder(place, state__json="{}", dataset_info__json="{")
    yield "datasets of one name", lambda place: [
        *folder(place, a__txt=long)[:-1], f"--datasets={place / 'folder'},{place / 'folder'}"
    ]  # fmt: skip


# --------------------------------------------------------------------------------- language models


def models(home: Home) -> Iterator[Case]:
    """Folders of language models with a file missing, damaged, or of another model."""

    def changed(place: Path, change: Callable[[Path], object]) -> list[str]:
        shutil.copytree(home.lm, place / "lm")
        change(place / "lm")
        return [f"--out_dir={place / 'run_2'}", *home.options(), f"--lm={place / 'lm'}"]

    def case(name: str, change: Callable[[Path], object]) -> Case:
        return name, lambda place: changed(place, change)

    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        yield case(f"no {name}", lambda lm, name=name: (lm / name).unlink())
        yield case(f"cut {name}", lambda lm, name=name: (lm / name).write_bytes(
            (lm / name).read_bytes()[:200]))  # fmt: skip
    for text in ("[]", "3", "{}", "{", '{"model_type": "no_such"}', '{"model_type": 3}'):
        yield case(f"config.json {text}", lambda lm, t=text: (lm / "config.json").write_text(t))
    for text in ("[]", "{}", '{"model": 3}'):
        yield case(f"tokenizer {text}", lambda lm, t=text: (lm / "tokenizer.json").write_text(t))
    for name, value in {"hidden_size": 12, "num_hidden_layers": 9, "vocab_size": 3,
                        "pad_token_id": "x", "num_attention_heads": 0}.items():  # fmt: skip
        yield case(f"{name}={value}", lambda lm, n=name, v=value: _edit(
            lm / "config.json", {n: v}))  # fmt: skip
    yield case("fewer embeddings", _fewer_embeddings)
    yield case("NaN weights", lambda lm: _weights(lm, lambda t: t.fill_(float("nan"))))
    yield case("pickled weights", _pickled)
    yield case("code of its own", lambda lm: _edit(lm / "config.json", {
        "model_type": "own", "auto_map": {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"},
    }))  # fmt: skip
    yield case("no BOS, no EOS", _without_ends)
    yield "a file", lambda place: [*_run(home)(place), f"--lm={home.lm / 'config.json'}"]


def _edit(path: Path, changes: dict[str, Any]) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _weights(lm: Path, change: Callable[[torch.Tensor], object]) -> None:
    named = load_file(lm / "model.safetensors")
    for tensor in named.values():
        change(tensor)
    save_file(named, lm / "model.safetensors", {"format": "pt"})


def _fewer_embeddings(lm: Path) -> None:
    """A tokenizer that gives ids past the embedding."""
    named = load_file(lm / "model.safetensors")
    cut = {n: t[:300].clone() if "embed" in n or "lm_head" in n else t for n, t in named.items()}
    save_file(cut, lm / "model.safetensors", {"format": "pt"})
    _edit(lm / "config.json", {"vocab_size": 300})


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("was_run",)


def _pickled(lm: Path) -> None:
    (lm / "model.safetensors").unlink()
    torch.save({"model.embed_tokens.weight": _Evil()}, lm / "pytorch_model.bin")


def _without_ends(lm: Path) -> None:
    path = lm / "tokenizer_config.json"
    kept = {k: v for k, v in json.loads(path.read_text()).items() if "_token" not in k}
    path.write_text(json.dumps(kept))
    (lm / "special_tokens_map.json").unlink(missing_ok=True)


# ------------------------------------------------------------------------------------------- SAEs


def saes(home: Home) -> Iterator[Case]:
    """Saved SAEs with another cfg.json, a file of something else, tensors that do not fit."""

    def changed(place: Path, change: Callable[[Path], object]) -> list[str]:
        shutil.copytree(home.seed / "static", place / "sae")
        change(place / "sae")
        return ["stability", str(place / "sae")]

    def case(name: str, change: Callable[[Path], object]) -> Case:
        return name, lambda place: changed(place, change)

    for text in ODD_JSON:
        yield case(f"cfg.json {text[:9]!r}", lambda sae, t=text: (sae / "cfg.json").write_text(t))
    for name, value in (
        ("k", 0), ("k", "4"), ("k", 1.5), ("k", 999), ("k", None), ("d_in", 3), ("d_in", [24]),
        ("d_sae", 65), ("architecture", "own"), ("architecture", ["topk"]), ("metadata", []),
        ("metadata", "x"), ("metadata", {"model_name": 3}), ("metadata", {"contents": []}),
        ("metadata", {"hook_name": ["x"], "model_name": "x"}), ("normalize_activations", "layer"),
        ("activation_fn", {}), ("activation_fn_kwargs", [4]), ("reshape_activations", 3),
    ):  # fmt: skip
        yield case(f"{name}={value}", lambda sae, n=name, v=value: _own_cfg(sae, {n: v}))
    for data in (b"", b"x" * 99, bytes(999)):
        yield case(f"weights {data[:3]!r}", lambda sae, d=data: (
            sae / "sae_weights.safetensors").write_bytes(d))  # fmt: skip
    for name in ("cfg.json", "sae_weights.safetensors"):
        yield case(f"no {name}", lambda sae, name=name: (sae / name).unlink())
    yield case("pickle", _dictionary)
    yield case("trainer []", lambda sae: _dictionary(sae, '{"trainer": []}'))
    yield "start of another width", lambda place: [*_run(home)(place), _narrow(home, place)]


def _own_cfg(sae: Path, changes: dict[str, Any]) -> None:
    """As another program would have written it: nothing says what the file was."""
    cfg = json.loads((sae / "cfg.json").read_text())
    del cfg["metadata"]["contents"], cfg["metadata"]["identity"]
    (sae / "cfg.json").write_text(json.dumps(cfg | changes))


def _dictionary(sae: Path, config: str = '{"trainer": {"dict_class": "AutoEncoder"}}') -> None:
    for path in sae.iterdir():
        path.unlink()
    (sae / "config.json").write_text(config)
    torch.save({"bias": _Evil()}, sae / "ae.pt")


def _narrow(home: Home, place: Path) -> str:
    shutil.copytree(home.seed / "static", place / "sae")
    named = load_file(place / "sae" / "sae_weights.safetensors")
    cut = {"W_enc": named["W_enc"][:9], "W_dec": named["W_dec"][:, :9], "b_dec": named["b_dec"][:9]}
    save_file({n: t.contiguous() for n, t in (named | cut).items()},
              place / "sae" / "sae_weights.safetensors")  # fmt: skip
    _own_cfg(place / "sae", {"d_in": 9})
    return f"--static_sae={place / 'sae'}"


# ----------------------------------------------------------------------------------------- stores


def stores(home: Home) -> Iterator[Case]:
    """Caches that cannot be one."""

    def case(name: str, make: Callable[[Path], object]) -> Case:
        def args(place: Path) -> list[str]:
            make(place / "cache")
            return [*_run(home)(place), f"--cache_dir={place / 'cache'}"]

        return name, args

    yield case("a file", lambda cache: cache.write_text("mine"))
    yield case("activations is a file", lambda cache: files.write_json(
        files.make_dir(cache) / "activations", {}))  # fmt: skip
    yield case("a link to nothing", lambda cache: cache.symlink_to("/nowhere/at/all"))
    yield "below a file", _run(home, f"--cache_dir={__file__}/cache")
    yield "below /proc", _run(home, "--cache_dir=/proc/no/cache")


# ------------------------------------------------------------------------------------------- runs


def runs(home: Home) -> Iterator[Case]:
    """Directories of runs whose files are others', damaged, or of another version."""

    def changed(place: Path, name: str, change: Callable[[Path], object]) -> None:
        shutil.copytree(home.folder / "run_2", place / "run_2")
        change(place / "run_2" / name)

    def again(name: str, change: Callable[[Path], object], *more: str) -> Callable:
        def args(place: Path) -> list[str]:
            changed(place, name, change)
            return [f"--out_dir={place / 'run_2'}", *home.options(), *more]

        return args

    def examined(name: str, change: Callable[[Path], object]) -> Callable:
        def args(place: Path) -> list[str]:
            changed(place, name, change)
            return ["stability", str(place / "run_2" / "letters" / "seed_0")]

        return args

    measures = "letters/seed_0/measures.json"
    for text in ODD_JSON:
        yield f"config {text[:9]!r}", again("config.json", lambda p, t=text: p.write_text(t))
        yield f"model's {text[:9]!r}", examined("config.json", lambda p, t=text: p.write_text(t))
        yield f"measures {text[:9]!r}", again(measures, lambda p, t=text: p.write_text(t))
    for name, value in (("k", "x"), ("seq", -1), ("seq", 2.5), ("datasets", []), ("new", 1),
                        ("device", "tpu"), ("plan", 3), ("distant", None)):  # fmt: skip
        change = {name: value}
        yield f"{change}", examined("config.json", lambda p, c=change: _unsealed(p, c))
    for change in ({"static_fve": "x"}, {"jaccard": "high"}, {"fve": None}, {"note": "mine"}):
        yield f"measures {change}", again(measures, lambda p, c=change: _unsealed(p, c))
    yield "more seeds", again("config.json", lambda _: None, "--seeds=9")
    yield "another k", again("config.json", lambda _: None, "--k=5")
    yield "pretrained", again("config.json", lambda p: _half_done(p.parent))
    for name in ("static/cfg.json", "tsae/temporal.safetensors"):
        path = f"letters/seed_0/{name}"
        yield f"{name} empty", examined(path, lambda p: p.write_bytes(b""))
        yield f"{name} gone", examined(path, lambda p: p.unlink())


def _unsealed(path: Path, changes: dict[str, Any]) -> None:
    """As an earlier version would have written it: without a checksum."""
    content = json.loads(path.read_text()) | changes
    content.pop("checksum", None)
    path.write_text(json.dumps(content))


def _half_done(run: Path) -> None:
    seed = run / "letters" / "seed_0"
    (seed / "measures.json").unlink()
    (seed / "pretrained.safetensors").write_bytes(b"x" * 200)


# ----------------------------------------------------------------------------------- probing sets


def sets(home: Home) -> Iterator[Case]:
    """Probing sets and minimal pairs that are cut, of another form, or of no use."""
    of_files = {
        "a.jsonl": '{"text": "a b", "label": 1, "word": "a"}\n' * 3,
        "one.jsonl": '{"text": "a b", "label": 1}\n', "cut.jsonl": '{"text": "a b", "la',
        "list.jsonl": "[1]\n", "number.jsonl": "3\n", "empty.jsonl": "", "x.tsv": "a\tb\n1\t2\n",
        "deep.jsonl": '{"text":' + "[" * 100_000, "own.csv": "text,label,word\na b,1\n",
        "word.csv": "text,label,begin,end\na b,1,x,y\n", "null.jsonl": "null\n",
        "blimp.jsonl": '{"sentence_good": 3, "sentence_bad": "a", "UID": "b"}\n',
        "verbs.jsonl": '{"tokens": "a b", "verb_index": 1, "good": "a", "bad": "b"}\n',
        "gap.tsv": "ID\tText\tPronoun\tPronoun-offset\n1\ta\tb\tc\n",
        "wic.jsonl": '{"sentence1": "a", "sentence2": 3, "label": 1, "word": "a"}\n',
        "x.data.txt": "a\tN\t0-0\tb\tc\n", "binary.tsv": "\x00\x01",
        "clusters.jsonl": '{"tokens": ["a"], "coreference_clusters": 3}\n',
        "sentid.tsv": "sentid\tsentence\nx\ty\n", "homograph.tsv": "homograph\twordid\nx\ty\n",
    }  # fmt: skip

    def args(place: Path, command: str, name: str) -> list[str]:
        (place / name).write_text(of_files[name])
        given, model = str(place / name), str(home.seed / "tsae")
        return [command, given, model] if command == "probe" else [command, model, given]

    for name in of_files:
        for command in ("probe", "minimal-pairs"):
            yield f"{command} {name}", lambda place, c=command, n=name: args(place, c, n)
    model = str(home.seed / "tsae")
    for more in (["nonsense", model], ["agreement", model, "--k=0"], ["agreement", "/nowhere"],
                 ["/nowhere.jsonl", model], ["agreement", model, "--k=x"]):  # fmt: skip
        yield f"probe {more[0]} {more[-1]}", lambda _, m=more: ["probe", *m]
    for more in (["/nowhere"], [str(home.text)], [str(home.text), "--sets=x"]):
        yield f"minimal-pairs {more[-1]}", lambda _, m=more: ["minimal-pairs", model, *m]


KINDS: dict[str, Callable[[Home], Iterator[Case]]] = {
    "options": options, "names": names, "files": outputs, "texts": texts, "models": models,
    "SAEs": saes, "stores": stores, "run directories": runs, "probing sets": sets,
}  # fmt: skip
