"""What the page says: five sentences per text, one per section, the systems and the tables.

Every sentence is filled with numbers of the runs; a number that a run does not have is said to be
missing. Differences are TSAE minus static SAE; their intervals are over seeds (Student's t) where
there are several, else over documents of seed 0 where run_3 has one.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scipy import stats

from tsae_lab import definitions
from tsae_lab.report.sources import RunFiles, numbers_of, read_tables, systems

TOLD_SECTIONS = ("stability", "lifetimes", "transitions", "probes", "interventions", "ablations")
PREFIXED = tuple(definitions.PREFIXES)
NOT_SURE = "with no sure difference"


def told(
    runs: Sequence[RunFiles], folders: Mapping[str, str], notes: Iterable[str] = ()
) -> dict[str, Any]:
    """All that the page says but its explorers. `folders`: a text's folder in a run, by text.

    Runs are in the order run_0 .. run_4; of a measure that two have the later one's counts. Raises
    ValueError where no run has a number.
    """
    names, texts = texts_of(runs), []
    missing = [line for run in runs for line in run.missing]
    for name in names:
        text, absent = _text(name, runs, folders.get(name, name))
        texts.append(text)
        missing += absent
    return {
        "title": "Temporal sparse autoencoders: report",
        "runs": [run.name for run in runs],
        "setting": _setting(runs),
        "missing": [*dict.fromkeys([*missing, *notes])],
        "texts": texts,
        "definitions": _definitions(texts),
    }


def texts_of(runs: Sequence[RunFiles]) -> list[str]:
    """The texts that these runs have numbers of; ValueError where there are none."""
    names = [*dict.fromkeys(text for run in runs for text in run.info)]
    if not names:
        where = ", ".join(str(run.folder) for run in runs) or "nothing"
        missing = "; ".join(line for run in runs for line in run.missing)
        raise ValueError(f"a report needs a finished run; got {where} ({missing or 'no numbers'})")
    return names


def untold(title: str) -> dict[str, Any]:
    """What a page says that has explorers alone."""
    nothing = {"runs": [], "missing": [], "texts": [], "definitions": [], "setting": {}}
    return {"title": title, **nothing}


def _text(name: str, runs: Sequence[RunFiles], folder: str) -> tuple[dict[str, Any], list[str]]:
    """One text: numbers, sentences, systems, tables; and what is missing of it."""
    numbers: dict[str, Any] = {}
    for run in runs:
        if run.name != "run_4":
            numbers |= run.info.get(name, {})
    tables: dict[str, list[dict[str, Any]]] = {}
    missing = []
    for run in runs:
        own, absent = read_tables(run.folder / folder / "seed_0")
        tables |= own
        missing += absent
    measured = {"numbers": numbers, "tables": tables, "systems": _system_rows(name, runs)}
    return {
        "name": name,
        "n_seeds": n_seeds(numbers),
        "measures": measure_rows(numbers),
        "summary": summary_of(name, numbers, _setting(runs)),
        "says": says(measured),
        "systems": measured["systems"],
        "tables": {table: by_column(rows) for table, rows in tables.items()},
    }, missing


def _setting(runs: Sequence[RunFiles]) -> dict[str, Any]:
    """Options of the last run that says them."""
    return next((run.config for run in reversed(runs) if run.config), {})


def _system_rows(text: str, runs: Sequence[RunFiles]) -> list[dict[str, Any]]:
    """One row per system that was measured on the text: its name, run, means, standard errors."""
    rows = {}
    for run in runs:
        for of_text, system, means, errors in systems(run):
            if of_text != text:
                continue
            name = (
                f"{system} after phase (a)" if (run.name, system) == ("run_1", "TSAE") else system
            )
            rows[name] = {"system": name, "run": run.name, "means": means, "stderrs": errors}
    return list(rows.values())


def by_column(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """A table by column, which is shorter than by row."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


# ------------------------------------------------------------------------------------- the measures


def n_seeds(text: Mapping[str, Any]) -> int:
    """Seeds that a text was measured with."""
    values = text.get("final_info_dict")
    lists = values.values() if isinstance(values, dict) else ()
    return max((len(seeds) for seeds in lists if isinstance(seeds, list)), default=0)


def measure_rows(text: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per measure: static SAE, TSAE and their difference, with errors and intervals."""
    means, errors = numbers_of(text, "means"), numbers_of(text, "stderrs")
    rows, reported = [], text.get("means")
    for name in reported if isinstance(reported, dict) else ():  # also what could not be computed
        key = name.removesuffix("_mean")
        if key.startswith(PREFIXED) or not _defined(key):
            continue
        measure = definitions.definition(key)
        row = {"key": key, "pattern": definitions.pattern_of(key), "label": measure.label}
        row |= {"unit": measure.unit, "group": measure.group, "better": measure.better}
        for name, prefix in (("static", "static_"), ("tsae", ""), ("difference", "difference_")):
            row[name] = means.get(f"{prefix}{key}")
            row[f"{name}_error"] = errors.get(f"{prefix}{key}")
        row["n"] = _n_values(text, key)
        row["seeds_low"], row["seeds_high"] = over_seeds(text, key) or (None, None)
        bounds = over_documents(text, key)
        row["documents_low"], row["documents_high"] = bounds or (None, None)
        rows.append(row)
    order = list(definitions.DEFINITIONS)
    return sorted(rows, key=lambda row: order.index(row["pattern"]))


def _defined(key: str) -> bool:
    try:
        definitions.pattern_of(key)
    except ValueError:
        return False
    return True


def _n_values(text: Mapping[str, Any], key: str) -> int:
    """Seeds that have the measure."""
    values = text.get("final_info_dict")
    of_seeds = values.get(key) if isinstance(values, dict) else None
    return sum(value is not None for value in of_seeds) if isinstance(of_seeds, list) else 0


def over_seeds(text: Mapping[str, Any], key: str) -> tuple[float, float] | None:
    """95 % t-interval of a measure's paired difference over the seeds; None for fewer than two."""
    mean = numbers_of(text, "means").get(f"difference_{key}")
    error = numbers_of(text, "stderrs").get(f"difference_{key}")
    n = _n_values(text, f"difference_{key}")
    if mean is None or error is None or n < 2:
        return None
    half = float(stats.t.ppf(0.975, n - 1)) * error
    return mean - half, mean + half


def over_documents(text: Mapping[str, Any], key: str) -> tuple[float, float] | None:
    """95 % bootstrap interval of seed 0's difference over documents, where run_3 has one."""
    intervals = text.get("intervals")
    rows = intervals.get(f"TSAE - static SAE: {key}") if isinstance(intervals, dict) else None
    bounds = rows[0][1:] if isinstance(rows, list) and rows and isinstance(rows[0], list) else []
    if len(bounds) != 2 or not all(isinstance(bound, int | float) for bound in bounds):
        return None
    return float(bounds[0]), float(bounds[1])


def _definitions(texts: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Definition of every measure that a table of the page names."""
    used = {row["pattern"] for text in texts for row in text["measures"]}
    used |= {name for text in texts for table in text["tables"].values() for name in table}
    return [
        {"pattern": pattern} | {name: str(value) for name, value in vars(measure).items()}
        for pattern, measure in definitions.DEFINITIONS.items()
        if pattern in used
    ]


# ------------------------------------------------------------------------------------ the sentences


def compared(text: Mapping[str, Any], key: str, form: str = ".3f", unit: str = "") -> str:
    """`0.842 in the TSAE and 0.833 in the static SAE (difference +0.009, 95 % ...)`; what a run
    does not have is said.
    """
    means = numbers_of(text, "means")
    own, static = means.get(key), means.get(f"static_{key}")
    if own is None and static is None:
        return "not measured in these runs"
    sides = [
        f"{value:{form}}{unit} in the {name}"
        for value, name in ((own, "TSAE"), (static, "static SAE"))
        if value is not None
    ]
    if len(sides) < 2:
        return f"{sides[0]} (the other model has no such number)"
    return f"{' and '.join(sides)} ({_difference_said(text, key, form, unit)})"


def _difference_said(text: Mapping[str, Any], key: str, form: str, unit: str) -> str:
    means = numbers_of(text, "means")
    apart = means.get(f"difference_{key}", means[key] - means[f"static_{key}"])
    said = f"difference {apart:+{form}}{unit.strip() and unit}"
    for interval, over in (
        (over_seeds(text, key), f"{_n_values(text, key)} seeds"),
        (over_documents(text, key), "documents"),
    ):
        if interval:
            low, high = (f"{bound:+{form}}" for bound in interval)
            return f"{said}, 95 % interval {low} to {high} over {over}"
    return f"{said}, no interval: one seed"


def verdict(text: Mapping[str, Any], key: str, more: str, less: str, same: str) -> str:
    """`more` or `less` where the difference's interval leaves 0 out, else `same`."""
    bounds = over_seeds(text, key) or over_documents(text, key)
    if bounds is None or bounds[0] <= 0 <= bounds[1]:
        return same
    return more if bounds[0] > 0 else less


def summary_of(name: str, text: Mapping[str, Any], setting: Mapping[str, Any]) -> list[str]:
    """Five sentences for a newcomer, with the numbers of one text."""
    more = verdict(
        text,
        "fve",
        "the TSAE explains more",
        "the TSAE explains less",
        "neither surely explains more",
    )
    steady = verdict(text, "jaccard", "more in the TSAE", "less in the TSAE", NOT_SURE)
    return [
        _what(name, text, setting),
        f"Faithfulness: of the variance of the activations {more}: {compared(text, 'fve', '.4f')}.",
        f"Stability: neighbouring words share features, {steady}: the share that two neighbours "
        f"have in common is {compared(text, 'jaccard')}.",
        "Reading cost: at each word a reader meets features that were not on at the word before, "
        f"{compared(text, 'births', '.1f')}.",
        "Price and use: with the code in place the language model's predictions move by "
        f"{compared(text, 'kl', '.3f')} nats per token; probes that see 5 features tell a verb's "
        "number across an intervening noun with accuracy "
        f"{compared(text, 'probe_agreement_attractor_k5', '.2f')}.",
    ]


def _what(name: str, text: Mapping[str, Any], setting: Mapping[str, Any]) -> str:
    n, sizes = n_seeds(text), ""
    if all(isinstance(setting.get(name), int) for name in ("d_sae", "k")):
        sizes = f" of {setting['d_sae']:,} features, at most {setting['k']} of them on per token,"
    where = " of the language model"
    if {"lm", "hook"} <= setting.keys():
        where = f" of {Path(str(setting['lm'])).name} ({setting['hook']})"
    seeds = f"{n} seed{'s' if n > 1 else ''}" if n else "an unknown number of seeds"
    return (
        f"A static sparse autoencoder, which reads each word by itself, and a TSAE, which also "
        f"remembers what was on before, each{sizes} explain the activations{where} on the text "
        f"{name}; every number is a mean over {seeds}."
    )


def says(measured: Mapping[str, Any]) -> dict[str, str]:
    """Per section one sentence: what is seen and what is not."""
    text = measured["numbers"]
    means = numbers_of(text, "means")

    def number(key: str, form: str) -> str:
        return f"{means[key]:{form}}" if key in means else "an unknown number"

    return {
        "stability": f"Averaged over lags of 1 to 16 tokens the stability beyond chance (TSS) is "
        f"{compared(text, 'tss_mean', '.4f')}, with {number('tss_floor_mean', '.4f')} for shuffled "
        f"tokens; it counts the {number('tss_eligible_frac', '.0%')} of features that are active "
        "often enough, and says nothing of the rarer ones.",
        "lifetimes": f"A feature that switches on stays on for a mean of "
        f"{compared(text, 'restricted_mean_64', '.2f')} tokens (up to 64); runs that the end of a "
        "chunk cuts count as censored, and what outlives a chunk is not seen.",
        "transitions": f"Of {number('transitions_candidates', ',.0f')} candidate pairs of "
        f"features in the TSAE {number('transitions_significant', ',.0f')} follow each other more "
        "often than shifted copies do, "
        f"{number('transitions_beyond_token_pairs', ',.0f')} of them beyond what equal pairs of "
        "tokens explain; an order in time is seen, a cause is not.",
        "probes": f"With 5 features a probe tells the number of a subject across an attractor with "
        f"accuracy {compared(text, 'probe_agreement_attractor_k5', '.2f')}; that a probe can read "
        "something does not say that the language model uses it.",
        "interventions": f"Swapping ten number features before the verb moves the choice of its "
        f"form by {compared(text, 'effect_propagated', '.3f')} of what swapping the whole "
        "activation does; seen on agreement sentences, not on running text.",
        "ablations": _ablations(measured["systems"]),
    }


def _ablations(rows: Sequence[Mapping[str, Any]]) -> str:
    others = [row for row in rows if row["run"] == "run_4"]
    if not others:
        return "Not measured: there is no run_4 among these runs."
    return (
        f"run_4 measured {len(others)} systems on the same text and tokens; what differs between "
        "two of them is one part that was taken away or one rival's rule; docs/RIVALS.md says how "
        "each was tuned."
    )
