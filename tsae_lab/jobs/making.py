"""How a system of run_4 is made: trained, or derived from a trained one; its order-only tasks."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

import tsae
from tsae_lab.data import store, texts
from tsae_lab.data.language_model import LanguageModel
from tsae_lab.data.order_tasks import ORDER_TASKS, OrderTask, linear_score
from tsae_lab.jobs import entries, finetune, identity, plan, training
from tsae_lab.jobs.entries import Entry, Surroundings, entry_of
from tsae_lab.jobs.plan import Data, Unit
from tsae_lab.jobs.training import Trainer
from tsae_lab.measures import evaluation
from tsae_lab.rivals import posthoc
from tsae_lab.rivals.batch_topk import run_by_batch
from tsae_lab.rivals.system import Run
from tsae_lab.sections import rival_table

FITTED_ROWS = slice(0, 64)  # training sequences from which a post-hoc scale and L0 are taken
ORDER_SEQ, ORDER_TRAIN, ORDER_VAL = 64, 1_024, 256  # tokens and sequences of an order-only task
ORDER_SIZES = {"d_sae": 128, "k": 4, "seq": ORDER_SEQ, "batch": 64, "pieces": 4}
ORDER_STEPS = 200  # at most


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


def own_unit(contest: Contest, entry: Entry) -> Unit:
    """The unit with the entry's recipe, data and identity; another k has a folder of its own."""
    unit, config = contest.unit, entry.applied(contest.unit.config)
    data, folder, log = unit.data, unit.folder, unit.log
    if config.k != unit.config.k:
        folder = folder / f"k_{config.k}"
        log = folder / "log.jsonl"
    if entry.shuffled:
        generator = torch.Generator().manual_seed(unit.seed)
        data = replace(data, train=store.shuffled(data.stored, generator))
    if entry.forgets:
        packed = texts.without_past(data.packed, data.train.tokens.valid)
        data = replace(data, packed=packed)
    own = own_identity(contest, entry)
    return replace(unit, config=config, data=data, folder=folder, log=log, identity=own)


def own_identity(contest: Contest, entry: Entry) -> identity.Identity:
    """What a system is made of: text, seed, and the options as its entry has them."""
    options = plan.options_of(entry.applied(contest.unit.config)) | entries.own_options(entry)
    return identity.of_seed(contest.unit.identity, contest.unit.seed, options)


def _static_unit(contest: Contest, entry: Entry) -> Unit:
    """The unit of the static SAE that an entry starts from: the run's recipe at the entry's k."""
    at_k = {"k": entry.recipe["k"]} if "k" in entry.recipe else {}
    return own_unit(contest, Entry(about="", kind="static", recipe=at_k))


def made(contest: Contest, entry: Entry, name: str) -> Trained:
    """The system of an entry: derived from a trained one, or trained from its checkpoint if any."""
    if entry.kind == "derived":
        return _derived(contest, entry, name)
    return trained_system(contest, entry, name)


def trained_system(contest: Contest, entry: Entry, name: str) -> Trained:
    """A system with training of its own, after all steps; its seconds include its pretraining's."""
    unit, base = own_unit(contest, entry), _static_unit(contest, entry)
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
    run = evaluation.sae_run(_sae(trainer, unit), forgets=entry.forgets)
    seconds = own + seconds * early / unit.config.steps
    return _measurable(trainer, run, seconds)


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
    base, kind = own_unit(contest, entry_of(entry.of)), name.partition("@")[0]
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
        system = made(inner, entry, name)
        held = replace(task, x=task.x[ORDER_TRAIN:], answer=task.answer[ORDER_TRAIN:])
        with torch.inference_mode():
            _, codes = system.run(held.x.to(inner.unit.device))
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
