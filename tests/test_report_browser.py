"""report.html in a real browser: nothing fails or is asked for, and what is clicked answers."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import toys
from toys import copied, data_of, explorers_of, unpacked
from typer.testing import CliRunner

import experiment
from tsae_lab import checksums, files
from tsae_lab.jobs import reporting

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium here (apt-get install chromium): the page is not tested"
)
WIDE, NARROW = (1280, 800), (400, 800)


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        options = ["--no-sandbox", "--disable-dev-shm-usage"]
        try:
            chromium = started.chromium.launch(executable_path=CHROMIUM, args=options)
        except playwright.Error as error:
            pytest.skip(f"{CHROMIUM} does not start here, the page is not tested: {error}")
        yield chromium
        chromium.close()


@pytest.fixture
def opened(browser):
    """Opens a file; at the end of the test nothing may have failed or been asked for."""
    contexts, trouble = [], []

    def open_file(path: Path, size=WIDE, scheme="light"):
        width, height = size
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme
        )
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: trouble.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: trouble.append(f"error: {error}"))
        page.on("dialog", lambda dialog: trouble.append(f"dialog: {dialog.message}"))
        page.on("request", lambda asked: trouble.append(f"request: {asked.url}")
                if not asked.url.startswith(("file:", "data:")) else None)  # fmt: skip
        page.goto(path.as_uri())
        page.wait_for_function("document.documentElement.dataset.ready")
        return page

    yield open_file
    for context in contexts:
        context.close()
    assert trouble == []


@pytest.fixture(scope="module")
def report(runs_folder, tmp_path_factory) -> Path:
    """The report of the toy's runs, with tables of transitions, probes and effects put to them."""
    home = tmp_path_factory.mktemp("browser")
    for name in ("run_2", "run_3"):
        shutil.copytree(runs_folder / name, home / name)
    [explored] = explorers_of((home / "run_3" / "report.html").read_text())
    a, b, c, *_ = unpacked(explored)["tsae.feature"].tolist()
    [folder] = (home / "run_3").glob("*/seed_0")
    head = "source,source_words,target,target_words,lag,count,lift,beyond_token_pairs\n"
    rows = [f"{a},<b>,{b},the,1,9,4.5,no\n", f"{b},the,{c},fox,3,5,30.5,yes\n"]
    tables = {
        "transitions_tsae": head + "".join(rows),
        "probe_weights": f"task,unit,model,feature,weight\nagreement,u,tsae,{b},-1.25\n",
        "number_features": f"model,rank,feature\nTSAE,2,{b}\n",
        "durations": f"model,mode,feature,lifetime,duration\nTSAE,local,{b},1.5,2.75\n",
        "effect_decay": f"model,mode,feature,kl_0,kl_1\nTSAE,local,{b},0.5,0.25\n",
        "effects": "model,edit,mode,offset,normalised,low,high\nTSAE,effect,local,-1,0.1,0,0.2\n"
        "TSAE,effect,local,-2,0.3,,\nTSAE,effect,local,subject to verb,0.5,0.4,0.6\n",
    }
    for name, text in tables.items():
        (folder / f"{name}.csv").write_text(text)
    section = checksums.read_sealed(folder / "transitions.json")
    own = files.size_and_crc(folder / "transitions_tsae.csv")
    section[checksums.TABLES]["transitions_tsae.csv"] = own
    checksums.write_sealed(folder / "transitions.json", section)
    reporting.write_report([home / "run_2", home / "run_3"], home / "report.html")
    return home / "report.html"


@pytest.fixture(scope="module")
def contents(report) -> tuple[dict, dict, dict]:
    """The page's data, its explorer, and the explorer's arrays."""
    html = report.read_text()
    [explored] = explorers_of(html)
    return data_of(html), explored, unpacked(explored)


def value_at(arrays: dict, slug: str, token: int, feature: int) -> float:
    """Of a feature at a token of the sample."""
    row = arrays[f"{slug}.idx"][token].tolist()
    if feature not in row:
        return 0.0
    at = token, row.index(feature)
    return max(float(arrays[f"{slug}.pre"][at]), 0.0) * float(arrays[f"{slug}.gate"][at])


def picked(page, slug: str) -> str:
    return page.inner_text(f".model.{slug} .card h4")


@pytest.mark.parametrize("size", [WIDE, NARROW])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_its_window_and_every_drawing_has_its_words(opened, report, size, scheme):
    page = opened(report, size, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
    for drawing in page.query_selector_all("svg"):
        assert drawing.get_attribute("aria-label") or drawing.get_attribute("aria-hidden")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == {
        "light": "rgb(251, 250, 247)", "dark": "rgb(19, 22, 26)"
    }[scheme]  # fmt: skip
    for field in page.query_selector_all("input, select"):
        assert field.evaluate("e => Boolean(e.labels?.length || e.getAttribute('aria-label'))")


def test_on_paper_the_page_is_black_on_white_and_has_nothing_to_click(opened, report):
    page = opened(report, WIDE, "dark")
    page.emulate_media(media="print")
    white = "rgb(255, 255, 255)"
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == white
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
    assert not page.locator(".controls:visible, .table-tools:visible, .top:visible").count()
    lane = page.locator(".lane").first
    assert lane.evaluate("e => getComputedStyle(e).overflowX") == "hidden"
    assert page.locator(".words").first.evaluate("e => e.scrollHeight <= e.clientHeight + 1")


def test_a_table_sorts_by_a_click_and_filters_by_words(opened, report, contents):
    page = opened(report)
    data, *_ = contents
    rows = [row for row in data["texts"][0]["measures"] if row["tsae"] is not None]
    by_value = sorted(rows, key=lambda row: -row["tsae"])
    names = "#table-measures tbody tr td:first-child a"
    page.click("#table-measures th:has-text('TSAE') >> nth=1")
    page.click("#table-measures th button:text-matches('^TSAE')")
    shown = page.locator(names).all_inner_texts()
    direction = page.get_attribute("#table-measures th[aria-sort$=ending]", "aria-sort")
    expected = by_value if direction == "descending" else by_value[::-1]
    assert shown == [row["label"] for row in expected[: len(shown)]]
    page.fill("#table-measures input[type=search]", "jaccard")
    texts = page.locator("#table-measures tbody tr").all_inner_texts()
    assert texts
    assert all("Jaccard" in text for text in texts)
    target = page.get_attribute(names, "href")
    assert page.locator(f"[id='{target[1:]}']").count() == 1


def test_the_words_of_a_document_are_coloured_by_the_feature_that_is_picked(
    opened, report, contents
):
    page = opened(report)
    _, explored, arrays = contents
    second = explored["models"][0]["timelines"][1]
    page.select_option("#document", "1")
    words = [explored["words"][i] for i in arrays["tokens"][second["slots"]]]
    begin = len(explored["models"][0]["timelines"][0]["slots"])
    feature = int(arrays["static.idx"][begin][0])
    page.fill("#feature", str(feature))
    page.press("#feature", "Enter")
    for slug in ("static", "tsae"):
        spans = page.locator(f".model.{slug} .words .w")
        assert [w.replace("↵", "\n") for w in spans.all_inner_texts()] == words
        values = [value_at(arrays, slug, begin + i, feature) for i in range(len(words))]
        lit = [i for i, value in enumerate(values) if value > 0]
        on = page.locator(f".model.{slug} .words .w.on")
        assert [int(one.get_attribute("data-t")) for one in on.all()] == lit
        assert f"Feature {feature}" in picked(page, slug)
        if lit:
            on.first.hover()
            tip = page.inner_text("#tip")
            assert "pre-activation" in tip
            assert ("memory added" in tip) == ("gate" in tip) == (slug == "tsae")
            said = float(tip.splitlines()[tip.splitlines().index("value") + 1])
            assert said == pytest.approx(values[lit[0]], rel=6e-3, abs=6e-4)


def test_births_and_deaths_are_those_of_a_loop_over_the_tokens(opened, report, contents):
    page = opened(report)
    _, explored, arrays = contents
    for model in explored["models"]:
        line, births, deaths = model["timelines"][0], 0, 0
        rows = [int(page.input_value("#feature")), *line["leading"]]
        for feature in dict.fromkeys(rows):
            on = [
                value_at(arrays, model["slug"], t, feature) > 0 for t in range(len(line["slots"]))
            ]
            for t, now in enumerate(on):
                opens = t == 0 or t in line["seams"]
                births += now and (line["index"][t] == 0 if opens else not on[t - 1])
                deaths += not opens and on[t - 1] and not now
        drawn = page.locator(f".model.{model['slug']} .timeline")
        assert int(drawn.get_attribute("data-births")) == births
        assert int(drawn.get_attribute("data-deaths")) == deaths
        assert drawn.locator(".birth").count() == births


def test_keys_move_the_token_and_search_and_a_click_in_the_timeline_picks(opened, report):
    page = opened(report)
    page.locator(".words").first.focus()
    before = int(page.locator(".words .here").first.get_attribute("data-t"))
    page.keyboard.press("ArrowRight")
    here = page.locator(".words .here")
    assert here.count() == 2  # the same word under both models
    assert {one.get_attribute("data-t") for one in here.all()} == {str(before + 1)}
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "search"
    page.keyboard.type("script>alert")
    page.wait_for_selector("#results button, #results .none")
    page.fill("#search", "fo")
    if page.locator("#results button").count():
        said = page.locator("#results button").first.inner_text()
        page.press("#search", "Enter")
        number = said.split()[0]
        assert page.input_value("#feature") == number
    names = page.locator(".model.tsae .timeline .names button")
    chosen = names.nth(1).locator(".num").inner_text()
    names.nth(1).click()
    assert f"Feature {chosen}" in picked(page, "tsae")
    heat = page.locator(".model.tsae .heat").last
    heat.scroll_into_view_if_needed()
    feature = heat.get_attribute("data-f")
    heat.click(force=True)
    assert f"Feature {feature}" in picked(page, "tsae")


def test_a_feature_that_is_not_alive_says_so(opened, report, contents):
    page = opened(report)
    _, explored, arrays = contents
    model = next(one for one in explored["models"] if one["slug"] == "tsae")
    dead = sorted(set(range(model["d_sae"])) - set(arrays["tsae.feature"].tolist()))
    for number, said in ((dead[0] if dead else None, "not alive"), (99_999, "There is no feature")):
        if number is not None:
            page.fill("#feature", str(number))
            page.press("#feature", "Enter")
            assert said in page.inner_text(".model.tsae .card")


def test_the_graph_filters_and_a_click_opens_the_feature(opened, report, contents):
    page = opened(report)
    _, _, arrays = contents
    a, b, c, *_ = arrays["tsae.feature"].tolist()
    edges, nodes = page.locator(".graph .edge"), page.locator(".graph .node")
    assert (edges.count(), nodes.count()) == (2, 3)
    assert page.locator(".graph .edge.beyond").count() == 1
    assert f"{a} <b>" in nodes.all_text_contents()
    page.check("#beyond")
    assert edges.count() == 1
    page.uncheck("#beyond")
    page.locator("input[aria-label='Lag at most']").fill("1")
    assert edges.count() == 1
    before = page.get_attribute(".graph svg > g", "transform")
    page.click("button[aria-label='zoom in']")
    assert page.get_attribute(".graph svg > g", "transform") != before
    page.locator(f".graph .node[data-f='{b}']").click()
    assert page.input_value("#feature") == str(b)
    links = page.inner_text(".model.tsae .duo")
    assert f"{a} <b>" in links
    assert "token pairs explain it" in links
    assert "beyond token pairs" in links
    page.click(f".model.tsae .duo button:has-text('{c} ')")
    assert page.input_value("#feature") == str(c)


def test_a_card_has_the_features_probe_weights_and_its_causal_effects(opened, report, contents):
    page = opened(report)
    _, _, arrays = contents
    _, b, c, *_ = arrays["tsae.feature"].tolist()
    page.fill("#feature", str(b))
    page.press("#feature", "Enter")
    card = page.locator(".model.tsae .card")
    text = card.text_content()
    assert "agreement (u): -1.25" in text.replace("\u2212", "-")
    assert "number 2 of the features" in text
    assert "lasts 2.75 tokens" in text
    page.wait_for_function("document.querySelectorAll('.model.tsae .card .chart svg').length === 5")
    assert "Causal effect" not in page.inner_text(".model.static .card")
    page.fill("#feature", str(c))
    page.press("#feature", "Enter")
    assert "Causal effect" not in card.text_content()


def test_a_run_without_sections_or_with_one_seed_is_told_without_an_error(
    opened, runs_folder, tmp_path
):
    copied(runs_folder, tmp_path, "run_2", "run_3")
    for name in ("stability_by_lag", "survival", "transitions_static", "transitions_tsae"):
        for path in tmp_path.rglob(f"{name}.csv"):
            path.unlink()
    path = tmp_path / "run_3" / "final_info.json"
    [(text, numbers)] = json.loads(path.read_text()).items()
    del numbers["checksum"]
    seeds = {key: values[:1] for key, values in numbers["final_info_dict"].items()}
    alone = {"means": {f"{key}_mean": values[0] for key, values in seeds.items()}}
    alone |= {"stderrs": {f"{key}_stderr": None for key in seeds}, "final_info_dict": seeds}
    path.write_text(json.dumps({text: numbers | alone}))
    reporting.write_report([tmp_path / "run_2", tmp_path / "run_3"], tmp_path / "report.html")
    page = opened(tmp_path / "report.html", NARROW)
    assert "Not measured." in page.inner_text("#stability-body")
    assert "Not measured." in page.inner_text("#transitions-body")
    assert "no run_4" in page.inner_text("#ablations")
    assert "one seed" in page.inner_text("#table-measures thead")


def test_an_ablation_run_is_drawn_and_listed(opened, runs_folder, tmp_path):
    copied(runs_folder, tmp_path, "run_3")
    [text] = json.loads((tmp_path / "run_3" / "final_info.json").read_text())
    systems = {
        name: {"means": {"fve_mean": 0.5 + i / 50, "jaccard_mean": i / 20, "births_mean": i}}
        for i, name in enumerate(("T-SAE", "TFA", "<b>no memory</b>"))
    }
    (tmp_path / "run_4").mkdir()
    (tmp_path / "run_4" / "final_info.json").write_text(json.dumps({text: {"systems": systems}}))
    reporting.write_report([tmp_path / "run_3", tmp_path / "run_4"], tmp_path / "report.html")
    page = opened(tmp_path / "report.html")
    for name in systems:
        assert name in page.locator("#chart-stability .name").all_text_contents()
        assert name in page.inner_text("#ablations-body table")


def test_evolution_writes_a_page_for_a_sentence_of_ones_own(opened, runs_folder, tmp_path):
    [model] = (runs_folder / "run_2").glob("*/seed_0")
    out = tmp_path / "mine.html"
    text = "the quick <b>fox</b> jumps"
    words = ["evolution", str(model), f"--text={text}", f"--html={out}"]
    done = CliRunner().invoke(experiment.app, words)
    assert done.exit_code == 0, done.output
    page = opened(out)
    assert page.locator(".model").count() == 2
    line = "".join(page.locator(".model.tsae .words .w").all_inner_texts())
    assert line == text
    assert page.locator(".model.tsae .words .w.on").count() > 0
    assert page.locator("#measures").count() == 0
    for slug in ("static", "tsae"):
        assert np.isfinite(page.locator(f".model.{slug} .heat").count())
    bad = [*words[:-1], f"--html={tmp_path / 'none' / 'x.html'}"]
    assert "there is no folder" in toys.error_line(CliRunner().invoke(experiment.app, bad).output)
