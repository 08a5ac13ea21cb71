"""Words of other scripts: no replacement characters in tables, no silent boxes in figures."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from tokenizers import Tokenizer, decoders, models
from toys import save_tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tsae_lab.data import texts
from tsae_lab.sections import figures, fonts


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory) -> PreTrainedTokenizerFast:
    folder = tmp_path_factory.mktemp("bytes")
    save_tokenizer(folder)
    return AutoTokenizer.from_pretrained(folder)


@settings(deadline=None, max_examples=60)
@given(text=st.text(st.sampled_from("aé語🙂ש م\ufffd"), min_size=1, max_size=8), data=st.data())
def test_tokens_are_spelled_without_replacement_characters(byte_level, text, data):
    ids = byte_level(text, add_special_tokens=False)["input_ids"]
    assert texts.spelled(byte_level, ids) == text
    begin = data.draw(st.integers(0, len(ids) - 1))
    end = data.draw(st.integers(begin + 1, len(ids)))
    part = texts.spelled(byte_level, ids[begin:end])
    assert "\ufffd" not in part or "\ufffd" in text
    for i in ids:
        word = texts.spelled(byte_level, [i])
        assert word in text or word.startswith("<0x") or "<0x" in word


def test_a_byte_of_a_character_is_shown_as_such(byte_level):
    ids = byte_level("語", add_special_tokens=False)["input_ids"]
    assert [texts.spelled(byte_level, [i]) for i in ids] == ["<0xE8>", "<0xAA>", "<0x9E>"]
    vocabulary = {"<unk>": 0, "▁a": 1, "<0xE8>": 2, "<0xAA>": 3, "<0x9E>": 4}
    model = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    model.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback()])
    pieces = PreTrainedTokenizerFast(tokenizer_object=model, unk_token="<unk>")
    assert texts.spelled(pieces, [1, 2, 3]) == " a<0xE8><0xAA>"
    assert texts.spelled(pieces, [1, 2, 3, 4]) == " a語"


def test_a_figure_says_which_characters_no_font_has(tmp_path, capsys):
    figure = Figure()
    figure.text(0.5, 0.5, "a \U0002a6d6 b")
    figures.save(figure, tmp_path / "odd.png")
    assert "no font here has \U0002a6d6, which are boxes" in capsys.readouterr().err
    plain = Figure()
    plain.text(0.5, 0.5, "plain é")
    figures.save(plain, tmp_path / "plain.png")
    assert capsys.readouterr().err == ""
    assert fonts.fit_fonts([plain.text(0, 0, "ש שלום")]) == ""


def test_a_font_that_has_the_characters_is_taken(monkeypatch):
    label = Figure().text(0, 0, "aש")
    monkeypatch.setattr(fonts, "OWN", "STIXGeneral")  # of matplotlib, without Hebrew
    assert fonts.fit_fonts([label]) == ""
    assert label.get_fontfamily()[0] == "STIXGeneral"
    assert len(label.get_fontfamily()) == 2


def test_a_label_keeps_its_number_at_the_left():
    for label in ("12 fox", "", "12", "שלום", "ال", "<0xE5> fox"):
        assert fonts.numbered(label) == label
    for label in ("12 שלום", "3387 ال ر", "7 fox (שלום)"):
        assert fonts.numbered(label) == f"\u200e{label}"
