import ast
import re
from pathlib import Path

import pytest

from tsae_lab import definitions, terminal
from tsae_lab.definitions import DEFINITIONS, definition, label
from tsae_lab.jobs import commands

ROOT = Path(__file__).resolve().parent.parent
VALUES = {"lag": "16", "after": "8", "tau": "64", "k": "5", "average": "pooled", "mode": "local"}
VALUES |= {"items": "agreement_attractor", "set": "blimp", "rule": "l1", "key": "fve"}
VALUES["task"] = "since_switch"
SAID = VALUES | {"items": "agreement, attractor", "task": "since, switch"}


def filled(pattern: str, values: dict[str, str] = VALUES) -> str:
    return re.sub(r"\{(\w+)\}", lambda match: values[match[1]], pattern)


def test_the_reference_is_what_the_definitions_give():
    assert (ROOT / "docs" / "MEASURES.md").read_text() == definitions.markdown()


@pytest.mark.parametrize("pattern", DEFINITIONS)
def test_a_key_finds_its_own_definition_with_every_blank_filled_under_every_prefix(pattern):
    measure = definition(filled(pattern))
    assert measure.label == filled(DEFINITIONS[pattern].label, SAID)
    assert measure.range == filled(DEFINITIONS[pattern].range)
    for prefix in definitions.PREFIXES:
        assert definition(prefix + filled(pattern)) == measure
        assert definitions.pattern_of(prefix + filled(pattern)) == pattern


def functions() -> set[str]:
    """`module.function` of the whole house, public and at top level."""
    return {
        f"{path.stem}.{node.name}"
        for path in (*ROOT.glob("*.py"), *(ROOT / "tsae_lab").rglob("*.py"))
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef)
    }


def test_every_source_is_a_function_of_the_house():
    named = {measure.source.partition("; ")[0] for measure in DEFINITIONS.values()}
    assert not named - functions()


def test_no_two_measures_have_one_label():
    labels = [label(filled(pattern)) for pattern in DEFINITIONS]
    assert len(set(labels)) == len(labels)


def test_labels_say_the_unit_once():
    assert label("delta_ce") == "delta CE, nats per token"
    assert label("restricted_mean_16") == "mean lifetime up to 16 tokens"
    assert (
        label("static_probe_agreement_object_RC_k10") == "probe: agreement, object RC, 10 features"
    )
    assert label("fve") == "FVE"


@pytest.mark.parametrize(
    "key", ["fvu", "tss_lag_", "tss_lag_x", "static_static_fve", "effect_both"]
)
def test_a_key_that_nothing_defines_is_refused(key):
    with pytest.raises(ValueError, match=key):
        definition(key)


def test_what_the_tables_show_is_defined():
    shown = (
        *terminal.RUN_MEASURES,
        *terminal.STUDY_MEASURES,
        *commands.STABILITY_MEASURES,
        *commands.LIFETIME_MEASURES,
    )
    assert all(label(key) for key in shown)
