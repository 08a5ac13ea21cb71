"""run_4: static SAEs, rivals, the TSAE, its controls and ablations, trained and measured alike.

Every system of a text and seed has one file of numbers, written when it is measured: what is there
is not made again. Systems are listed in `entries`; the loop that trains them is `experiment.fit`.
"""

import itertools
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from tsae_lab import checksums, files
from tsae_lab.data.language_model import LanguageModel
from tsae_lab.jobs import checkpoint, entries, identity, plan, ranks, reporting, search
from tsae_lab.jobs.entries import Entry, entry_of
from tsae_lab.jobs.making import Contest, Loop, made, order_numbers, own_identity, own_unit
from tsae_lab.jobs.plan import Config, Data, Unit
from tsae_lab.sections import rival_table
from tsae_lab.sections.context import summary
from tsae_lab.terminal import Countdown, console, release_memory

MATCHED_ROWS = 32  # validation sequences whose codes are kept to compare seeds
SPLICE_TOKENS = 10_000  # at most, on which a system's loss is measured: the same for all


def run_comparison(out_dir: Path, config: Config, loop: Loop) -> dict[str, Any]:
    """The whole of run_4; returns what final_info.json holds ({} but on rank 0).

    Several processes share the texts and seeds, and those of a search its systems.
    """
    names = entries.chosen_systems(config)
    with files.cache_at(config.cache_dir), ExitStack() as held:
        held.enter_context(ranks.together(plan.device_of(config), spread=config.spread))
        ranks.refuse_others("configuration", {"out_dir": str(out_dir)} | vars(config))
        config = ranks.led(lambda: plan.checked(config))

        def begin() -> None:
            ranks.refuse_shared_batches("run_4", config.spread)
            ranks.refuse_few(config.batch, n_units(config), config.spread)
            for name in names:
                _check_entry(config, entry_of(name))
            plan.refuse_other(out_dir, config, "run_4")
            held.enter_context(files.sole(out_dir))

        ranks.led(begin)
        return _compared(out_dir, config, names, loop)


def n_units(config: Config) -> int:
    """Texts times seeds, or the systems of a search: what processes share."""
    if config.tune:
        return len(search.searchable(entries.chosen_systems(config)))
    return len(plan.names_of(config)) * config.seeds


def _check_entry(config: Config, entry: Entry) -> None:
    """ValueError where the entry's changes do not fit the run's other options."""
    own = entry.applied(config)
    plan.check_config(own if not entry.random else replace(own, pretrain=config.pretrain))


def _compared(out_dir: Path, config: Config, names: list[str], loop: Loop) -> dict[str, Any]:
    began = time.perf_counter()
    lm = plan.lm_of(config)
    tokens = ranks.in_turn(
        lambda: {name: plan.both_splits(config, lm, name) for name in plan.names_of(config)}
    )
    now = plan.identity_now(config, lm, tokens)
    ranks.led(lambda: plan.check_identity(out_dir, now))
    stored = replace(config, activations="store")  # what every system is trained on
    texts = plan.all_data(stored, lm, tokens)
    ranks.led(lambda: plan.claim(out_dir, config, "run_4", now))
    contests = _contests(out_dir, config, texts, loop, lm, now)
    if config.tune:
        return search.searched(contests[0], names)
    choice = _choice(contests, names)
    _say_plan(contests, names, choice)
    by_contest = _made(contests, names)
    if ranks.rank() > 0:
        return {}
    results: dict[str, list[dict[str, Any]]] = {data.name: [] for data in texts}
    for contest, asked in zip(contests, by_contest, strict=True):
        results[contest.unit.data.name].append(asked | _others_there(contest, names))
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


def _made(contests: list[Contest], names: list[str]) -> list[dict[str, Any]]:
    """The results of every text and seed, by system; ranks share by how many each has left."""
    due = [_due(contest, names) for contest in contests]
    left = [
        sum(not _done(contest, name) for name in asked)
        for contest, asked in zip(contests, due, strict=True)
    ]
    owners = ranks.led(lambda: ranks.balanced(left))
    share = [i for i, owner in enumerate(owners) if owner == ranks.rank()]
    clock = Countdown(sum(left[i] for i in share))
    with ranks.apart():
        for i in share:
            for name in due[i]:
                _result(contests[i], name, clock)
            for path in contests[i].unit.folder.rglob("*.checkpoint.safetensors"):
                path.unlink()
    ranks.wait()
    return [
        {name: _result(contest, name, clock) for name in asked}  # which are there now, and read
        for contest, asked in zip(contests, due, strict=True)
    ]


def _contests(
    out_dir: Path, config: Config, texts: list[Data], loop: Loop, lm: LanguageModel,
    now: identity.Identity,
) -> list[Contest]:  # fmt: skip
    """Every text with every seed; the first text's systems do the order-only tasks, too."""
    return [
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


def _unit(out_dir: Path, config: Config, data: Data, seed: int, now: identity.Identity) -> Unit:
    own = identity.of_seed(identity.of_text(now, data.name), seed, plan.options_of(config))
    log = f"log_{ranks.rank()}.jsonl" if ranks.rank() else "log.jsonl"
    return Unit(
        config=config, data=data, seed=seed, log=out_dir / log,
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
    saved = [(contest, old) for contest, old in done if old is not None]
    line = f"{choice}: {len(done)} to train or derive and measure, {len(saved)} of them done"
    console.print(line, highlight=False, markup=False, soft_wrap=True)
    for contest, old in {old["identity"].get("commit"): (c, old) for c, old in saved}.values():
        identity.say_others(contest.unit.folder, old["identity"], contest.unit.identity)


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


def _saved(contest: Contest, name: str) -> dict[str, Any] | None:
    """A system's numbers; None where its file is missing or half written: it is made again.

    ValueError where it was made of something else.
    """
    path = _place(contest, name)
    saved = checksums.read_result(path)
    if saved is not None:
        made = identity.form_of(saved.get("identity"))
        identity.refuse_unequal(path, made, own_identity(contest, entry_of(name)))
    return saved


def _result(contest: Contest, name: str, clock: Countdown) -> dict[str, Any]:
    """Numbers and intervals of a system, trained and measured unless they are there."""
    saved = _saved(contest, name)
    if saved is not None:
        return saved
    entry, unit = entry_of(name), own_unit(contest, entry_of(name))
    unit.folder.mkdir(parents=True, exist_ok=True)
    system = made(contest, entry, name)
    release_memory()
    numbers, intervals, codes = rival_table.system_numbers(
        system.run, system.dec_norm, _ground(contest)
    )
    numbers |= {"n_params": float(system.n_params)}
    if contest.ordered and "@" not in name and not entry.finetune:
        numbers |= order_numbers(contest, entry, name)
    if system.seconds is not None:
        numbers |= {"total_train_time": system.seconds}
        numbers["train_tokens_per_second"] = _tokens_read(unit) / max(system.seconds, 1e-9)
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
    """The most that a model's training held at a step, as the logs say."""
    of_unit = {"dataset": unit.data.name, "seed": unit.seed, "model": model}
    mine = [
        line.get("memory_mib")
        for log in sorted(unit.log.parent.glob("log*.jsonl"))
        for line in checksums.log_lines(log)
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
