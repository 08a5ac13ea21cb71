"""run_4: static SAEs, rivals, the TSAE, its controls and ablations, trained and measured alike.

Every system of a text and seed has one file of numbers, written when it is measured: what is there
is not made again. Systems are listed in `entries`; the loop that trains them is `experiment.fit`.
"""

import itertools
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

import tsae
from tsae_lab import checksums, files
from tsae_lab.data import store
from tsae_lab.data.language_model import LanguageModel
from tsae_lab.data.order_tasks import ORDER_TASKS, OrderTask, linear_score
from tsae_lab.jobs import checkpoint, entries, finetune, identity, plan, reporting, training
from tsae_lab.jobs.entries import Entry, Surroundings, entry_of
from tsae_lab.jobs.plan import Config, Data, Unit
from tsae_lab.jobs.training import Trainer
from tsae_lab.measures import evaluation
from tsae_lab.rivals import posthoc
from tsae_lab.rivals.batch_topk import run_by_batch
from tsae_lab.rivals.system import Run
from tsae_lab.sections import rival_table
from tsae_lab.sections.context import summary
from tsae_lab.terminal import console, release_memory

FITTED_ROWS = slice(0, 64)  # training sequences from which a post-hoc scale and L0 are taken
MATCHED_ROWS = 32  # validation sequences whose codes are kept to compare seeds
SPLICE_TOKENS = 10_000  # at most, on which a system's loss is measured: the same for all
ORDER_SEQ, ORDER_TRAIN, ORDER_VAL = 64, 1_024, 256  # tokens and sequences of an order-only task
ORDER_SIZES = {"d_sae": 128, "k": 4, "seq": ORDER_SEQ, "batch": 64, "pieces": 4}
ORDER_STEPS = 200  # at most
FACTORS = (0.5, 1.0, 2.0)  # of the learning rate, in the search
TUNING_SEED = 100  # of no table
TUNING_SHARE = 1 / 3  # of the steps, that each SAE of the search is trained for
TRIAL_STEPS = 8  # from which the search's time is told


@dataclass(frozen=True, eq=False, kw_only=True)
class Loop:
    """What `experiment` lends, which nobody imports."""

    static: Callable[[Unit], tuple[Trainer, Trainer, float]]
    ours: Callable[[Unit, Trainer, str, str], tuple[Trainer, float]]
    rival: Callable[..., tuple[Trainer, float]]
    fit: Callable[..., tuple[Trainer, float]]
    random_start: Callable[[Unit], Trainer]
    temporal_start: Callable[[Unit, Trainer], Trainer]


@dataclass(frozen=True, eq=False, kw_only=True)
class Trained:
    """A system that can be measured."""

    run: Run
    dec_norm: Float[Tensor, " d_sae"]
    n_params: int
    seconds: float | None  # of all its training steps; None where it has none of its own


@dataclass(frozen=True, eq=False, kw_only=True)
class Contest:
    """One text, one seed."""

    loop: Loop
    unit: Unit
    lm: LanguageModel
    ordered: bool = False  # whether its systems do the order-only tasks, too
    first: bool = False  # whether it is the first seed of the first text


def run_comparison(out_dir: Path, config: Config, loop: Loop) -> dict[str, Any]:
    """The whole of run_4; returns what final_info.json holds."""
    names = entries.chosen_systems(config)
    with files.cache_at(config.cache_dir):
        config = plan.checked(config)
        for name in names:
            _check_entry(config, entry_of(name))
        plan.refuse_other(out_dir, config, "run_4")
        with files.sole(out_dir):
            return _compared(out_dir, config, names, loop)


def _check_entry(config: Config, entry: Entry) -> None:
    """ValueError where the entry's changes do not fit the run's other options."""
    own = replace(config, **entry.recipe)
    plan.check_config(own if not entry.random else replace(own, pretrain=config.pretrain))


def _compared(out_dir: Path, config: Config, names: list[str], loop: Loop) -> dict[str, Any]:
    began = time.perf_counter()
    lm = plan.lm_of(config)
    tokens = {name: plan.both_splits(config, lm, name) for name in plan.names_of(config)}
    now = plan.identity_now(config, lm, tokens)
    plan.check_identity(out_dir, now)
    stored = replace(config, activations="store")  # what every system is trained on
    texts = [plan.data_of(stored, lm, name, splits) for name, splits in tokens.items()]
    plan.claim(out_dir, config, "run_4", now)
    contests = [
        Contest(
            loop=loop,
            lm=lm,
            unit=_unit(out_dir, config, data, seed, now),
            ordered=i == 0,
            first=i == 0 and seed == 0,
        )
        for i, data in enumerate(texts)
        for seed in range(config.seeds)
    ]
    if config.tune:
        return _tuned(contests[0], names)
    choice = _choice(contests, names)
    _say_plan(contests, names, choice)
    results: dict[str, list[dict[str, Any]]] = {data.name: [] for data in texts}
    clock = _Clock(sum(not _done(c, name) for c in contests for name in _due(c, names)))
    for contest in contests:
        asked = {name: _result(contest, name, clock) for name in _due(contest, names)}
        results[contest.unit.data.name].append(asked | _others_there(contest, names))
        for path in contest.unit.folder.rglob("*.checkpoint.safetensors"):
            path.unlink()
    folders = {data.name: out_dir / plan.folder_name(data.name) for data in texts}
    for text, by_seed in results.items():
        _match_seeds(folders[text], by_seed)
    info = {data.name: _summed(data, folders[data.name], results[data.name], now) for data in texts}
    systems = itertools.chain(*itertools.chain(*results.values()))
    about = {name: entry_of(name).about for name in systems}
    for text in info.values():
        text["about"] = about
    checksums.write_numbers(out_dir / "final_info.json", info)
    rival_table.write_tables(out_dir, folders, info, about, results, choice, config.window)
    reporting.report_beside(out_dir, lm)
    console.print(f"{out_dir}: done in {(time.perf_counter() - began) / 60:.1f} minutes")
    return info


def _unit(out_dir: Path, config: Config, data: Data, seed: int, now: identity.Identity) -> Unit:
    own = identity.of_seed(identity.of_text(now, data.name), seed, plan.options_of(config))
    return Unit(
        config=config, data=data, seed=seed, log=out_dir / "log.jsonl",
        device=plan.device_of(config),
        folder=out_dir / plan.folder_name(data.name) / f"seed_{seed}",
        low=plan.products(config, plan.device_of(config)), identity=own,
    )  # fmt: skip


def _summed(
    data: Data, folder: Path, by_seed: list[dict[str, Any]], now: identity.Identity
) -> dict[str, Any]:
    """What final_info.json holds of a text."""
    numbers = rival_table.by_system(by_seed)
    keys = rival_table.SHARED_GAINS
    info = summary(numbers)
    info["temporal_share"] = {key: rival_table.temporal_share(numbers, key) for key in keys}
    if any(name.startswith("window_") for systems in by_seed for name in systems):
        path, made_of = folder / "window_explains.json", identity.of_text(now, data.name)
        if not path.exists():
            shares = rival_table.window_shares(data.stored, data.val)
            checksums.write_sealed(path, {"shares": shares, "identity": made_of})
        saved = checksums.read_sealed(path)
        identity.refuse_content(path, saved["identity"], made_of)
        info["window_explains"] = {int(w): share for w, share in saved["shares"].items()}
    return info


def _due(contest: Contest, names: list[str]) -> list[str]:
    """The systems that are compared on a text with a seed."""
    left_out = frozenset() if contest.first else entries.once_alone(contest.unit.config)
    return [name for name in names if name not in left_out]


def _choice(contests: list[Contest], names: list[str]) -> str:
    """What is compared, in a sentence without its full stop."""
    seeds: dict[str, int] = {}
    for contest in contests:
        seeds[contest.unit.data.name] = seeds.get(contest.unit.data.name, 0) + 1
    of_texts = ", ".join(f"{text} with {n} seed{'s' * (n > 1)}" for text, n in seeds.items())
    alone = entries.once_alone(contests[0].unit.config) if len(contests) > 1 else frozenset()
    everywhere = [name for name in names if name not in alone]
    line = f"run_4 compares {len(everywhere)} systems ({', '.join(everywhere)}) on {of_texts}"
    once = [name for name in names if name in alone]
    return f"{line}, and {len(once)} ({', '.join(once)}) with its first seed" if once else line


def _say_plan(contests: list[Contest], names: list[str], choice: str) -> None:
    """Says what is compared, what of it is done, and which of that another version made."""
    done = [(c, _saved(c, name)) for c in contests for name in _due(c, names)]
    saved = [(contest, made) for contest, made in done if made is not None]
    line = f"{choice}: {len(done)} to train or derive and measure, {len(saved)} of them done"
    console.print(line, highlight=False, markup=False, soft_wrap=True)
    for contest, made in {made["identity"].get("commit"): (c, made) for c, made in saved}.values():
        identity.say_others(contest.unit.folder, made["identity"], contest.unit.identity)


class _Clock:
    """Says after each system what is left, and for how long at the pace so far."""

    def __init__(self, n: int) -> None:
        self.n, self.done, self.began = n, 0, time.perf_counter()

    def tick(self, label: str) -> None:
        self.done += 1
        pace = (time.perf_counter() - self.began) / self.done
        left = f"{self.n - self.done} left, about {pace * (self.n - self.done) / 60:.0f} minutes"
        console.print(f"{label}: done ({self.done}/{self.n}, {left})", highlight=False)


# ---------------------------------------------------------------------------------- one system


def _others_there(contest: Contest, names: list[str]) -> dict[str, dict[str, Any]]:
    """What an earlier call with other `--systems` has measured; it stays in the table."""
    stems = sorted(path.stem for path in contest.unit.folder.glob("*.json"))
    known = [n for n in stems if n.partition("@")[0] in entries.ENTRIES and n not in names]
    saved = {name: _saved(contest, name) for name in known}
    return {name: result for name, result in saved.items() if result is not None}


def _place(contest: Contest, name: str) -> Path:
    return contest.unit.folder / f"{name}.json"


def _done(contest: Contest, name: str) -> bool:
    return _saved(contest, name) is not None


def _own_unit(contest: Contest, entry: Entry) -> Unit:
    """The unit with the entry's recipe, data and identity; another k has a folder of its own."""
    unit, config = contest.unit, replace(contest.unit.config, **entry.recipe)
    data, folder, log = unit.data, unit.folder, unit.log
    if config.k != unit.config.k:
        folder = folder / f"k_{config.k}"
        log = folder / "log.jsonl"
    if entry.shuffled:
        generator = torch.Generator().manual_seed(unit.seed)
        data = replace(data, train=store.shuffled(data.stored, generator))
    own = _identity(contest, entry)
    return replace(unit, config=config, data=data, folder=folder, log=log, identity=own)


def _identity(contest: Contest, entry: Entry) -> identity.Identity:
    config = replace(contest.unit.config, **entry.recipe)
    options = plan.options_of(config) | entries.own_options(entry)
    return identity.of_seed(contest.unit.identity, contest.unit.seed, options)


def _static_unit(contest: Contest, entry: Entry) -> Unit:
    """The unit of the static SAE that an entry starts from: the run's recipe at the entry's k."""
    at_k = {"k": entry.recipe["k"]} if "k" in entry.recipe else {}
    return _own_unit(contest, Entry(about="", kind="static", recipe=at_k))


def _saved(contest: Contest, name: str) -> dict[str, Any] | None:
    """A system's numbers; None where its file is missing or half written: it is made again.

    ValueError where it was made of something else.
    """
    path = _place(contest, name)
    saved = checksums.read_result(path)
    if saved is not None:
        made = identity.form_of(saved.get("identity"))
        identity.refuse_unequal(path, made, _identity(contest, entry_of(name)))
    return saved


def _result(contest: Contest, name: str, clock: _Clock) -> dict[str, Any]:
    """Numbers and intervals of a system, trained and measured unless they are there."""
    saved = _saved(contest, name)
    if saved is not None:
        return saved
    entry, unit = entry_of(name), _own_unit(contest, entry_of(name))
    unit.folder.mkdir(parents=True, exist_ok=True)
    trained = _made(contest, entry, name)
    release_memory()
    numbers, intervals, codes = rival_table.system_numbers(
        trained.run, trained.dec_norm, _ground(contest)
    )
    numbers |= {"n_params": float(trained.n_params)}
    if contest.ordered and "@" not in name and not entry.finetune:
        numbers |= order_numbers(contest, entry, name)
    if trained.seconds is not None:
        numbers |= {"total_train_time": trained.seconds}
        numbers["train_tokens_per_second"] = _tokens_read(unit) / max(trained.seconds, 1e-9)
        plainly = entry.kind == "static" and not entry.finetune
        numbers["memory_mib"] = _memory(unit, "static" if plainly else name)
    rows = slice(0, MATCHED_ROWS)
    sample = {"vals": codes.vals[rows], "idx": codes.idx[rows].to(torch.int32)}
    checkpoint.save_tensors(_place(contest, name).with_suffix(".codes.safetensors"), sample, {})
    result = {"numbers": numbers, "intervals": intervals, "identity": unit.identity}
    checksums.write_sealed(_place(contest, name), result)
    if name.partition("@")[0] not in ("static", "tsae", "batch_topk"):  # others are made of these
        for path in unit.folder.glob(f"*{name}.checkpoint.safetensors"):
            path.unlink()
    clock.tick(f"{unit.data.name}, seed {unit.seed}: {name}")
    return result


def _memory(unit: Unit, model: str) -> float | None:
    """The most that a model's training held at a step, as its log says."""
    of_unit = {"dataset": unit.data.name, "seed": unit.seed, "model": model}
    mine = [
        line.get("memory_mib")
        for line in checksums.log_lines(unit.log)
        if of_unit.items() <= line.items()
    ]
    return max((held for held in mine if held is not None), default=None)


def _ground(contest: Contest) -> rival_table.Ground:
    unit, config = contest.unit, contest.unit.config
    return rival_table.Ground(
        val=unit.data.val, lm=contest.lm, device=unit.device, seed=unit.seed, share=config.share,
        splice_tokens=min(config.splice_tokens, SPLICE_TOKENS),
    )  # fmt: skip


def _tokens_read(unit: Unit) -> float:
    tokens = unit.data.train.tokens
    return (
        unit.config.steps
        * unit.config.batch
        / unit.config.pieces
        * tokens.n_tokens
        / unit.data.n_sequences
    )


def _made(contest: Contest, entry: Entry, name: str) -> Trained:
    if entry.kind == "derived":
        return _derived(contest, entry, name)
    return _trained(contest, entry, name)


def _trained(contest: Contest, entry: Entry, name: str) -> Trained:
    unit, base = _own_unit(contest, entry), _static_unit(contest, entry)
    base.folder.mkdir(parents=True, exist_ok=True)
    if entry.kind == "rival":
        trainer, seconds = _train_rival(contest, name, entry, unit, base)
        system = _system(entry, unit, lambda n: _distinct(contest, base, n))
        named = {n: t.detach() for n, t in trainer.named.items()}
        return _measurable(trainer, lambda x: system.run(named, x), seconds)
    pretrained, static, seconds = contest.loop.static(base)
    if entry.finetune:
        temporal = entry.kind == "ours"
        start = (
            (lambda: contest.loop.temporal_start(unit, pretrained))
            if temporal
            else lambda: pretrained
        )
        static, own = finetune.trained(
            unit, name, start, contest.loop.fit, contest.lm, temporal=temporal
        )
        seconds = own + seconds * plan.phases_of(unit.config).pretrain / unit.config.steps
        if temporal:
            return _measurable(static, evaluation.sae_run(_sae(static, unit)), seconds)
    if entry.kind == "static":
        sae = tsae.static_sae(training.static_of(static), unit.config.k, unit.low)
        return _measurable(static, evaluation.sae_run(sae), seconds)
    start = contest.loop.random_start(unit) if entry.random else pretrained
    trainer, own = contest.loop.ours(unit, start, "run_2", name)
    early = 0 if entry.random else plan.phases_of(unit.config).pretrain
    sae = _sae(trainer, unit)
    seconds = own + seconds * early / unit.config.steps
    return _measurable(trainer, evaluation.sae_run(sae), seconds)


def _train_rival(
    contest: Contest, name: str, entry: Entry, unit: Unit, base: Unit
) -> tuple[Trainer, float]:
    system = _system(entry, unit, lambda n: _distinct(contest, base, n))
    if system.whole:  # the same tokens per step, as whole sequences
        pieces = unit.config.pieces
        whole = replace(unit.config, pieces=1, batch=max(1, unit.config.batch // pieces))
        unit = replace(unit, config=whole)
    return contest.loop.rival(unit, name, system)


def _system(entry: Entry, unit: Unit, distinct: Callable[[int], int]) -> Any:
    around = Surroundings(low=unit.low, d_in=unit.data.train.d_in, distinct=distinct)
    if entry.make is None:
        raise ValueError(f"{entry.about} is no rival")
    return entry.make(unit.config, around, **entry.own)


def _distinct(contest: Contest, base: Unit, window: int) -> int:
    """Features that the pretrained static SAE uses in `window` training tokens, as measured."""
    pretrained, _, _ = contest.loop.static(base)
    sae = tsae.static_sae(training.static_of(pretrained), base.config.k, base.low)
    x = base.data.stored.x(FITTED_ROWS).to(base.device)
    codes = tsae.encode_static(x, sae.params.static, sae.dials.k, sae.dials.low)
    return rival_table.distinct_in(
        codes, base.data.train.tokens.valid[FITTED_ROWS], sae.d_sae, window
    )


def _measurable(trainer: Trainer, run: Run, seconds: float | None) -> Trained:
    learned = (t.numel() for n, t in trainer.named.items() if n not in training.FIXED)
    dec_norm = trainer.named["W_dec"].detach().cpu().norm(dim=1)
    return Trained(run=run, dec_norm=dec_norm, n_params=sum(learned), seconds=seconds)


def _sae(trainer: Trainer, unit: Unit) -> tsae.Sae:
    params = training.params_of(trainer)
    return tsae.Sae(params=params, dials=training.final_dials(unit.config, unit.low))


def _derived(contest: Contest, entry: Entry, name: str) -> Trained:
    """What is made of a trained system without training."""
    base, kind = _own_unit(contest, entry_of(entry.of)), name.partition("@")[0]
    if kind == "batch_topk_batch":
        trainer, _ = _train_rival(contest, entry.of, entry_of(entry.of), base, base)
        named = {n: t.detach() for n, t in trainer.named.items()}
        k, low = base.config.k, base.low
        return _measurable(trainer, lambda x: run_by_batch(named, x, k, low), None)
    pretrained, static, _ = contest.loop.static(_static_unit(contest, entry))
    if kind == "order":
        trainer, _ = contest.loop.ours(base, pretrained, "run_2", entry.of)
        run = posthoc.shuffled_memory_run(_sae(trainer, base), contest.unit.seed)
        return _measurable(trainer, run, None)
    if kind == "twin":
        trainer = contest.loop.temporal_start(base, static)
        return _measurable(trainer, evaluation.sae_run(_sae(trainer, base)), None)
    sae = tsae.static_sae(training.static_of(static), base.config.k, base.low)
    average = posthoc.averages(base.config.tau, base.config.window)[kind]
    x = base.data.stored.x(FITTED_ROWS).to(base.device)
    valid = base.data.train.tokens.valid[FITTED_ROWS].to(base.device)
    scale = posthoc.fitted_scale(sae, x, valid, average)
    return _measurable(static, posthoc.averaged_run(sae, average, scale), None)


# ---------------------------------------------------------------------------- order-only tasks


def order_numbers(contest: Contest, entry: Entry, name: str) -> dict[str, float | None]:
    """Score of a linear probe on a system's codes of each order-only task, and one token's ceiling.

    The system is trained on the task's activations, in the same loop; half of the held-out
    sequences train the probe, the others score it.
    """
    numbers: dict[str, float | None] = {}
    for task_name, make in ORDER_TASKS.items():
        generator = torch.Generator().manual_seed(contest.unit.seed)
        task = make(ORDER_TRAIN + ORDER_VAL, ORDER_SEQ, generator)
        inner = _order_contest(contest, task)
        trained = _made(inner, entry, name)
        held = replace(task, x=task.x[ORDER_TRAIN:], answer=task.answer[ORDER_TRAIN:])
        with torch.inference_mode():
            _, codes = trained.run(held.x.to(inner.unit.device))
        dense = tsae.dense(codes, ORDER_SIZES["d_sae"]).cpu()
        numbers[f"order_{task_name}"] = linear_score(dense, held)
        numbers[f"order_{task_name}_ceiling"] = task.ceiling
    return numbers


def _order_contest(contest: Contest, task: OrderTask) -> Contest:
    unit = contest.unit
    config = replace(unit.config, **ORDER_SIZES, steps=min(unit.config.steps, ORDER_STEPS))
    train, val = (
        store.in_memory(rows, unit.config.hook) for rows in task.x.split([ORDER_TRAIN, ORDER_VAL])
    )
    folder = unit.folder / "order" / task.name
    folder.mkdir(parents=True, exist_ok=True)
    own = identity.of_seed(unit.identity, unit.seed, plan.options_of(config))
    data = Data(name=task.name, train=train, val=val)
    log = unit.folder / "order" / "log.jsonl"
    return replace(
        contest, unit=replace(unit, config=config, data=data, folder=folder, log=log, identity=own)
    )


# -------------------------------------------------------------------------------------- the search


def _tuned(contest: Contest, names: list[str]) -> dict[str, Any]:
    """Trains every rival at three rates and three values of its coefficient: tuning.csv.

    By FVE on the validation text of a seed that no table has, with `TUNING_SHARE` of the steps;
    what is done is read. Nothing of it is taken over: `entries` has the coefficients.
    """
    out_dir, config = contest.unit.log.parent, contest.unit.config
    steps = max(round(TUNING_SHARE * config.steps), TRIAL_STEPS)
    tuned = replace(contest, unit=replace(
        contest.unit, seed=TUNING_SEED, folder=contest.unit.folder.with_name("tuning"),
        log=out_dir / "tuning.jsonl", config=replace(config, steps=steps),
    ))  # fmt: skip
    tuned.unit.folder.mkdir(parents=True, exist_ok=True)
    arms = [
        (name, factor, value)
        for name in names
        if entry_of(name).kind == "rival"
        for factor in FACTORS
        for value in entry_of(name).search[1] or (None,)
    ]
    left = [arm for arm in arms if not _arm_place(tuned, *arm).exists()]
    line = f"the search trains {len(arms)} SAEs for {steps} steps each, {len(left)} are left"
    console.print(f"{line}{_trial(tuned, left)}", highlight=False, markup=False, soft_wrap=True)
    clock = _Clock(len(left))
    for arm in left:
        _arm(tuned, *arm)
        clock.tick(f"{arm[0]}, rate times {arm[1]:g}, coefficient {arm[2]}")
    rows = [checksums.read_sealed(_arm_place(tuned, *arm)) | {"steps": steps} for arm in arms]
    files.write_csv(out_dir / "tuning.csv", rows)
    return {"tuning": rows}


def _trial(contest: Contest, arms: list[tuple[str, float, float | None]]) -> str:
    """How long the arms will take, from a few steps of each system."""
    per_step = {}
    with tempfile.TemporaryDirectory() as folder:
        scratch, config = Path(folder), replace(contest.unit.config, steps=TRIAL_STEPS)
        unit = replace(contest.unit, config=config, folder=scratch, log=scratch / "log.jsonl")
        for name in dict.fromkeys(name for name, _, _ in arms):
            trained = _trained(replace(contest, unit=unit), entry_of(name), name)
            per_step[name] = (trained.seconds or 0.0) / TRIAL_STEPS
    minutes = sum(per_step[name] for name, _, _ in arms) * contest.unit.config.steps / 60
    said = ", ".join(f"{name} {seconds:.2f}" for name, seconds in per_step.items())
    return f": about {minutes:.0f} minutes (seconds per step: {said})" if arms else ""


def _arm_place(contest: Contest, name: str, factor: float, value: float | None) -> Path:
    return contest.unit.folder / f"{name}_{factor:g}_{value}.json"


def _arm(contest: Contest, name: str, factor: float, value: float | None) -> None:
    entry, unit = entry_of(name), contest.unit
    own = {entry.search[0]: value} if value is not None else {}
    changed = replace(
        entry, own={**entry.own, **own}, recipe={**entry.recipe, "lr": factor * unit.config.lr}
    )
    place = _arm_place(contest, name, factor, value)
    trained = _trained(contest, changed, place.stem)
    measured = evaluation.measure_run(
        trained.run, len(trained.dec_norm), unit.data.val, unit.device
    )
    numbers = evaluation.code_measures(measured, trained.dec_norm[:, None])
    said = {"system": name, "lr": changed.recipe["lr"], "coefficient": entry.search[0]}
    checksums.write_sealed(place, said | {"value": value} | numbers)
    for path in unit.folder.glob(f"*{place.stem}.checkpoint.safetensors"):
        path.unlink()


# ---------------------------------------------------------------------------------- over the seeds


def _match_seeds(folder: Path, by_seed: list[dict[str, Any]]) -> None:
    """Adds to each seed's numbers how well its features' patterns are found in the next seed."""
    if len(by_seed) < 2:
        return
    for name in set(by_seed[0]).intersection(*by_seed):
        paths = [folder / f"seed_{s}" / f"{name}.codes.safetensors" for s in range(len(by_seed))]
        if not all(path.exists() for path in paths):
            continue
        held = [checkpoint.load_tensors(path)[0] for path in paths]
        for seed, result in enumerate(by_seed):
            first, second = held[seed], held[(seed + 1) % len(held)]
            result[name]["numbers"]["pattern_match"] = rival_table.matched(first, second)
