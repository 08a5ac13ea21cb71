"""report.html: what it says against the runs' own numbers and against independent calculations."""

import csv
import json
import math
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import toys
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from toys import copied, data_of, error_line, explorers_of, random_model, store_of, unpacked
from typer.testing import CliRunner

import experiment
import metrics
import tsae
from tsae_lab.data.language_model import LanguageModel
from tsae_lab.jobs import reporting
from tsae_lab.measures import evaluation, lifetimes
from tsae_lab.report import explorer, page, sources, story
from tsae_lab.sections import context


@pytest.fixture(scope="module")
def about(runs_folder) -> dict:
    return story.told([sources.read_run(runs_folder / name) for name in ("run_2", "run_3")], {})


# ---------------------------------------------------------------- the file


def test_run_3_ends_with_a_report_that_holds_its_numbers_and_its_models_codes(runs_folder):
    html = (runs_folder / "run_3" / "report.html").read_text()
    info = json.loads((runs_folder / "run_3" / "final_info.json").read_text())
    [(name, numbers)] = info.items()
    data = data_of(html)
    [text] = data["texts"]
    assert text["name"] == name
    rows = {row["key"]: row for row in text["measures"]}
    for key in ("fve", "jaccard", "births", "tss_mean", "restricted_mean_64"):
        assert rows[key]["tsae"] == numbers["means"][f"{key}_mean"]
        assert rows[key]["static"] == numbers["means"][f"static_{key}_mean"]
        assert rows[key]["n"] == (0 if rows[key]["tsae"] is None else 2)
    assert {row["pattern"] for row in rows.values()} <= {d["pattern"] for d in data["definitions"]}
    [explored] = explorers_of(html)
    models = {model["name"]: model for model in explored["models"]}
    assert models["TSAE"]["fve"] == pytest.approx(numbers["final_info_dict"]["fve"][0], abs=1e-9)
    alive = numbers["final_info_dict"]["alive_frac"][0]
    assert models["TSAE"]["alive"] == round(alive * models["TSAE"]["d_sae"])


def test_nothing_in_the_page_is_an_address_or_an_element_of_the_data(runs_folder):
    html = (runs_folder / "run_3" / "report.html").read_text()
    assert len(re.findall(r"<script>.*?</script>", html, re.DOTALL)) == len(page.SCRIPTS)
    without = re.sub(r"<script.*?</script>", "", html, flags=re.DOTALL)
    assert not re.search(r'(src|href)="(?!#|data:,)', without)
    assert "alert(1)" not in without
    for body in re.findall(r'<script type="application/json".*?>(.*?)</script>', html):
        assert not set("<>&") & set(body)
    assert "Content-Security-Policy" in html


def test_hostile_words_come_back_as_they_were(runs_folder):
    [explored] = explorers_of((runs_folder / "run_3" / "report.html").read_text())
    arrays, words = unpacked(explored), explored["words"]
    for line in explored["models"][0]["timelines"]:
        spelled = [words[i] for i in arrays["tokens"][line["slots"]]]
        assert all(word in words for word in spelled)
    joined = "".join(words[i] for i in arrays["tokens"])
    assert "script>alert" in joined
    assert '"quoted"' in joined


LEAVES = st.none() | st.booleans() | st.integers() | st.text()
TREES = st.recursive(LEAVES, lambda c: st.lists(c) | st.dictionaries(st.text(), c), max_leaves=8)
DTYPES = st.sampled_from(["uint8", "uint16", "uint32", "float16", "float32"])


@given(TREES)
def test_json_in_a_script_keeps_every_value_and_no_letter_of_html(value):
    text = page.json_script(value)
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == value


@given(st.lists(DTYPES, min_size=1, max_size=5), st.integers(0, 7))
def test_packed_arrays_come_back(dtypes, n):
    arrays = {str(i): np.arange(n * 3).reshape(n, 3).astype(d) for i, d in enumerate(dtypes)}
    back = unpacked(json.loads(json.dumps(page.packed(arrays))))
    for name, array in arrays.items():
        assert back[name].dtype == array.dtype
        np.testing.assert_array_equal(back[name], array)


def test_a_page_that_is_too_large_is_not_written(about, tmp_path, monkeypatch):
    monkeypatch.setattr(page, "MOST_BYTES", len(page.page_html(about, [])) // 2)
    with pytest.raises(ValueError, match="needs at most"):
        page.write_page(tmp_path / "report.html", about, [])
    assert not (tmp_path / "report.html").exists()


def test_a_label_that_is_html_or_nul_is_data(explored):
    whole, _ = explored
    odd = {0: "<script>", 1: "\0", 2: "</script>", 3: '"', 4: "&amp;"}
    hostile = replace(whole, dataset="<b>", words=whole.words | odd)
    made = explorer.explorer_of(hostile, documents=1, features=9)
    empty = {"texts": [], "definitions": [], "missing": ["<i>"], "setting": {}, "runs": []}
    html = page.page_html({"title": "<u>", **empty}, [made])
    assert not re.search("<[biu]>", html)
    [back] = explorers_of(html)
    assert back["words"] == made.about["words"]
    assert set(odd.values()) <= set(back["words"])


# ---------------------------------------------------------------- the explorer


@pytest.fixture(scope="module")
def explored() -> tuple[context.Context, explorer.Explorer]:
    """Two models on random activations in chunks, the second document of two chunks."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(9, 14, 12, generator=g)
    valid = torch.arange(14) < torch.tensor([14, 14, 9, 14, 14, 14, 3, 14, 14])[:, None]
    fields = {
        "ids": torch.randint(0, 30, (9, 15), generator=g).int(),
        "document": torch.tensor([0, 5, 5, 1, 2, 3, 4, 6, 7]).int(),
        "start": torch.tensor([0, 0, 14, 7, 0, 0, 0, 0, 0]).int(),
    }
    store = store_of(x * valid[..., None], valid, **fields)
    params = random_model()
    saes = (
        tsae.Sae(params=params, dials=tsae.Dials(k=5, window=3)),
        tsae.static_sae(params.static, 5),
    )
    subjects = tuple(context.subject(sae, store) for sae in saes)
    lm = LanguageModel(
        name="none", model=None, tokenizer=None, d_in=12, n_layers=1, max_seq=64, bos_id=0,
        prefix=(0,), identity="", device=torch.device("cpu"), dtype=torch.float32,
    )  # fmt: skip
    whole = context.Context(
        dataset="toy", seed=0, long=True, lm=lm, store=store,
        words={i: f" w{i}" for i in range(30)}, subjects=subjects,
    )  # fmt: skip
    return whole, explorer.explorer_of(whole, documents=4, features=40, tokens=20, seed=1)


def test_an_anatomy_explains_every_value_of_a_code_and_what_chose_it(explored):
    whole, _ = explored
    x = whole.store.x(slice(None))
    for subject in whole.subjects:
        seen = evaluation.anatomy(subject.sae, x)
        codes, _ = tsae.encode(subject.sae.params, x, subject.sae.dials)
        torch.testing.assert_close(seen.vals, seen.pre.relu() * seen.gate)
        torch.testing.assert_close(seen.vals, codes.vals)
        assert torch.equal(seen.idx, codes.idx)
        if not subject.sae.temporal:
            assert seen.added.eq(0).all()
            assert seen.gate.eq(1).all()
        every = tsae.pre_acts(x, subject.sae.params.static)
        worst = (seen.pre + seen.added).min(-1).values
        assert ((every > worst[..., None] + 1e-4).sum(-1) <= 5).all() or subject.sae.temporal


def test_a_page_of_one_document_holds_every_active_feature_and_no_measure(explored, tmp_path):
    whole, _ = explored
    size = page.write_explorer(tmp_path / "one.html", whole, 14)
    html = (tmp_path / "one.html").read_text()
    assert size == len(html.encode())
    assert data_of(html) == story.untold("Features over the words of toy")
    [back] = explorers_of(html)
    for model in back["models"]:
        assert len(model["words"]) == model["alive"]
        [line] = model["timelines"]
        own = whole.store.tokens.document == line["document"]
        assert len(line["slots"]) == min(14, int(whole.store.tokens.valid[own].sum()))


def test_cards_agree_with_a_loop_over_the_codes(explored):
    whole, made = explored
    for subject in whole.subjects:
        own = {
            name.partition(".")[2]: array
            for name, array in made.arrays.items()
            if name.startswith(f"{subject.slug}.")
        }
        for name, array in explorer.feature_cards(subject, 40).items():
            np.testing.assert_array_equal(own[name], array)
        dense = tsae.dense(tsae.Codes(subject.codes.vals, subject.codes.idx), 96).numpy()
        runs_of_all = lifetimes.runs(subject.codes)
        counts = (dense > 0).sum((0, 1))
        assert own["feature"].tolist() == sorted(own["feature"].tolist())
        assert len(own["feature"]) == min(40, (counts > 0).sum())
        assert counts[own["feature"]].min() >= np.sort(counts)[::-1][len(own["feature"]) - 1]
        for row, feature in enumerate(own["feature"].tolist()):
            flat = dense[..., feature].ravel()
            assert own["active"][row] == counts[feature]
            assert own["peak"][row] == pytest.approx(flat.max())
            assert own["histogram"][row].sum() == counts[feature]
            places = [p for p in own["places"][row].tolist() if p != explorer.NOWHERE]
            assert len(places) == min(explorer.CONTEXTS, counts[feature])
            assert flat[places].tolist() == sorted(flat, reverse=True)[: len(places)]
            for place, strengths in zip(places, own["strengths"][row], strict=False):
                chunk, position = divmod(place, 14)
                for step, strength in enumerate(strengths, -explorer.REACH):
                    inside = 0 <= position + step < 14
                    value = dense[chunk, position + step, feature] if inside else 0.0
                    assert strength == math.ceil(255 * (float(value) / float(flat.max())) - 1e-9)
            mine = (runs_of_all.feature == feature) & ~runs_of_all.truncated
            followed = (runs_of_all.length - runs_of_all.censored)[mine]
            by_feature = runs_of_all.feature, 96, runs_of_all.longest
            deaths, at_risk = lifetimes.life_table(runs_of_all, *by_feature)
            assert deaths.sum() == (~runs_of_all.truncated & ~runs_of_all.censored).sum()
            risk = [(followed >= t).sum() for t in range(explorer.LIVES)]
            assert at_risk[feature].tolist() == risk[: runs_of_all.longest + 1]
            assert own["at_risk"][row].tolist() == risk
            ended = followed[~runs_of_all.censored[mine]]
            assert own["ended"][row].tolist() == [(ended == t).sum() for t in range(explorer.LIVES)]
        score = metrics.tss(subject.codes, subject.dec_norm, range(1, 14))
        np.testing.assert_allclose(own["kappa"][:, :13], score.kappa.T[own["feature"]], rtol=1e-5)
        assert np.isnan(own["kappa"][:, 13:]).all()


def test_the_sample_holds_the_codes_of_its_documents_token_by_token(explored):
    whole, made = explored
    drawn = explorer.drawn_documents(whole, 4, 1)
    assert drawn == sorted(drawn)
    assert drawn != explorer.drawn_documents(whole, 4, 2)
    assert len(explorer.drawn_documents(whole, 99, 0)) == 8
    tokens = whole.store.tokens
    assert made.about["n_documents"] == 8
    for subject, model in zip(whole.subjects, made.about["models"], strict=True):
        _, timelines = explorer.sampled(subject, whole, drawn[:1], 20)
        assert timelines == model["timelines"][:1]
        arrays = {name: made.arrays[f"{subject.slug}.{name}"] for name in ("idx", "pre", "gate")}
        dense = tsae.dense(tsae.Codes(subject.codes.vals, subject.codes.idx), 96).numpy()
        token = 0
        for line in model["timelines"]:
            rows = [r for r in range(9) if int(tokens.document[r]) == line["document"]]
            n_valid = int(tokens.valid[rows].sum())
            assert len(line["slots"]) == min(20, n_valid)
            shown = lifetimes.evolution(
                subject.codes, line["document"], n_features=16, max_tokens=20
            )
            assert line["leading"] == shown.features.tolist()
            for slot in line["slots"]:
                chunk, position = divmod(slot, 14)
                value = np.maximum(arrays["pre"][token].astype(float), 0) * arrays["gate"][token]
                expected = dense[chunk, position, arrays["idx"][token]]
                np.testing.assert_allclose(value, expected, rtol=3e-3, atol=1e-3)
                token += 1
        assert token == len(arrays["idx"])


# ---------------------------------------------------------------- what is said


def test_intervals_over_seeds_are_students_and_differences_leave_nothing_out(runs_folder):
    info = json.loads((runs_folder / "run_3" / "final_info.json").read_text())
    [numbers] = info.values()
    values = np.array(numbers["final_info_dict"]["difference_fve"])
    half = stats.t.ppf(0.975, 1) * values.std(ddof=1) / math.sqrt(2)
    assert story.over_seeds(numbers, "fve") == pytest.approx(
        (values.mean() - half, values.mean() + half)
    )
    bounds = numbers["intervals"]["TSAE - static SAE: jaccard"][0][1:]
    assert story.over_documents(numbers, "jaccard") == tuple(bounds)
    assert story.over_documents(numbers, "fve") is None
    assert story.n_seeds(numbers) == 2
    assert story.over_seeds({"means": {}, "stderrs": {}}, "fve") is None


def a_text(own: float, static: float, error: float | None, n: int) -> dict:
    values = {"fve": [own] * n, "static_fve": [static] * n, "difference_fve": [own - static] * n}
    return {
        "means": {f"{key}_mean": seeds[0] for key, seeds in values.items()},
        "stderrs": {f"{key}_stderr": error for key in values},
        "final_info_dict": values,
    }


@given(st.floats(-1, 1), st.floats(-1, 1), st.floats(0.001, 0.1), st.integers(2, 5))
def test_a_verdict_needs_an_interval_that_leaves_zero_out(own, static, error, n):
    text = a_text(own, static, error, n)
    half = float(stats.t.ppf(0.975, n - 1)) * error
    expected = "same" if abs(own - static) <= half else "more" if own > static else "less"
    assert story.verdict(text, "fve", "more", "less", "same") == expected
    assert f"{own:.3f} in the TSAE" in story.compared(text, "fve")
    assert f"over {n} seeds" in story.compared(text, "fve")


def test_what_was_not_measured_is_said_and_no_number_is_made_up():
    assert story.compared({}, "fve") == "not measured in these runs"
    assert "no interval: one seed" in story.compared(a_text(0.8, 0.7, None, 1), "fve")
    assert story.verdict(a_text(0.8, 0.7, None, 1), "fve", "more", "less", "same") == "same"
    said = story.summary_of("toy", {}, {})
    assert len(said) == 5
    assert not re.search(r"\d\.\d", " ".join(said))
    sections = story.says({"numbers": {}, "tables": {}, "systems": []})
    assert set(sections) == set(story.TOLD_SECTIONS)
    assert "no run_4" in sections["ablations"]
    assert "unknown" in sections["transitions"]
    assert story.measure_rows({}) == []


def test_every_sentence_is_about_the_runs_own_numbers(about, runs_folder):
    [text] = about["texts"]
    info = json.loads((runs_folder / "run_3" / "final_info.json").read_text())
    [numbers] = info.values()
    for key, form, sentence in (("fve", ".3f", 1), ("jaccard", ".3f", 2), ("births", ".1f", 3)):
        for prefix in ("", "static_"):
            assert f"{numbers['means'][f'{prefix}{key}_mean']:{form}}" in text["summary"][sentence]
    assert "not measured" in text["summary"][4]  # no probes in this run
    assert "2 seeds" in text["summary"][0]


# ---------------------------------------------------------------- the runs


def test_a_table_keeps_words_as_words_and_what_is_no_number_as_absent(tmp_path):
    rows = [
        {
            "feature": "3",
            "top_words": "1e5 nan",
            "lift": "2.50",
            "npmi": "",
            "q": "inf",
            "e": "1e-9",
        },
        {"feature": "4", "top_words": "", "lift": "-1", "npmi": "nan", "q": "yes", "e": "5"},
    ]
    with (tmp_path / "t.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "bad.csv").write_bytes(b"a,b\n\xff\xfe,1\n")
    tables, missing = sources.read_tables(tmp_path)
    assert tables["empty"] == []
    assert tables["t"][0] == {
        "feature": 3, "top_words": "1e5 nan", "lift": 2.5, "npmi": None, "q": None, "e": 1e-9
    }  # fmt: skip
    assert tables["t"][1] == {
        "feature": 4, "top_words": None, "lift": -1, "npmi": None, "q": "yes", "e": 5
    }  # fmt: skip
    assert story.by_column(tables["t"])["lift"] == [2.5, -1]
    assert len(missing) == 2
    assert "bad.csv, empty.csv, t.csv is damaged is not known: there is no checksum" in missing[0]
    assert "bad.csv is damaged: " in missing[1]


def test_a_table_that_is_not_as_it_was_written_is_named_and_left_out(runs_folder, tmp_path):
    copied(runs_folder, tmp_path, "run_3")
    folder = next((tmp_path / "run_3").glob("*/seed_0"))
    whole, missing = sources.read_tables(folder)
    assert len(whole) > 4
    assert missing == []
    changed, gone, section = (folder / f"{n}.csv" for n in ("survival", "transitions_tsae", "x"))
    data = changed.read_bytes()
    changed.write_bytes(data[:-3] + bytes([data[-3] ^ 1]) + data[-2:])
    gone.unlink()
    section = folder / "stability.json"
    section.write_text(section.read_text().replace("0.", "1.", 1))
    tables, missing = sources.read_tables(folder)
    lost = {"survival", "transitions_tsae"}
    assert {name: rows for name, rows in whole.items() if name not in lost} == tables
    told = "\n".join(missing)
    where = f"run_3/{folder.parent.name}/seed_0"
    assert f"{where}/survival.csv is damaged" in told
    assert f"{where}/transitions_tsae.csv is missing" in told
    assert f"{where}/stability.json is damaged" in told
    assert "stability_by_lag.csv" in told  # which it lists
    read = [sources.read_run(tmp_path / "run_3")]
    [text] = read[0].info
    about = story.told(read, {text: folder.parent.name})
    assert set(missing) <= set(about["missing"])


@pytest.mark.parametrize(
    ("info", "expected"),
    [
        ({"t": {"means": {"fve_mean": 0.8, "static_fve_mean": 0.7, "difference_fve_mean": 0.1}}},
         {"TSAE": 0.8, "static SAE": 0.7}),
        ({"t": {"means": {"no_gate_fve_mean": 0.6, "no_gate_births_mean": 3}}}, {"no gate": 0.6}),
        ({"t": {"means": {"tsae_fve_mean": 0.6, "t_sae@8_fve_mean": 0.5,
                          "temporal_share_fve_mean": 1}}},
         {"TSAE": 0.6, "t sae@8": 0.5}),
        ({"t": {"systems": {"T-SAE": {"means": {"fve_mean": 0.5}}, "TFA": {"fve": 0.4}}}},
         {"T-SAE": 0.5, "TFA": 0.4}),
        ({"t": {"systems": [{"system": "no memory", "fve": 0.3}, {"fve": 0.2}, 5]}},
         {"no memory": 0.3, "1": 0.2}),
        ({"t": {"means": [], "systems": None, "x": {"means": {"fve_mean": "high"}}}}, {}),
    ],
)  # fmt: skip
def test_systems_are_read_from_any_table_that_has_their_fve(info, expected):
    read = sources.systems(sources.RunFiles(folder=Path("run_4"), info=info))
    assert {name: means["fve"] for _, name, means, _ in read} == expected


def test_numbers_that_are_none_or_not_finite_are_absent():
    text = {"means": {"a_mean": 1, "b_mean": None, "c_mean": float("inf"), "d_mean": True}}
    assert sources.numbers_of(text, "means") == {"a": 1.0}
    assert sources.numbers_of({"means": 3}, "means") == {}


def test_the_texts_of_runs_are_those_that_have_numbers():
    two = [
        sources.RunFiles(folder=Path("run_2"), info={"a": {}, "b": {}}),
        sources.RunFiles(folder=Path("run_3"), info={"b": {}}, missing=("lost",)),
    ]
    assert story.texts_of(two) == ["a", "b"]
    with pytest.raises(ValueError, match=r"finished run; got run_9 \(lost\)"):
        story.texts_of([sources.RunFiles(folder=Path("run_9"), missing=("lost",))])


def test_an_ablation_run_adds_its_systems(runs_folder, tmp_path):
    [name] = json.loads((runs_folder / "run_3" / "final_info.json").read_text())
    systems = {"no memory": {"means": {"fve_mean": 0.5, "jaccard_mean": 0.1, "births_mean": 9}}}
    (tmp_path / "run_4").mkdir()
    (tmp_path / "run_4" / "final_info.json").write_text(json.dumps({name: {"systems": systems}}))
    read = [sources.read_run(p) for p in (runs_folder / "run_3", tmp_path / "run_4")]
    [text] = story.told(read, {})["texts"]
    assert {row["system"] for row in text["systems"]} == {"TSAE", "static SAE", "no memory"}
    assert "1 systems" in text["says"]["ablations"]
    said = {"no_memory": "the TSAE without memory", "tsae": "ours"}
    named = json.dumps({name: {"systems": systems, "about": said}})
    (tmp_path / "run_4" / "final_info.json").write_text(named)
    read[1] = sources.read_run(tmp_path / "run_4")
    [text] = story.told(read, {})["texts"]
    names = {row["system"] for row in text["systems"]}
    assert names == {"TSAE", "static SAE", "the TSAE without memory"}


# ---------------------------------------------------------------- bad input


def command(*words: object):
    return CliRunner().invoke(experiment.app, ["report", *map(str, words)])


def test_runs_without_models_are_told_without_an_explorer(runs_folder, tmp_path):
    copied(runs_folder, tmp_path, "run_2", "run_3")
    done = command(tmp_path / "run_2", tmp_path / "run_3")
    assert done.exit_code == 0, done.output
    html = (tmp_path / "report.html").read_text()
    assert "the explorer is left out" in html
    assert data_of(html)["texts"]
    assert explorers_of(html) == []


def test_run_3_alone_is_shown_with_the_models_beside_it(runs_folder, tmp_path):
    assert command(runs_folder / "run_3", f"--html={tmp_path / 'x.html'}").exit_code == 0
    html = (tmp_path / "x.html").read_text()
    assert len(explorers_of(html)) == 1
    assert data_of(html)["runs"] == ["run_3"]


def test_a_damaged_model_is_named_in_the_page(runs_folder, tmp_path):
    shutil.copytree(runs_folder / "run_2", tmp_path / "run_2")
    [weights] = tmp_path.rglob("seed_0/static/sae_weights.safetensors")
    weights.write_bytes(weights.read_bytes()[:-9])
    assert command(tmp_path / "run_2").exit_code == 0
    data = data_of((tmp_path / "report.html").read_text())
    assert any("explorer" in line and "static" in line for line in data["missing"])


@pytest.mark.parametrize("damage", ["", "{", "[1]", '{"a": 5}', '{"a": NaN}', "\udcff"])
def test_damaged_numbers_are_named_and_the_other_run_is_told(runs_folder, tmp_path, damage):
    copied(runs_folder, tmp_path, "run_2", "run_3")
    (tmp_path / "run_3" / "final_info.json").write_bytes(damage.encode("utf-8", "surrogateescape"))
    done = command(tmp_path / "run_2", tmp_path / "run_3")
    assert done.exit_code == 0, done.output
    data = data_of((tmp_path / "report.html").read_text())
    assert any("run_3/final_info.json" in line for line in data["missing"])
    assert data["texts"][0]["measures"]


def test_numbers_of_a_run_with_another_configuration_are_named_and_not_told(runs_folder, tmp_path):
    copied(runs_folder, tmp_path, "run_2", "run_3")
    shutil.copyfile(tmp_path / "run_2" / "final_info.json", tmp_path / "run_3" / "final_info.json")
    run = sources.read_run(tmp_path / "run_3")
    assert run.info == {}
    assert all("another config.json" in line for line in run.missing)
    assert sources.read_run(tmp_path / "run_2").missing == ()


def test_a_half_written_run_is_said_to_be_unfinished(runs_folder, tmp_path):
    copied(runs_folder, tmp_path, "run_2", "run_3")
    (tmp_path / "run_3" / "final_info.json").unlink()
    assert command(tmp_path / "run_3", tmp_path / "run_2").exit_code == 0
    data = data_of((tmp_path / "report.html").read_text())
    assert "run_3/final_info.json is missing: the run is not finished" in data["missing"]


def test_no_run_a_file_and_a_run_without_numbers_are_refused_in_a_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "there is no run_*" in error_line(command().output)
    (tmp_path / "file").write_text("")
    assert "file is none" in error_line(command("file").output)
    (tmp_path / "run_2").mkdir()
    done = command()
    assert done.exit_code == 1
    assert "needs a finished run" in error_line(done.output)
    assert not (tmp_path / "report.html").exists()
    reporting.report_beside(tmp_path / "run_2")  # at a run's end it is said, not raised


def test_a_run_of_a_version_with_other_keys_is_told_as_far_as_it_goes(runs_folder, tmp_path):
    copied(runs_folder, tmp_path, "run_2")
    path = tmp_path / "run_2" / "final_info.json"
    info = json.loads(path.read_text())
    [text] = info.values()
    text["means"] = {"fve_mean": 0.8, "renamed_mean": 2.0}
    del text["stderrs"], text["final_info_dict"], text["checksum"]
    path.write_text(json.dumps(info))
    reporting.write_report([tmp_path / "run_2"], tmp_path / "report.html")
    [told] = data_of((tmp_path / "report.html").read_text())["texts"]
    assert [row["key"] for row in told["measures"]] == ["fve"]
    assert "unknown number of seeds" in told["summary"][0]


def test_plot_py_writes_the_report_of_all_runs_beside_each_other(runs_folder):
    call = [sys.executable, str(toys.ROOT / "plot.py")]
    done = subprocess.run(call, capture_output=True, text=True, cwd=runs_folder, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "report.html: the report" in done.stderr
    html = (runs_folder / "report.html").read_text()
    assert data_of(html)["runs"] == ["run_2", "run_3"]
    assert len(explorers_of(html)) == 1
