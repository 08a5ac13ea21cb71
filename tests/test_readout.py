"""Read-out: the state is carried, what comes later changes nothing; on the real model, layer 0 is
at chance.
"""

import csv
import json
import math
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
import torch
from sklearn.linear_model import LogisticRegression
from toys import HOOK, save_saes, store_of
from typer.testing import CliRunner

import experiment
import metrics
import probes
import tsae
from probes import Item
from tsae_lab import files
from tsae_lab.data import language_model, tasks
from tsae_lab.measures import readout
from tsae_lab.sections import probing
from tsae_lab.sections.context import Context, Subject

TEXTS = (
    "the quick brown fox",
    "lazy dogs jump over it",
    "a",
    "the fox and the dogs",
    "quick quick quick",
)


def item(text: str, word: str = "", **rest: object) -> Item:
    begin = text.rindex(word) if word else text.rindex(text.split()[-1])
    made = {"unit": "u", "label": 0, "group": text} | rest
    return Item(text=text, begin=begin, end=begin + len(word or text.split()[-1]), **made)


@pytest.fixture(scope="module")
def params() -> tsae.Params:
    """A TSAE whose LSTMs, gates and bridge all act."""
    generator = torch.Generator().manual_seed(0)
    static = tsae.init_static(torch.zeros(24), 40, generator=generator)
    fresh = tsae.from_static(static, scale=1.0, hidden_enc=6, hidden_dec=7, generator=generator)
    changed = {
        "W_gate": torch.randn(40, 6, generator=generator),
        "W_out": torch.randn(7, 24, generator=generator),
    }
    return replace(fresh, temporal=replace(fresh.temporal, **changed))


DIALS = tsae.Dials(k=4, window=3)


def steps(lm: language_model.LanguageModel, text: str) -> torch.Tensor:
    """The residual stream at every token of a text, by a plain forward pass of its own."""
    ids = torch.tensor([[*lm.prefix, *lm.tokenizer(text, add_special_tokens=False)["input_ids"]]])
    return lm.model(ids, output_hidden_states=True).hidden_states[2][:, len(lm.prefix) :].detach()


def dense(features: probes.Features) -> np.ndarray:
    return features if isinstance(features, np.ndarray) else features.toarray()


def read_out(lm, hook, items, readers) -> dict[str, probes.Features]:
    return readout.features(readout.read(lm, hook, items), readers)


def test_the_residual_stream_is_that_of_the_hugging_face_model(lm):
    ids = torch.tensor([[*lm.prefix, 5, 6, 7]])
    expected = lm.model(ids, output_hidden_states=True).hidden_states
    torch.testing.assert_close(language_model.residual(lm, ids, HOOK), expected[2])
    torch.testing.assert_close(
        language_model.residual(lm, ids, "blocks.0.hook_resid_post"), expected[1]
    )


def test_codes_are_those_of_a_stream_that_reads_the_text_token_by_token(lm, params):
    items = [item(text) for text in TEXTS]
    wanted = {
        "tsae": readout.code_reader(tsae.Sae(params=params, dials=DIALS)),
        "memory": readout.memory_reader(params.static, DIALS),
    }
    wanted |= {
        "static": readout.code_reader(tsae.static_sae(params.static, 4)),
        "state": readout.state_reader(params, DIALS),
    }
    found = read_out(lm, HOOK, items, wanted)
    for row, text in enumerate(TEXTS):
        state, history = tsae.start_state(params, 1, DIALS), []
        codes = static = tsae.Codes(torch.zeros(1, 1, 4), torch.zeros(1, 1, 4, dtype=torch.int64))
        for x in steps(lm, text).split(1, dim=1):
            _, codes, state = tsae.forward(params, x, DIALS, state)
            static = tsae.encode_static(x, params.static, 4)
            history.append(tsae.dense(static, 40)[0, 0])
        memory = torch.zeros(40)
        for lag, past in enumerate(reversed(history[:-1][-3:]), 1):
            memory += (
                past * math.exp(-lag / DIALS.tau) / sum(math.exp(-j / DIALS.tau) for j in (1, 2, 3))
            )
        expected = {
            "tsae": tsae.dense(codes, 40)[0, 0],
            "static": tsae.dense(static, 40)[0, 0],
            "memory": memory,
        }
        expected |= {"state": torch.cat([state.enc_h, state.dec_h], 1)[0]}
        for name, value in expected.items():
            np.testing.assert_allclose(
                dense(found[name])[row], value.numpy(), atol=1e-4, err_msg=f"{name}, {text}"
            )


def test_what_comes_after_the_word_and_the_company_it_is_read_in_change_nothing(lm, params):
    wanted = {
        "tsae": readout.code_reader(tsae.Sae(params=params, dials=DIALS)),
        "resid": readout.residual_reader(),
    }
    together = read_out(lm, HOOK, [item(text) for text in TEXTS], wanted)
    longer = read_out(lm, HOOK, [item(f"{TEXTS[0]} and more of it", "fox")], wanted)
    alone = read_out(lm, HOOK, [item(TEXTS[0])], wanted)
    for name in wanted:
        np.testing.assert_allclose(dense(together[name])[0], dense(alone[name])[0], atol=1e-5)
        np.testing.assert_allclose(dense(longer[name]), dense(alone[name]), atol=1e-5)


def test_a_stream_remembers_what_a_static_code_cannot_know(params):
    """Same last activation, another past: the static code is the same, the memory and the TSAE's
    code are not.
    """
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(1, 5, 24, generator=generator).repeat(2, 1, 1)
    x[1, 2] = torch.randn(24, generator=generator) * 3
    static, memory = (
        readout.code_reader(tsae.static_sae(params.static, 4)),
        readout.memory_reader(params.static, DIALS),
    )
    np.testing.assert_allclose(
        *dense(static(x)), atol=1e-5
    )  # two rows of one product may differ by an ulp
    assert np.abs(np.subtract(*dense(memory(x)))).max() > 0.1
    both = readout.joined(static, memory)(x)
    np.testing.assert_allclose(
        dense(both), np.hstack([dense(static(x)), dense(memory(x))]), atol=1e-5
    )


def test_readers_name_the_codes_of_both_saes_and_what_the_tsae_carries_along(params):
    ours, static = tsae.Sae(params=params, dials=DIALS), tsae.static_sae(params.static, 4)
    x = torch.randn(3, 6, 24, generator=torch.Generator().manual_seed(4))
    values = {
        name: dense(reader(x))
        for name, reader in readout.readers(static, ours, variants=True).items()
    }
    acts, _ = tsae.encode(params, x, DIALS)
    own = tsae.dense(acts, 40)[:, -1].numpy()
    past = tsae.dense(tsae.encode_static(x, params.static, 4), 40)[:, -4:-1].mean(1).numpy()
    np.testing.assert_allclose(values["tsae"], own, atol=1e-5)
    np.testing.assert_allclose(values["resid"], x[:, -1].numpy())
    for name in ("window", "static window"):
        np.testing.assert_allclose(values[name], past, atol=1e-5)
    np.testing.assert_allclose(values["tsae+window"], np.hstack([own, past]), atol=1e-5)
    for name in ("tsae+memory", "tsae+window"):
        assert np.array_equal(values[name][:, 40:], values[name.removeprefix("tsae+")])
    assert list(readout.readers(static, ours)) == ["tsae", "static", "resid"]
    assert list(readout.readers(static, None, variants=True)) == ["static", "resid"]


def test_probe_rows_are_the_rows_of_each_task_with_layer_0_where_it_is_wanted(lm):
    items = [item(f"{noun} w{i} runs", unit="u", label=i % 2, group=noun) for i, noun in
             enumerate(("fox", "dog", "cat", "hen") * 4)]  # fmt: skip
    tasks = [probes.Task(name=name, items=tuple(items), n_folds=2) for name in ("one", "two")]
    reads, readers = readout.read_tasks(lm, HOOK, tasks), {"resid": readout.residual_reader()}
    calls = []
    rows = readout.probe_rows(tasks, reads, readers, ks=(1,), progress=lambda: calls.append(1))
    expected = [
        row
        for task in tasks
        for row in probes.task_rows(task, read_out(lm, HOOK, task.items, readers), ks=(1,))
    ]
    assert rows == expected
    assert {row["model"] for row in rows} == {"resid", "embedding"}
    without = readout.probe_rows(tasks, reads, readers, ks=(1,), embedding=False)
    assert without == [row for row in rows if row["model"] == "resid"]
    assert calls


def test_a_probes_weights_are_those_of_a_regression_on_the_features_that_it_chose():
    generator = np.random.default_rng(0)
    values = generator.random((40, 6)) * [1, 1, 1, 9, 1, 1]
    labels = np.arange(40) % 2
    values[:, 2] += 0.8 * labels
    values[20:, 4] -= 2.0 * labels[20:]  # the other unit's
    items = [
        item(f"w{i} runs", unit="ab"[i >= 20], label=int(labels[i]), group=str(i))
        for i in range(40)
    ]
    task = probes.Task(name="toy", items=tuple(items))
    codes = {"dense": values, "sparse": scipy.sparse.csr_array(values)}
    rows = readout.weight_rows(task, codes, k=2)
    assert len(rows) == 2 * 2 * 2
    by_model = {name: [row for row in rows if row["model"] == name] for name in codes}
    for one, other in zip(*by_model.values(), strict=True):
        assert (one["unit"], one["feature"]) == (other["unit"], other["feature"])
        assert one["weight"] == pytest.approx(other["weight"], rel=1e-3)
    for unit, part, leading in (("a", slice(20), 2), ("b", slice(20, 40), 4)):
        own = {r["feature"]: r["weight"] for r in by_model["dense"] if r["unit"] == unit}
        columns = list(probes.chosen(values[part], labels[part], 2))
        assert leading in own
        assert list(own) == columns
        scaled = values[part][:, columns] / np.sqrt((values[part][:, columns] ** 2).mean(0))
        means = [scaled[labels[part] == label].mean(0) for label in (1, 0)]
        assert np.sign(own[leading]) == np.sign((means[0] - means[1])[columns.index(leading)])
        fitted = LogisticRegression(max_iter=1_000).fit(scaled, labels[part])
        assert list(own.values()) == pytest.approx(fitted.coef_[0])


def test_the_probing_section_reads_a_task_once_per_seed_and_each_code_once_per_text(
    lm, params, monkeypatch
):
    items = [item(f"{noun} w{i} runs", label=i % 2, group=noun) for i, noun in
             enumerate(("fox", "dog", "cat", "hen") * 2)]  # fmt: skip
    probed = [probes.Task(name=name, items=tuple(items[n:]), n_folds=2)
              for n, name in enumerate(("one", "two"))]  # fmt: skip
    read, readers, read_items, n_texts = readout.read, readout.readers, [], Counter()

    def counted_read(lm, hook, items):
        read_items.append(items)
        return read(lm, hook, items)

    def counted(name, reader):
        def counting(x):
            n_texts[name] += len(x)
            return reader(x)

        return counting

    monkeypatch.setattr(probing, "PROBE_KS", (1,))
    monkeypatch.setattr(tasks, "all_tasks", lambda **_: probed)
    monkeypatch.setattr(readout, "read", counted_read)
    monkeypatch.setattr(
        readout, "readers", lambda *saes: {n: counted(n, r) for n, r in readers(*saes).items()}
    )
    held = store_of(torch.zeros(1, 2, 24), torch.ones(1, 2, dtype=torch.bool))
    codes = metrics.codes_from_dense(torch.ones(1, 2, 40))
    subjects = [
        Subject(name=name, prefix=prefix, sae=sae, codes=codes, fve=0.0)
        for name, prefix, sae in (
            ("TSAE", "", tsae.Sae(params=params, dials=DIALS)),
            ("static SAE", "static_", tsae.static_sae(params.static, 4)),
        )
    ]
    for text in ("first", "second"):
        context = Context(dataset=text, seed=0, long=False, lm=lm, store=held, words={},
                          subjects=tuple(subjects), share=0.017)  # fmt: skip
        probing.probing_section(context)
        assert read_items == [task.items for task in probed]
        n = sum(len(task.items) for task in probed) * (1 + (text == "second"))
        assert n_texts == {"tsae": n, "static": n}


def test_two_texts_are_read_as_the_difference_of_their_features(lm, params):
    wanted = {
        "tsae": readout.code_reader(tsae.Sae(params=params, dials=DIALS)),
        "resid": readout.residual_reader(),
    }
    first, second = (read_out(lm, HOOK, [item(text)], wanted) for text in TEXTS[:2])
    one = item(TEXTS[0], other=(TEXTS[1], 20, len(TEXTS[1])))
    found = read_out(lm, HOOK, [one], wanted)
    for name in found:
        np.testing.assert_allclose(
            dense(found[name]), np.abs(dense(first[name]) - dense(second[name])), atol=1e-5
        )
    with pytest.raises(ValueError, match="1 of 2 items have a second text"):
        read_out(lm, HOOK, [one, item(TEXTS[1])], wanted)


def test_bad_input_to_read_out_is_refused(lm):
    with pytest.raises(ValueError, match="at least one item"):
        read_out(lm, HOOK, [], {})
    with pytest.raises(
        ValueError, match=r"reads 1 to 30 tokens of text; an item has \d+: 'fox fox"
    ):
        read_out(lm, HOOK, [item("fox " * 40)], {})
    with pytest.raises(ValueError, match="unknown hook"):
        read_out(lm, "blocks.9.hook_resid_post", [item("fox")], {})
    with pytest.raises(ValueError, match="'embedding' is the name of layer 0"):
        read_out(lm, HOOK, [item("fox")], {"embedding": readout.residual_reader()})


# ------------------------------------------------------------------------------------------ command


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory, lm_folder, params) -> Path:
    return save_saes(tmp_path_factory.mktemp("seed_0"), params, DIALS, lm_folder)


def linzen(path: Path) -> Path:
    rows = [
        {
            "tokens": ["the", noun + "s" * n, f"w{i}", "runs"],
            "verb_index": 3,
            "attractors": 0,
            "subject": noun,
        }
        | dict(zip(("good", "bad"), (("runs", "run"), ("run", "runs"))[n], strict=True))
        for i, noun in enumerate(("fox", "dog", "cat", "hen", "cow", "ape"))
        for n in (0, 1)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_command_prints_a_table_and_writes_its_files(model_dir, tmp_path):
    out = {name: tmp_path / f"out.{name}" for name in ("json", "csv", "png")}
    options = [f"--{name}={path}" for name, path in out.items()]
    call = [
        "probe",
        str(linzen(tmp_path / "a.jsonl")),
        str(model_dir),
        "--k=1",
        "--k=5",
        "--variants",
        *options,
    ]
    done = CliRunner().invoke(experiment.app, call)
    assert done.exit_code == 0, done.output
    assert re.search(r"│ all +│ +5 │.*│ [01]\.\d{3} ± \d\.\d{3} \([01]\.\d\d to ", done.output)
    held = json.loads(out["json"].read_text())
    with out["csv"].open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(held["rows"])
    assert float(lines[-1]["accuracy"]) == held["rows"][-1]["accuracy"]
    assert {"probe_a.jsonl_k5", "static_probe_a.jsonl_k5", "resid_probe_a.jsonl"} <= held[
        "numbers"
    ].keys()
    assert {"majority_probe_a.jsonl", "words_probe_a.jsonl"} <= held["numbers"].keys()
    assert "warning" not in held
    assert out["png"].read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            ["nothing", "MODEL"],
            "nothing is neither a file, nor a dataset's name (owner/dataset), nor one of agreement",
        ),
        (["agreement", "EMPTY"], "holds no model: there is no cfg.json"),
        (["agreement", "MODEL", "--k=0"], "--k needs to be at least 1; got 0"),
        (
            ["agreement", "MODEL", "--json=EMPTY/no/x.json"],
            "x.json cannot be written: there is no folder",
        ),
    ],
)
def test_the_command_refuses_bad_input_in_one_line(model_dir, tmp_path, given, said, capfd):
    call = [part.replace("MODEL", str(model_dir)).replace("EMPTY", str(tmp_path)) for part in given]
    done = CliRunner().invoke(experiment.app, ["probe", *call])
    assert done.exit_code == 1
    text = " ".join((done.output + capfd.readouterr().err).split())
    assert said in text


# --------------------------------------------------------------------------------------- real model


@pytest.fixture(scope="module")
def smollm() -> language_model.LanguageModel:
    wheel = files.WHEELS[language_model.EMBEDDED]
    if not (files.cache_dir() / f"{language_model.EMBEDDED}-{wheel.version}").is_dir():
        pytest.skip("the language model is not in the cache")
    return language_model.load_lm()


def part(name: str) -> list[Item]:
    """A third of a generator's items: whole groups, so that twins stay together."""
    items = tasks.GENERATORS[name](seed=0)
    units = {
        "agreement": ("PP", "object RC"),
        "disambiguation": ("bank", "bat", "seal", "pen", "ring", "court"),
        "agreement_long": ("PP",),
        "disambiguation_long": tuple(sorted({one.unit for one in items})[:3]),
    }
    return [one for one in items if one.unit in units.get(name, (one.unit,))]


@pytest.mark.parametrize("name", ["agreement_long", "coreference_long", "disambiguation_long"])
def test_in_the_long_variants_the_deciding_word_is_outside_a_window_of_16_tokens(smollm, name):
    window = tsae.Dials(k=1).window
    for one in tasks.GENERATORS[name](seed=0):
        words = one.text.split()
        before = " ".join(words[: len(words) - one.distance])  # ends with the deciding word
        ids, begun = (language_model.token_ids(smollm, text) for text in (one.text, before))
        assert ids[: len(begun)] == begun  # so that tokens can be counted back
        assert window < len(ids) - len(begun) < 80


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("agreement", 0.9),
        ("coreference", 0.8),
        ("disambiguation", 0.85),
        ("unresolvable", 0.0),
        ("agreement_long", 0.8),
        ("coreference_long", 0.62),
        ("disambiguation_long", 0.7),
    ],
)
def test_on_the_real_model_layer_0_is_at_chance_and_the_default_hook_is_not(smollm, name, least):
    items = part(name)
    found = read_out(
        smollm, "blocks.14.hook_resid_post", items, {"resid": readout.residual_reader()}
    )
    few = {"n_folds": 4, "few": True} if name.startswith("disambiguation") else {}
    values = {
        key: probes.scores(found[key], items, k=None, **few).mean()
        for key in ("embedding", "resid")
    }
    assert 0.45 <= values["embedding"] <= 0.55
    if name == "unresolvable":
        assert 0.45 <= values["resid"] <= 0.55
    else:
        assert values["resid"] >= least


def test_the_tasks_of_run_3_are_the_three_their_control_and_their_long_variants():
    given = tasks.all_tasks()
    assert all(a.items != b.items for a, b in zip(given, tasks.all_tasks(seed=1), strict=True))
    assert [task.name for task in given] == [
        "agreement",
        "coreference",
        "disambiguation",
        "unresolvable",
        "agreement_long",
        "coreference_long",
        "disambiguation_long",
    ]
    assert [task.few for task in given] == [False, False, True, False, False, False, True]


@pytest.mark.parametrize("share", [0.02, 0.3])
def test_a_share_of_the_tasks_keeps_whole_groups_of_every_unit_and_both_classes(share):
    for whole, task in zip(tasks.all_tasks(), tasks.all_tasks(share=share), strict=True):
        kept = set(task.items)
        groups = {(item.unit, item.group) for item in kept}
        assert [item for item in whole.items if (item.unit, item.group) in groups] == list(
            task.items
        )
        n_units, of = (len({item.unit for item in t.items}) for t in (task, whole))
        assert n_units == (max(1, round(share * of)) if task.few else of)
        for unit in {item.unit for item in kept}:
            ours = [item for item in kept if item.unit == unit]
            assert {item.label for item in ours} == {0, 1}
            n_groups, n = (
                len({i.group for i in items if i.unit == unit}) for items in (kept, whole.items)
            )
            assert n_groups == (n if task.few else max(2 * task.n_folds, round(share * n)))
    assert [len(t.items) for t in tasks.all_tasks(share=share)] == [
        len(t.items) for t in tasks.all_tasks(share=share)
    ]
