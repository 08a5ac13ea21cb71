"""run_4's columns, its table and its figures: every system measured by the same code."""

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor

import metrics
import probes
import tsae
from metrics import CodedText
from probes import Task
from tsae_lab import definitions, files
from tsae_lab.data import tasks
from tsae_lab.data.language_model import LanguageModel
from tsae_lab.data.store import Store
from tsae_lab.measures import evaluation, lifetimes, readout, splices, usage
from tsae_lab.measures.readout import Reading
from tsae_lab.rivals.system import Run
from tsae_lab.sections.context import N_BOOT, Numbers, summary
from tsae_lab.sections.figures import save_figure
from tsae_lab.sections.pareto import PLANES, pareto_figure, pareto_front
from tsae_lab.sections.stability import spliced_codes
from tsae_lab.terminal import between, cell, console, markdown_table, print_table

LAGS_SHOWN = (1, 2, 4, 8, 16)
PROBE_K = 5
PROBED = ("agreement", "coreference", "disambiguation")
COLUMNS = (
    "fve", "l0", "distinct", "births", "delta_ce", "kl", "tss_mean", "tss_lag_1", "tss_lag_2",
    "tss_lag_4", "tss_lag_8", "tss_lag_16", "splice_kept_0", "restricted_mean_64", "alive_frac",
    "persistence_lift", "utilisation", "pattern_match", "probe_agreement_attractor_k5",
    "probe_coreference_k5", "probe_disambiguation_k5",
    "probe_agreement_attractor", "probe_coreference", "probe_disambiguation",
    "order_signed_motion", "order_since_switch", "order_self_exciting",
    "train_tokens_per_second", "n_params", "memory_mib",
)  # fmt: skip
PAIRED = (
    "fve", "tss_mean", "delta_ce", "kl", "births", "probe_agreement_attractor_k5",
    "probe_coreference_k5", "probe_disambiguation_k5",
)  # fmt: skip
PRINTED = ("fve", "l0", "births", "delta_ce", "kl", "tss_mean", "persistence_lift", "utilisation")


# -------------------------------------------------------------------------------- the columns


@dataclass(frozen=True, eq=False, kw_only=True)
class Ground:
    """What all systems of a text and seed are measured on."""

    val: Store
    lm: LanguageModel
    device: torch.device
    seed: int
    share: float  # of the probing items
    splice_tokens: int  # on which the language model's loss is measured


def system_numbers(
    run: Run, dec_norm: Float[Tensor, " d_sae"], ground: Ground
) -> tuple[Numbers, dict[str, list[float]], CodedText]:
    """All columns of a system on the validation text; 95 % intervals; its codes.

    Intervals are over documents: value, low, high.
    """
    measured = evaluation.measure_run(run, len(dec_norm), ground.val, ground.device)
    codes = measured.codes
    numbers: Numbers = dict(evaluation.code_measures(measured, dec_norm[:, None]))
    numbers["avg_inference_tokens_per_second"] = measured.tokens_per_second
    seed = torch.Generator().manual_seed(ground.seed)
    score = metrics.tss(codes, dec_norm, n_boot=N_BOOT, generator=seed)
    numbers["tss_mean"] = score.macro
    for lag in LAGS_SHOWN:
        numbers[f"tss_lag_{lag}"] = metrics.finite(score.macro_by_lag[lag - 1])
    intervals = {}
    if score.macro is not None and score.macro_interval is not None:
        intervals["tss_mean"] = [score.macro, *score.macro_interval]
    numbers |= lasting(codes) | {"utilisation": usage.utilisation(codes, dec_norm)}
    numbers |= _after_splice(run, codes, dec_norm, ground) | _spliced_loss(run, ground)
    numbers |= probed(run, len(dec_norm), ground)
    return numbers, intervals, codes


def lasting(codes: CodedText) -> Numbers:
    """Restricted mean lifetime, persistence, and its lift over that of shuffled tokens."""
    runs, null = (lifetimes.runs(text) for text in (codes, lifetimes.shuffle(codes)))
    stays, chance = (lifetimes.persistence(text)[0] for text in (runs, null))
    followed = bool((runs.length - runs.censored > 0)[~runs.truncated].any())
    return {
        "restricted_mean_64": lifetimes.restricted_mean(runs, 64).value if followed else None,
        "persistence": stays,
        "persistence_lift": None if stays is None or chance is None else stays - chance,
    }


def _after_splice(run: Run, codes: CodedText, dec_norm: Tensor, ground: Ground) -> Numbers:
    """What of the similarity above chance is left right after another document goes on."""
    seam = ground.val.tokens.valid.shape[1] // 2
    spliced = spliced_codes(run, len(dec_norm), ground.val, seam, ground.device)
    if spliced is None:
        return {"splice_kept_0": None}
    splice = splices.splice_kept(codes, *spliced, seam, dec_norm, (0,))
    return {"splice_kept_0": metrics.finite(splice.kept[0])}


def _spliced_loss(run: Run, ground: Ground) -> Numbers:
    """What the code in place of the activations costs the language model, nats per token."""
    rows, clean = evaluation.read_clean(ground.lm, ground.val, ground.splice_tokens)
    own = {"own": lambda x: run(x)[0]}
    losses = evaluation.splice_losses(ground.lm, ground.val, rows, own, clean)
    delta = losses["own"]["token"] - losses["clean"]["token"]
    return {"delta_ce": delta, "kl": losses["own"]["kl"]}


# the systems of a seed, one after the other, read the same texts
@functools.lru_cache(maxsize=1)
def _reads(
    lm: LanguageModel, hook: str, share: float, seed: int
) -> tuple[Sequence[Task], Mapping[str, Reading]]:
    asked = [t for t in tasks.all_tasks(share=share, seed=seed) if t.name in PROBED]
    return asked, readout.read_tasks(lm, hook, asked)


def probed(run: Run, d_sae: int, ground: Ground) -> Numbers:
    """Accuracy of 5-sparse and dense probes on the code at the read-out word, per task."""
    asked, reads = _reads(ground.lm, ground.val.hook, ground.share, ground.seed)
    reader = readout.run_reader(run, d_sae)
    numbers: Numbers = {}
    for task in asked:
        features = readout.features(reads[task.name], {"code": reader})["code"]
        lines = {"all": "", "attractor": "_attractor"}
        masks = {key: mask for key, mask in probes.breakdown(task.items).items() if key in lines}
        options: dict[str, Any] = {"n_folds": task.n_folds, "few": task.few, "seed": ground.seed}
        for k, end in ((PROBE_K, f"_k{PROBE_K}"), (None, "")):
            correct = probes.scores(features, task.items, k=k, **options)
            numbers |= {
                f"probe_{task.name}{lines[key]}{end}": float(correct[mask].mean())
                for key, mask in masks.items()
            }
    return numbers


def distinct_in(codes: tsae.Codes, valid: Tensor, d_sae: int, window: int) -> int:
    """Mean number of features that are on in `window` tokens, rounded; at least 1."""
    text = metrics.codes_from_topk(codes.vals, codes.idx, d_sae, valid=valid)
    return max(1, round(metrics.distinct(text, window) or 1))


def matched(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> float | None:
    """`pattern_match` of kept codes of two seeds on the same tokens."""
    d_sae = 1 + max(int(held["idx"].max()) for held in (first, second))
    first_text, second_text = (
        metrics.codes_from_topk(held["vals"].float(), held["idx"].long(), d_sae)
        for held in (first, second)
    )
    return usage.pattern_match(first_text, second_text)


# ---------------------------------------------------------------------------------- the table


def by_system(by_seed: Sequence[Mapping[str, Any]]) -> list[dict[str, float | None]]:
    """Per seed all numbers under `system_measure`."""
    return [
        {
            f"{name}_{key}": value
            for name, result in systems.items()
            for key, value in result["numbers"].items()
        }
        for systems in by_seed
    ]


SHARED_GAINS = ("fve", "tss_mean")  # measures whose gain is shared out


def temporal_share(by_seed: Sequence[Mapping[str, float | None]], key: str) -> dict[str, Any]:
    """`(ordered - shuffled) / (ordered - static)` of what the TSAE gains in a measure, over seeds.

    Of training on sequences in order over training on permuted ones: 1, all of the gain is due to
    order; 0, none. The ratio of the means over the `n` seeds that have all three, with `fieller`'s
    interval; `absent` says why there is no value or no interval.
    """
    names = ("tsae", "shuffled", "static")
    seeds = [[numbers.get(f"{name}_{key}") for name in names] for numbers in by_seed]
    whole = np.array([values for values in seeds if None not in values], dtype=float)
    share = {"value": None, "low": None, "high": None, "n": len(whole), "absent": ""}
    if not len(whole):
        return share | {"absent": "tsae, shuffled and static were not all measured"}
    due, gain = whole[:, 0] - whole[:, 1], whole[:, 0] - whole[:, 2]
    if len(whole) == 1:
        value = due[0] / gain[0] if gain[0] > 0 else None
        return share | {"value": value, "absent": "one seed has no interval"}
    bounds = fieller(due, gain)
    if bounds is None or gain.mean() < 0:
        return share | {"absent": "the gain over the static SAE is not clear of 0"}
    return share | {"value": due.mean() / gain.mean(), "low": bounds[0], "high": bounds[1]}


def fieller(
    top: Float[np.ndarray, " n"], bottom: Float[np.ndarray, " n"], level: float = 0.95
) -> tuple[float, float] | None:
    """Interval of mean(top) / mean(bottom) of n > 1 pairs (Fieller 1954).

    All r with `|mean(top - r bottom)| <= t(n - 1) stderr(top - r bottom)`; None where that is no
    interval, since the mean of `bottom` is not clear of 0.
    """
    t = stats.t.ppf((1 + level) / 2, len(top) - 1)
    means, spread = np.array([top.mean(), bottom.mean()]), np.cov(top, bottom) / len(top)
    inside = np.outer(means, means) - t**2 * spread  # (1, -r) inside (1, -r)' <= 0
    (c, b), a = inside[0], inside[1, 1]
    if not a > 0:
        return None
    half = math.sqrt(max(b * b - a * c, 0.0)) / a
    return float(b / a - half), float(b / a + half)


def share_line(share: Mapping[str, Any], key: str) -> str:
    """What `temporal_share` of a measure is, in a sentence."""
    said = f"Temporal share of the TSAE's gain, {definitions.label(key)}: "
    said += cell(share["value"], ".2f") if share["value"] is not None else "absent"
    if share["low"] is not None:
        return f"{said}, 95 % {between(share['low'], share['high'], '.2f')} ({share['n']} seeds)"
    return f"{said} ({share['absent']})"


WINDOWS = tuple(2**n for n in range(8))  # tokens, whose linear explanation is measured
WINDOW_ROWS = 400  # training sequences that it is fitted on


def window_shares(train: Store, val: Store) -> dict[int, float | None]:
    """Of windows of 1 to 128 tokens: FVE of the token that follows, by linear regression."""
    rows = evaluation.pick_rows(train, WINDOW_ROWS * train.tokens.valid.shape[1])
    return usage.window_explains(train.x(rows), val.x(slice(None)), WINDOWS)


def window_page(
    explained: Mapping[int, float | None], rows: Sequence[Mapping[str, Any]], own: int
) -> str:
    """A table of windows: what of x_t the last w tokens explain, and what a memory of w does.

    `own` is the window of the TSAE itself.
    """
    windows = {f"window_{w}": w for w in explained} | {"tsae": own}
    by_window = {windows[row["system"]]: row for row in rows if row["system"] in windows}
    shown = ("fve", "tss_mean", "delta_ce")
    head = ["w, tokens", "x_t explained by the last w"]
    head += [f"memory of w: {definitions.label(key)}" for key in shown]
    body = [
        [str(w), cell(share, ".3f"),
         *(shown_cell(by_window[w], key) if w in by_window else "-" for key in shown)]
        for w, share in explained.items()
    ]  # fmt: skip
    return "\n" + markdown_table(head, body)


def table_rows(text: Mapping[str, Any], about: Mapping[str, str]) -> list[dict[str, Any]]:
    """One row per system: mean, standard error and number of seeds of every column."""
    rows = []
    for name, said in about.items():
        row: dict[str, Any] = {"system": name, "what": said}
        for key in COLUMNS:
            values = [v for v in text["final_info_dict"].get(f"{name}_{key}", ()) if v is not None]
            row[key] = float(np.mean(values)) if values else None
            spread = len(values) > 1
            row[f"{key}_stderr"] = (
                float(np.std(values, ddof=1) / len(values) ** 0.5) if spread else None
            )
            row[f"{key}_n"] = len(values)
        rows.append(row)
    return rows


def table_page(rows: Sequence[Mapping[str, Any]], title: str) -> str:
    """The rows as a table: mean ± standard error (n seeds); - where there is none."""
    columns = [key for key in COLUMNS if any(row[key] is not None for row in rows)]
    head = ["system", *(definitions.label(key) for key in columns)]
    lines = [f"## {title}", "", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in rows:
        cells = [f"`{row['system']}`: {row['what']}", *(shown_cell(row, key) for key in columns)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def paired(by_seed: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """TSAE minus every other system in the `PAIRED` measures, over the seeds that have both.

    With the 95 % t-interval of the mean of the n differences; None where n is 1.
    """
    rows = []
    for name in dict.fromkeys(name for systems in by_seed for name in systems if name != "tsae"):
        for key in PAIRED:
            pairs = [
                [systems[of]["numbers"].get(key) for of in ("tsae", name)]
                for systems in by_seed
                if {"tsae", name} <= systems.keys()
            ]
            whole = [own - other for own, other in pairs if None not in (own, other)]
            if whole:
                of_key = f"difference_{key}"
                told = summary([{of_key: difference} for difference in whole])
                low, high = told["seed_intervals"][of_key] or (None, None)
                row = {"system": name, "measure": key, "n": len(whole)}
                rows.append(
                    row | {"value": told["means"][f"{of_key}_mean"], "low": low, "high": high}
                )
    return rows


def paired_page(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows of `paired` with an interval as a table: difference (interval), in bold where 0 lies
    outside of it; "" where no system has one.
    """
    cells: dict[str, dict[str, str]] = {}
    for row in rows:
        if row["low"] is not None:
            said = f"{row['value']:+.4f} ({row['low']:+.4f} to {row['high']:+.4f})"
            clear = row["low"] > 0 or row["high"] < 0
            cells.setdefault(row["system"], {})[row["measure"]] = f"**{said}**" if clear else said
    if not cells:
        return ""
    head = ["TSAE minus", *(definitions.label(key) for key in PAIRED)]
    body = [[f"`{name}`", *(of.get(key, "-") for key in PAIRED)] for name, of in cells.items()]
    said = "Paired over seeds, with the 95 % t-interval; in bold where that leaves 0 out."
    return f"\n{said}\n\n{markdown_table(head, body)}"


def shown_cell(row: Mapping[str, Any], key: str) -> str:
    """Mean ± standard error (n seeds)."""
    value, error, n = row[key], row[f"{key}_stderr"], row[f"{key}_n"]
    if value is None:
        return "-"
    spread = f" ± {error:.2g}" if error is not None else ""
    return f"{cell(value, '.4g')}{spread} ({n})"


def write_tables(
    out_dir: Path,
    folders: Mapping[str, Path],
    info: Mapping[str, Any],
    about: Mapping[str, str],
    results: Mapping[str, Sequence[Mapping[str, Any]]],
    choice: str,
    window: int,
) -> None:
    """table.md, table.csv, differences.csv, intervals.csv and the figures; prints the main columns.

    `choice` says what was compared, `window` what the TSAE's memory holds.
    """
    pages, rows_of_all, differences = [], [], []
    for text, numbers in info.items():
        rows, n = table_rows(numbers, about), len(results[text])
        title = f"{text}: {len(rows)} systems, {n} seed{'s' * (n > 1)}"
        shares = [share_line(share, key) for key, share in numbers["temporal_share"].items()]
        pages.append(table_page(rows, title) + "".join(f"\n{line}\n" for line in shares))
        pairs = paired(results[text])
        pages[-1] += paired_page(pairs)
        if "window_explains" in numbers:
            pages[-1] += window_page(numbers["window_explains"], rows, window)
        rows_of_all += [{"dataset": text} | row for row in rows]
        differences += [{"dataset": text} | pair for pair in pairs]
        _print_main(rows, title, shares)
        _draw(rows, text, folders[text])
    head = f"{choice}.\n\nMean ± standard error (n seeds). {TUNING}{_ceilings(info)}"
    page = f"# run_4\n\n{head}\n\n" + "\n".join(pages)
    files.write_atomic(out_dir / "table.md", lambda path: path.write_text(page))
    files.write_csv(out_dir / "table.csv", rows_of_all)
    files.write_csv(out_dir / "differences.csv", differences)
    files.write_csv(out_dir / "intervals.csv", list(_over_documents(results)))


def _draw(rows: Sequence[Mapping[str, Any]], text: str, folder: Path) -> None:
    """The figures of a text."""
    for name, (x, y) in PLANES.items():
        drawn = pareto_figure(rows, x, y, f"{text}: {definitions.label(y)}")
        if drawn is not None:
            save_figure(drawn, folder / f"pareto_{name}")


def _over_documents(results: Mapping[str, Sequence[Mapping[str, Any]]]) -> Iterator[dict[str, Any]]:
    """The intervals over documents, a row each."""
    names = ("dataset", "seed", "system", "measure", "value", "low", "high")
    for text, by_seed in results.items():
        for seed, systems in enumerate(by_seed):
            for name, result in systems.items():
                for key, bounds in result["intervals"].items():
                    yield dict(zip(names, (text, seed, name, key, *bounds), strict=True))


def _ceilings(info: Mapping[str, Any]) -> str:
    """What one token alone can reach in the order-only tasks, where they were done."""
    end = "_ceiling_mean"
    said = {
        key.removeprefix("static_order_").removesuffix(end).replace("_", " "): value
        for text in info.values()
        for key, value in text["means"].items()
        if key.startswith("static_order_") and key.endswith(end)
    }
    words = ", ".join(f"{task} {value:.2f}" for task, value in said.items())
    return f" Best score of one token: {words}; of an oracle of the past: 1." if said else ""


TUNING = (
    "How rates and coefficients were searched: docs/RIVALS.md; the TSAE's memory and coupling had "
    "more trials than any rival's (docs/RESULTS.md, section 9)."
)


def _print_main(rows: Sequence[Mapping[str, Any]], title: str, shares: Sequence[str]) -> None:
    columns = ("system", *(definitions.label(key) for key in PRINTED))
    body = [[row["system"], *(cell(row[key], ".4f") for key in PRINTED)] for row in rows]
    fronts = [
        f"{definitions.label(y)} and {definitions.label(x)}: {', '.join(front) or '-'}"
        for x, y in PLANES.values()
        for front in [pareto_front(rows, x, y)]
    ]
    print_table(title, columns, body, caption="all columns in table.md and table.csv")
    for line in (*(f"on the front of {front}" for front in fronts), *shares):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
