"""Training: one step for the static SAE, the three phases of the TSAE and its rivals, resumable to
the bit.

The trainer owns its tensors and updates them in place; all else here is a function of the step.
With `wait=False` a step of our own models reads nothing back from the device: no shape and no
branch depends on a value, and what a log says stays there until it is `fetched`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

import tsae
import tsae_kernels
from tsae import Codes, Dials, Lifecycle, Memory, Params, Starts, State, Static
from tsae_lab.jobs import losses, ranks, schedules, warmstart
from tsae_lab.jobs.schedules import Phases
from tsae_lab.rivals.system import BUFFERS, Explained, System, in_windows, squared_error


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a static SAE or a TSAE is trained; one recipe for every arm of a comparison."""

    k: Annotated[int, "active features per token"] = Dials.k
    d_sae: Annotated[int, "features"] = 4_608
    window: Annotated[int, "tokens that the memory holds"] = Dials.window
    tau: Annotated[float, "tokens in which the memory's reading falls by 1/e"] = Dials.tau
    cap: Annotated[
        float,
        "largest value of a code that the memory reads, in units of the root mean square of x - "
        "b_dec",
    ] = Dials.cap
    beta: Annotated[
        float,
        "strength of the memory in the selection; with more than 32 features per token it falls as "
        "the root of their number, as their values do",
    ] = Dials.beta
    hidden_enc: Annotated[int, "units of the encoder LSTM"] = 64
    hidden_dec: Annotated[int, "units of the decoder LSTM"] = 256
    gate: Annotated[bool, "whether the encoder LSTM gates the codes"] = Dials.gate
    recur: Annotated[bool, "whether the decoder LSTM corrects the reconstruction"] = Dials.recur
    learn_bridge: Annotated[bool, "whether the bridge's strength is learned per feature"] = True
    lr: Annotated[float, "peak learning rate of Adam"] = 5e-3
    warmup: Annotated[
        int, "steps of linear warm-up, at the start and of the temporal parts at theirs"
    ] = 20
    decay: Annotated[float, "last share of all steps in which the rate falls to 0"] = 0.3
    pretrain: Annotated[float, "share of the steps that pretrain the static SAE"] = 0.5
    settle: Annotated[
        float, "share of the steps of phase (a): gates and LSTMs learn on the frozen static SAE"
    ] = 0.02
    introduce: Annotated[
        float, "share of the steps of phase (b): the memory's strength rises to beta"
    ] = 0.02
    coupling: Annotated[
        float,
        "share of what gates and decoder LSTM add that the code leaves to them: 0 trains it to "
        "explain all of x by itself, 1 to explain what they do not",
    ] = 0.7
    k_multiple: Annotated[
        float, "k at the start of the annealing, relative to its final value; 1 anneals nothing"
    ] = 1.5
    aux: Annotated[float, "coefficient of the auxiliary loss that revives dead features"] = 1 / 32
    dead_after: Annotated[
        int,
        "tokens without firing after which the auxiliary loss takes a feature for dead; 0: "
        "1,000 d_sae / k, a thousand times the mean distance of its firings",
    ] = 0
    k_aux: Annotated[int, "dead features that the auxiliary loss uses per token"] = 256
    clip: Annotated[
        float, "largest norm of the gradient, of the static and of the temporal tensors each"
    ] = 1.0

    @property
    def patience(self) -> int:
        """Tokens without firing after which the auxiliary loss takes a feature for dead."""
        return self.dead_after or round(1_000 * self.d_sae / self.k)


@dataclass(frozen=True, eq=False, kw_only=True)
class Trainer:
    """All that the next step depends on beside its batch; `adam` holds the moments."""

    named: dict[str, Tensor]
    adam: torch.optim.Adam
    life: Lifecycle  # of the codes of all steps; no runs
    silent: Int[Tensor, " d_sae"]  # tokens of the steps after the last in which a feature fired
    dead: Int[Tensor, " dead"]  # features that were dead when they were last looked for
    state: State | None = None  # of the streams; None where the next step begins new ones


TEMPORAL = tuple(tsae.Temporal.__dataclass_fields__)
STATIC = tuple(tsae.Static.__dataclass_fields__)
FIXED = ("scale", *BUFFERS)  # tensors that no gradient moves
FUSED = ("cpu", "cuda", "mps", "xpu")  # devices that have Adam in one kernel


def start_trainer(
    named: dict[str, Tensor], recipe: Recipe, *, before: Trainer | None = None
) -> Trainer:
    """A trainer on copies of the tensors of a static SAE (four), a TSAE (all) or a rival.

    From `before`, the trainer of its static SAE, it takes over Adam's moments and the lifecycle.
    """
    ordered = (*STATIC, *TEMPORAL, *sorted(named))  # files sort by name
    own = {name: _own(name, named[name]) for name in dict.fromkeys(ordered) if name in named}
    groups = [{"params": [t], "name": name} for name, t in own.items() if name not in FIXED]
    adam = torch.optim.Adam(groups, lr=recipe.lr, fused=own["b_enc"].device.type in FUSED)
    if before is None:
        life = tsae.start_lifecycle(len(own["b_enc"]), own["b_enc"])
        none = life.idle.new_zeros(0)
        return Trainer(named=own, adam=adam, life=life, silent=life.idle.clone(), dead=none)
    moments = {g["name"]: before.adam.state[g["params"][0]] for g in before.adam.param_groups}
    for group in adam.param_groups:
        if moments.get(group["name"]):
            copies = {key: value.clone() for key, value in moments[group["name"]].items()}
            adam.state[group["params"][0]] = copies
    return Trainer(named=own, adam=adam, life=before.life, silent=before.silent, dead=before.dead)


def start_temporal(
    pretrained: Trainer,
    scale: float,
    x: Float[Tensor, "batch seq d_in"],
    valid: Bool[Tensor, "batch seq"],
    recipe: Recipe,
    low: torch.dtype,
    generator: torch.Generator,
    starts: Starts = None,
) -> Trainer:
    """A TSAE that computes what its pretrained static SAE does, with a decoder LSTM that helps on
    the valid tokens of `x` (`integrators`); `scale` is the root mean square of x - b_dec.
    """
    hidden = {"hidden_enc": recipe.hidden_enc, "hidden_dec": recipe.hidden_dec}
    params = tsae.from_static(static_of(pretrained), scale=scale, **hidden, generator=generator)
    params = warmstart.integrators(params, x, valid, final_dials(recipe, low), starts)
    return start_trainer(tsae.tensors(params), recipe, before=pretrained)


def _own(name: str, tensor: Tensor) -> Tensor:
    """A copy; two with their columns contiguous, as a gradient and a least-squares fit come.

    A file does not keep the order in memory, on which a product's last bits depend.
    """
    tensor = tensor.detach()
    if name in ("W_enc", "W_out"):
        return tensor.t().clone(memory_format=torch.contiguous_format).t()
    return tensor.clone()


def snapshot(trainer: Trainer) -> dict[str, Tensor]:
    """Everything that the next step depends on, by name: what a checkpoint saves."""
    out = {f"param.{name}": tensor for name, tensor in trainer.named.items()}
    out |= {f"life.{name}": t for name, t in vars(trainer.life).items() if name != "streams"}
    out |= {"silent": trainer.silent, "dead": trainer.dead}
    for group in trainer.adam.param_groups:
        for key, value in trainer.adam.state[group["params"][0]].items():
            out[f"adam.{group['name']}.{key}"] = value
    if trainer.state is not None:
        held = {n: v for n, v in vars(trainer.state).items() if n != "memory"}
        held |= vars(trainer.state.memory)
        out |= {f"state.{name}": torch.as_tensor(value) for name, value in held.items()}
    return out


def restore(saved: dict[str, Tensor], recipe: Recipe) -> Trainer:
    """The trainer that `snapshot` was taken of; its next steps are the same to the bit.

    A checkpoint from before the lifecycle has "idle" alone: which features are dead comes out the
    same; tokens, firing and peaks are counted from here on.
    """

    def under(prefix: str) -> dict[str, Tensor]:
        return {n.removeprefix(prefix): v for n, v in saved.items() if n.startswith(prefix)}

    streams, trainer = under("state."), start_trainer(under("param."), recipe)
    for group in trainer.adam.param_groups:
        moments = under(f"adam.{group['name']}.")
        if moments:
            trainer.adam.state[group["params"][0]] = {
                key: _own(group["name"] if value.ndim == 2 else "", value)
                for key, value in moments.items()
            }
    state = None
    if streams:
        ring = Memory(streams.pop("vals"), streams.pop("idx"), int(streams.pop("pushed")))
        state = State(memory=ring, **streams)
    counts = under("life.") or {"idle": saved["idle"]}
    life = replace(trainer.life, **{name: count.clone() for name, count in counts.items()})
    silent = saved["silent"].clone() if "silent" in saved else _silent(life.idle, saved)
    dead = saved["dead"].clone() if "dead" in saved else trainer.dead
    return replace(trainer, life=life, silent=silent, dead=dead, state=state)


def _silent(idle: Tensor, saved: dict[str, Tensor]) -> Tensor:
    """`silent` of a checkpoint from before it, of "step_tokens" (newest first) where it has them.

    A feature that was on anywhere in a step counts as on at its end.
    """
    ends = torch.nn.functional.pad(saved.get("step_tokens", idle[:0]).to(idle).cumsum(0), (1, 0))
    whole = ends[torch.searchsorted(ends, idle, right=True) - 1]
    return torch.where(idle >= ends[-1], idle, whole)


def params_of(trainer: Trainer) -> Params:
    """The TSAE as it is now, without gradients; no copies."""
    return tsae.params_from({name: tensor.detach() for name, tensor in trainer.named.items()})


def static_of(trainer: Trainer) -> Static:
    """The static SAE as it is now, or that of a TSAE, without gradients; no copies."""
    return Static(**{name: trainer.named[name].detach() for name in STATIC})


LONG = 10_000_000  # tokens after which a feature that did not fire is called dead (Gao et al.)


def dead_frac(trainer: Trainer, epoch_tokens: int) -> float:
    """Share of features that fired at none of the last 10 M training tokens.

    Of an epoch, or of all training, where that is shorter.
    """
    tokens = min(LONG, epoch_tokens, int(trainer.life.tokens))
    return (trainer.life.idle >= tokens).double().mean().item()


SHARED = ("window", "tau", "cap", "gate", "recur")  # dials that no schedule changes


def dials_at(step: int, recipe: Recipe, phases: Phases, low: torch.dtype) -> Dials:
    """Dials of a TSAE at a step counted from the start of its static SAE's pretraining."""
    k = schedules.k_at(step, phases, k=recipe.k, multiple=recipe.k_multiple)
    final = final_dials(recipe, low)
    return replace(final, k=k, beta=final.beta * schedules.memory_at(step, phases))


def final_dials(recipe: Recipe, low: torch.dtype = torch.float32) -> Dials:
    """Dials of the finished TSAE."""
    beta = recipe.beta * math.sqrt(Dials.k / max(recipe.k, Dials.k))
    shared = {name: getattr(recipe, name) for name in SHARED}
    return Dials(k=recipe.k, mix=1.0, low=low, beta=beta, **shared)


def trained_at(phase: str, recipe: Recipe) -> frozenset[str]:
    """Names of the tensors that learn in a phase; the static SAE is frozen in (a) and (b)."""
    static, temporal = frozenset(STATIC), frozenset(TEMPORAL) - {"scale"}
    if phase == "settle" or not recipe.learn_bridge:  # beta is 0 in "settle": no bridge acts
        temporal -= {"bridge"}
    return {"pretrain": static, "refine": static | temporal}.get(phase, temporal)


def rates(step: int, recipe: Recipe, phases: Phases) -> dict[str, float]:
    """Learning rate of every tensor at a step; the temporal ones warm up from their start on."""
    schedule = {"total": phases.total, "warmup": recipe.warmup}
    base = recipe.lr * schedules.rate_at(step, decay=recipe.decay, **schedule)
    into = schedules.rate_at(step - phases.pretrain, decay=1e-9, **schedule)
    temporal = dict.fromkeys(TEMPORAL, base * max(into, 0.0))
    del temporal["scale"]
    return dict.fromkeys(STATIC, base) | temporal


def train_step(
    trainer: Trainer, x: Float[Tensor, "batch seq d_in"], weight: Float[Tensor, "batch seq"],
    step: int, recipe: Recipe, phases: Phases, low: torch.dtype, *, begins: bool = True,
    starts: Starts = None, added: Callable[[Tensor, Tensor], Tensor] | None = None,
    wait: bool = True,
) -> tuple[Trainer, dict[str, Any]]:  # fmt: skip
    """The trainer after a step, its tensors updated in place, and what a log line says of the step.

    `x` is 0 where `weight` is 0 (padding, at the end of a sequence). Where it `begins` new
    sequences, and at `starts`, where documents begin inside one, nothing is remembered; else it
    goes on from the step before, whose state is carried over without its gradient (truncated
    backpropagation through time, Williams & Peng 1990). In the log `loss` is the squared error of
    the reconstruction, and `fve` of an `x` that does not vary is 0. A static SAE is a TSAE that
    stays in the phase "pretrain". `added` is more of the loss, of the reconstruction and its
    squared error.

    A step that may `wait` for the device lists the dead features anew and skips padding where it
    revives them. Else the last step's list holds, as far as its features are still dead: what died
    since is revived after the next list.
    """
    phase = schedules.phase_at(step, phases)
    _learning(trainer, trained_at(phase, recipe))
    dials = dials_at(step, recipe, phases, low)
    static = Static(**{name: trainer.named[name] for name in STATIC})
    if phase == "pretrain":
        dials, state = replace(dials, k=recipe.k), None
        loss, x_hat, codes = _static_loss(static, x, weight, dials)
    else:
        before, params = None if begins else trainer.state, tsae.params_from(trainer.named)
        carried = before, starts
        loss, x_hat, codes, state = tsae_loss(params, x, weight, dials, recipe.coupling, *carried)
    if added is not None:
        loss = loss + added(x_hat, squared_error(x, x_hat, weight).detach())
    explained, rate = Explained(loss=loss, x_hat=x_hat, codes=codes), rates(step, recipe, phases)
    after, info = _learn(trainer, explained, x, weight, rate, recipe, low, wait=wait)
    dialled = {"k": dials.k, "beta": dials.beta}
    return replace(after, state=_detached(state)), {"phase": phase} | info | dialled


def rival_step(
    trainer: Trainer, x: Float[Tensor, "batch seq d_in"], weight: Float[Tensor, "batch seq"],
    step: int, system: System, recipe: Recipe, total: int, low: torch.dtype, *, wait: bool = True,
) -> tuple[Trainer, dict[str, Any]]:  # fmt: skip
    """As `train_step`, of a rival: the same loop on its own loss, at one rate for all tensors.

    The rate is the schedule's; the recipe's `aux` is left out where the system does not revive its
    dead features so, and those it resamples are begun anew, without moments, after each quarter of
    the steps but the last: those that fired at none of its tokens.
    """
    _learning(trainer, frozenset(trainer.named) - frozenset(FIXED))
    schedule = {"total": total, "warmup": recipe.warmup, "decay": recipe.decay}
    rate = dict.fromkeys(trainer.named, recipe.lr * schedules.rate_at(step, **schedule))
    own = recipe if system.revive else replace(recipe, aux=0.0)
    explained = system.explain(trainer.named, x, weight, step / total)
    after, info = _learn(trainer, explained, x, weight, rate, own, low, system.window, wait=wait)
    with torch.no_grad():
        for name, value in explained.buffers.items():
            after.named[name].copy_(value)
    quarter = max(total // 4, 1)
    if system.resample is not None and (step + 1) % quarter == 0 and step + 1 + quarter <= total:
        dead = after.life.idle >= quarter * info["tokens"]
        _resample(after, system.resample, x, explained.x_hat.detach(), dead, step)
    return after, {"phase": "all"} | info


def _resample(
    trainer: Trainer, resample: Any, x: Tensor, x_hat: Tensor, dead: Tensor, seed: int
) -> None:
    """Begin the features that are dead anew; their moments are 0 again."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in resample(trainer.named, x, x_hat, dead, generator).items():
            trainer.named[name].copy_(value)
            for moment in trainer.adam.state[trainer.named[name]].values():
                if moment.ndim == 2 and name == "W_enc":
                    moment[:, dead] = 0
                elif moment.ndim:
                    moment[dead] = 0


def _learning(trainer: Trainer, names: frozenset[str]) -> None:
    for name, tensor in trainer.named.items():
        tensor.requires_grad_(name in names)
        tensor.grad = None


def _learn(
    trainer: Trainer, explained: Explained, x: Tensor, weight: Tensor, rate: dict[str, float],
    recipe: Recipe, low: torch.dtype, window: int = 1, *, wait: bool,
) -> tuple[Trainer, dict[str, Any]]:  # fmt: skip
    """The trainer after one step down the gradient, dead features revived; what a log says."""
    x_hat, codes, loss = explained.x_hat, explained.codes, ranks.shared(explained.loss, weight)
    spread, n_dead = _spread(x, weight), (trainer.silent >= recipe.patience).sum()
    trainer = replace(trainer, dead=dead_features(trainer, recipe)) if wait else trainer
    if len(trainer.dead) and trainer.named["W_enc"].requires_grad and recipe.aux > 0:
        whole = in_windows(weight[..., None], window).amin(-1) > 0
        slabs = in_windows(x, window), in_windows(x - x_hat.detach(), window)
        revival = _revival(trainer, *slabs, whole, recipe, low, wait=wait)
        del slabs
        loss = loss + recipe.aux * spread * revival
    loss.backward()
    ranks.sum_gradients(trainer.named)
    norm = _descend(trainer, rate, recipe)
    with torch.no_grad():
        life = ranks.advanced(trainer.life, codes, weight)
        n_tokens = life.tokens - trainer.life.tokens
        error = ranks.total(ranks.shared(squared_error(x, x_hat, weight), weight))
        silent = torch.where(life.idle < n_tokens, 0, trainer.silent + n_tokens)
        l0 = ranks.total(((codes.vals > 0).sum(-1) * weight).sum()) / n_tokens.clamp(min=1)
        fve = torch.where(spread > 0, 1 - (error / spread).double(), 0.0)
    info = {"loss": error, "fve": fve, "l0": l0, "dead": n_dead, "grad_norm": norm}
    return replace(trainer, life=life, silent=silent), info | {"tokens": n_tokens}


def fetched(infos: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What the log says of some steps, numbers in place of tensors; one transfer in all."""
    held = [value for info in infos for value in info.values() if isinstance(value, Tensor)]
    numbers = iter(
        torch.stack([value.detach().double() for value in held]).tolist() if held else ()
    )
    whole = iter(not value.is_floating_point() for value in held)

    def number(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return int(next(numbers)) if next(whole) else next(numbers)

    return [{name: number(value) for name, value in info.items()} for info in infos]


def dead_features(trainer: Trainer, recipe: Recipe) -> Int[Tensor, " dead"]:
    """Features that were off for `patience` tokens or more, in whole steps.

    A feature that was on anywhere in a step counts as on at its end.
    """
    return (trainer.silent >= recipe.patience).nonzero()[:, 0]


def _revival(
    trainer: Trainer, x: Tensor, error: Tensor, whole: Tensor, recipe: Recipe, low: torch.dtype,
    *, wait: bool,
) -> Tensor:  # fmt: skip
    """The auxiliary loss of the dead features on what is no padding."""
    static, dead = Static(**{name: trainer.named[name] for name in STATIC}), trainer.dead
    if wait:  # what is left out need not be computed
        error, x = error[whole][None], x[whole][None]
        return losses.auxiliary_loss(error, x, static, dead, recipe.k_aux, low)
    still = trainer.silent[dead] >= recipe.patience
    return losses.auxiliary_loss(
        error, x, static, dead, recipe.k_aux, low, weight=whole, still=still
    )


def _detached(state: State | None) -> State | None:
    if state is None:
        return None
    memory = replace(state.memory, vals=state.memory.vals.detach())
    rest = {name: tensor.detach() for name, tensor in vars(state).items() if name != "memory"}
    return State(memory=memory, **rest)


def _static_loss(
    static: Static, x: Tensor, weight: Tensor, dials: Dials
) -> tuple[Tensor, Tensor, Codes]:
    """Squared error of the static SAE, its reconstruction, its codes."""
    encoder = replace(static, b_dec=static.b_dec.detach())  # b_dec learns as the decoder's
    codes = tsae.encode_static(x, encoder, dials.k, dials.low)
    x_hat = tsae.decode_static(codes, static)
    return squared_error(x, x_hat, weight), x_hat, codes


def tsae_loss(
    params: Params,
    x: Float[Tensor, "batch seq d_in"],
    weight: Float[Tensor, "batch seq"],
    dials: Dials,
    coupling: float,
    state: State | None = None,
    starts: Starts = None,
) -> tuple[Float[Tensor, ""], Float[Tensor, "batch seq d_in"], Codes, State]:
    """What a TSAE is trained on, its reconstruction and codes, and the state after them.

    The code is trained on `||x - coupling * added - own||^2`, gates and LSTMs on
    `||x - own - added||^2`, each with the other's part held fixed (`explain`). What the recurrence
    can foretell leaves the code as far as `coupling` lets it.
    """
    own, added, codes, state = explain(params, x, dials, state, starts)
    loss = _mean_square(x - coupling * added.detach() - own, weight)
    loss = loss + _mean_square(x - own.detach() - added, weight)
    return loss, own + added, codes, state


def _mean_square(missed: Tensor, weight: Tensor) -> Tensor:
    """`squared_error` of what is missed."""
    return (losses.squares(missed).sum(-1) * weight).sum() / weight.sum().clamp(min=1)


def explain(
    params: Params,
    x: Float[Tensor, "batch seq d_in"],
    dials: Dials,
    state: State | None = None,
    starts: Starts = None,
) -> tuple[Float[Tensor, "batch seq d_in"], Float[Tensor, "batch seq d_in"], Codes, State]:
    """What the ungated code explains and what gates and decoder LSTM add; codes; state after.

    The two sum to the reconstruction of `tsae.forward`, whose codes and state these are. The first
    is differentiable in the static SAE and the bridge alone, the second in gates and LSTMs alone.
    """
    fixed = Static(**{name: tensor.detach() for name, tensor in vars(params.static).items()})
    frozen, t = replace(params, static=fixed), params.temporal
    state = tsae.start_state(params, len(x), dials) if state is None else state
    seen = tsae.see(frozen, x, dials, state, starts)
    ungated = replace(seen, hs=None)
    codes = tsae.selected_codes(params, ungated, seen.selected)
    own = tsae.decode_static(codes, params.static)
    codes = Codes(codes.vals.detach(), codes.idx)
    if seen.hs is not None:
        flat = (seen.hs.flatten(0, 1), t.W_gate, t.b_gate, codes.idx.flatten(0, 1))
        gates = tsae_kernels.gate_values(*flat, inward=True)
        codes = Codes(codes.vals * gates.view(codes.vals.shape), codes.idx)
    x_hat, after = tsae.decode(frozen, codes, dials, state, starts, detach=True)
    memory = tsae.push(state.memory, seen.static, starts)
    after = replace(after, memory=memory, enc_h=seen.enc_h, enc_c=seen.enc_c)
    return own, x_hat - own.detach(), codes, after


def tangent(
    grad: Float[Tensor, "d_sae d_in"], W_dec: Float[Tensor, "d_sae d_in"]
) -> Float[Tensor, "d_sae d_in"]:
    """The gradient less its part along the unit rows, which normalising undoes (Bricken 2023)."""
    return grad - (grad * W_dec).sum(1, keepdim=True) * W_dec


def _spread(x: Tensor, weight: Tensor) -> Tensor:
    n = ranks.total(weight.sum()).clamp(min=1)
    mean = ranks.total((x * weight[..., None]).sum((0, 1))) / n
    return ranks.total(((x - mean).square().sum(-1) * weight).sum()) / n


def _descend(trainer: Trainer, rate: dict[str, float], recipe: Recipe) -> Tensor:
    """Clip, step, normalise the decoder's rows; the norm of the gradient before clipping.

    The static and the temporal tensors are clipped apart: one norm for both would make the static
    SAE's steps small while the LSTMs settle.
    """
    with torch.no_grad():
        W_dec = trainer.named["W_dec"]
        if W_dec.grad is not None:
            W_dec.grad = tangent(W_dec.grad, W_dec)
        moving = {n: tensor for n, tensor in trainer.named.items() if tensor.grad is not None}
        parts = (
            [t for n, t in moving.items() if n not in TEMPORAL],
            [moving[n] for n in TEMPORAL if n in moving],
        )
        norms = [torch.nn.utils.clip_grad_norm_(part, recipe.clip) for part in parts if part]
        for group in trainer.adam.param_groups:
            group["lr"] = rate[group["name"]]
        trainer.adam.step()
        if W_dec.grad is not None:
            W_dec /= W_dec.norm(dim=1, keepdim=True)
        if "bridge" in trainer.named:
            bridge = trainer.named["bridge"].clamp_(min=0.0)
            # mean 1: beta sets the strength, the bridge its distribution over features
            bridge /= bridge.mean().clamp(min=1e-6)
    return torch.stack(norms).norm()
