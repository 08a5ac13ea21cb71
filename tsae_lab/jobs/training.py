"""Training: one step for the static SAE, the three phases of the TSAE and its rivals, resumable to
the bit.

The trainer owns its tensors and updates them in place; all else here is a function of the step.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

import tsae
import tsae_kernels
from tsae import Codes, Dials, Lifecycle, Memory, Params, Phases, Starts, State, Static
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
    beta: Annotated[float, "strength of the memory in the selection"] = Dials.beta
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
    step_tokens: tuple[int, ...] = ()  # of the last steps, newest first, as far as `patience`
    state: State | None = None  # of the streams; None where the next step begins new ones


TEMPORAL = tuple(tsae.Temporal.__dataclass_fields__)
STATIC = tuple(tsae.Static.__dataclass_fields__)
FIXED = ("scale", *BUFFERS)  # tensors that no gradient moves


def start_trainer(
    named: dict[str, Tensor], recipe: Recipe, *, before: Trainer | None = None
) -> Trainer:
    """A trainer on copies of the tensors of a static SAE (four), a TSAE (all) or a rival.

    From `before`, the trainer of its static SAE, it takes over Adam's moments and the lifecycle.
    """
    ordered = (*STATIC, *TEMPORAL, *sorted(named))  # files sort by name
    own = {name: _own(name, named[name]) for name in dict.fromkeys(ordered) if name in named}
    groups = [{"params": [t], "name": name} for name, t in own.items() if name not in FIXED]
    adam = torch.optim.Adam(groups, lr=recipe.lr, fused=True)
    if before is None:
        life = tsae.start_lifecycle(len(own["b_enc"]), own["b_enc"])
        return Trainer(named=own, adam=adam, life=life)
    moments = {g["name"]: before.adam.state[g["params"][0]] for g in before.adam.param_groups}
    for group in adam.param_groups:
        if moments.get(group["name"]):
            copies = {key: value.clone() for key, value in moments[group["name"]].items()}
            adam.state[group["params"][0]] = copies
    return Trainer(named=own, adam=adam, life=before.life, step_tokens=before.step_tokens)


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
    params = integrators(params, x, valid, final_dials(recipe, low), starts)
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
    out["step_tokens"] = torch.tensor(trainer.step_tokens, dtype=torch.int64)
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
    step_tokens = tuple(saved["step_tokens"].tolist()) if "step_tokens" in saved else ()
    return replace(trainer, life=life, step_tokens=step_tokens, state=state)


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


def memory_at(step: int, phases: Phases) -> float:
    """The memory's share of its strength: 0 until the introduction, which ramps it to 1."""
    return tsae.ramp(
        step - phases.pretrain - phases.settle, start=0.0, end=1.0, steps=phases.introduce
    )


def k_at(step: int, phases: Phases, *, k: int, multiple: float) -> int:
    """`multiple * k` when phase (a) starts, `k` from the introduction's end on; a cosine."""
    span = {"steps": phases.settle + phases.introduce, "shape": "cosine"}
    return round(tsae.ramp(step - phases.pretrain, start=multiple * k, end=float(k), **span))


def rate_at(step: int, *, total: int, warmup: int, decay: float) -> float:
    """Share of the peak learning rate: warm-up, 1, then to 0 over the last `decay` of the steps."""
    return min(1.0, (step + 1) / max(warmup, 1), (total - step) / max(decay * total, 1))


SHARED = ("window", "tau", "cap", "beta", "gate", "recur")  # dials that no schedule changes


def dials_at(step: int, recipe: Recipe, phases: Phases, low: torch.dtype) -> Dials:
    """Dials of a TSAE at a step counted from the start of its static SAE's pretraining."""
    k = k_at(step, phases, k=recipe.k, multiple=recipe.k_multiple)
    beta = recipe.beta * memory_at(step, phases)
    return replace(final_dials(recipe, low), k=k, beta=beta)


def final_dials(recipe: Recipe, low: torch.dtype = torch.float32) -> Dials:
    """Dials of the finished TSAE."""
    return Dials(k=recipe.k, mix=1.0, low=low, **{n: getattr(recipe, n) for n in SHARED})


def trained_at(phase: str, recipe: Recipe) -> frozenset[str]:
    """Names of the tensors that learn in a phase; the static SAE is frozen in (a) and (b)."""
    static, temporal = frozenset(STATIC), frozenset(TEMPORAL) - {"scale"}
    if phase == "settle" or not recipe.learn_bridge:  # beta is 0 in "settle": no bridge acts
        temporal -= {"bridge"}
    return {"pretrain": static, "refine": static | temporal}.get(phase, temporal)


def rates(step: int, recipe: Recipe, phases: Phases) -> dict[str, float]:
    """Learning rate of every tensor at a step; the temporal ones warm up from their start on."""
    schedule = {"total": phases.total, "warmup": recipe.warmup}
    base = recipe.lr * rate_at(step, decay=recipe.decay, **schedule)
    into = rate_at(step - phases.pretrain, decay=1e-9, **schedule)
    temporal = dict.fromkeys(TEMPORAL, base * max(into, 0.0))
    del temporal["scale"]
    return dict.fromkeys(STATIC, base) | temporal


def train_step(
    trainer: Trainer, x: Float[Tensor, "batch seq d_in"], weight: Float[Tensor, "batch seq"],
    step: int, recipe: Recipe, phases: Phases, low: torch.dtype, *, begins: bool = True,
    starts: Starts = None, added: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> tuple[Trainer, dict[str, Any]]:  # fmt: skip
    """The trainer after a step, its tensors updated in place, and what a log line says of the step.

    `x` is 0 where `weight` is 0 (padding, at the end of a sequence). Where it `begins` new
    sequences, and at `starts`, where documents begin inside one, nothing is remembered; else it
    goes on from the step before, whose state is carried over without its gradient (truncated
    backpropagation through time, Williams & Peng 1990). In the log `loss` is the squared error of
    the reconstruction, and `fve` of an `x` that does not vary is 0. A static SAE is a TSAE that
    stays in the phase "pretrain". `added` is more of the loss, of the reconstruction and its
    squared error.
    """
    phase = tsae.phase_at(step, phases)
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
    after, info = _learn(trainer, explained, x, weight, rate, recipe, low)
    dialled = {"k": dials.k, "beta": dials.beta}
    return replace(after, state=_detached(state)), {"phase": phase} | info | dialled


def rival_step(
    trainer: Trainer, x: Float[Tensor, "batch seq d_in"], weight: Float[Tensor, "batch seq"],
    step: int, system: System, recipe: Recipe, total: int, low: torch.dtype,
) -> tuple[Trainer, dict[str, Any]]:  # fmt: skip
    """As `train_step`, of a rival: the same loop on its own loss, at one rate for all tensors.

    The rate is the schedule's; the recipe's `aux` is left out where the system does not revive its
    dead features so, and those it resamples are begun anew, without moments, after each quarter of
    the steps but the last: those that fired at none of its tokens.
    """
    _learning(trainer, frozenset(trainer.named) - frozenset(FIXED))
    schedule = {"total": total, "warmup": recipe.warmup, "decay": recipe.decay}
    rate = dict.fromkeys(trainer.named, recipe.lr * rate_at(step, **schedule))
    own = recipe if system.revive else replace(recipe, aux=0.0)
    explained = system.explain(trainer.named, x, weight, step / total)
    after, info = _learn(trainer, explained, x, weight, rate, own, low, system.window)
    with torch.no_grad():
        for name, value in explained.buffers.items():
            after.named[name].copy_(value)
    quarter = max(total // 4, 1)
    if system.resample is not None and (step + 1) % quarter == 0 and step + 1 + quarter <= total:
        _resample(after, system.resample, x, explained.x_hat.detach(), quarter, step)
    return after, {"phase": "all"} | info


def _resample(
    trainer: Trainer, resample: Any, x: Tensor, x_hat: Tensor, steps: int, seed: int
) -> None:
    """Begin the features anew that did not fire for this many steps; their moments are 0 again."""
    dead = trainer.life.idle >= steps * trainer.step_tokens[0]
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
    recipe: Recipe, low: torch.dtype, window: int = 1,
) -> tuple[Trainer, dict[str, Any]]:  # fmt: skip
    """The trainer after one step down the gradient, dead features revived; what a log says."""
    x_hat, codes, loss = explained.x_hat, explained.codes, explained.loss
    dead, spread = dead_features(trainer, recipe), _spread(x, weight)
    if len(dead) and trainer.named["W_enc"].requires_grad and recipe.aux > 0:
        static = Static(**{name: trainer.named[name] for name in STATIC})
        whole = in_windows(weight[..., None], window).amin(-1) > 0
        real, error = (in_windows(y, window)[whole][None] for y in (x, x - x_hat))
        revival = auxiliary_loss(error, real, static, dead, recipe.k_aux, low)
        loss = loss + recipe.aux * spread * revival
    loss.backward()
    norm = _descend(trainer, rate, recipe)
    with torch.no_grad():
        life = tsae.advance(trainer.life, codes, weight)
        n_tokens, error = int(weight.sum().item()), squared_error(x, x_hat, weight)
        info = {
            "loss": error.item(),
            "fve": 1 - (error / spread).item() if spread > 0 else 0.0,
            "l0": (((codes.vals > 0).sum(-1) * weight).sum() / max(n_tokens, 1)).item(),
            **{"dead": len(dead), "grad_norm": norm},
        }
    step_tokens = _recent((n_tokens, *trainer.step_tokens), recipe.patience)
    return replace(trainer, life=life, step_tokens=step_tokens), info


def dead_features(trainer: Trainer, recipe: Recipe) -> Int[Tensor, " dead"]:
    """Features that were off for `patience` tokens or more, in whole steps.

    A feature that was on anywhere in a step counts as on at its end.
    """
    patience = max(sum(trainer.step_tokens), recipe.patience)
    return (tsae.stage(trainer.life, dead_after=patience) == tsae.DEAD).nonzero()[:, 0]


def _recent(step_tokens: tuple[int, ...], enough: int) -> tuple[int, ...]:
    """The first of `step_tokens`, no more than it takes to sum to `enough`."""
    while sum(step_tokens[:-1]) >= enough:
        step_tokens = step_tokens[:-1]
    return step_tokens


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
    loss = squared_error(x - coupling * added.detach(), own, weight)
    return loss + squared_error(x - own.detach(), added, weight), own + added, codes, state


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
    codes = tsae.codes_with(params, ungated, seen.static, state.memory, dials)
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


def auxiliary_loss(
    error: Float[Tensor, "batch seq d_in"],
    x: Float[Tensor, "batch seq d_in"],
    static: Static,
    dead: Int[Tensor, " dead"],
    k_aux: int,
    low: torch.dtype = torch.float32,
) -> Float[Tensor, ""]:
    """`||error - error_hat||^2 / ||error - mean||^2` of the dead features alone (Gao et al. A.2).

    `error` is a constant; the `k_aux` largest of the dead count. 0 where nothing is dead or `error`
    does not vary (one token, say).
    """
    flat_x, target = (x - static.b_dec).detach().flatten(0, 1), error.detach().flatten(0, 1)
    spread = (target - target.mean(0)).square().sum()
    if len(dead) == 0 or not spread > 1e-10 * target.square().sum():  # less is rounding
        return error.new_zeros(())
    W_enc, b_enc = static.W_enc[:, dead], static.b_enc[dead]
    pre = tsae_kernels.product(flat_x, W_enc, low) + b_enc
    idx = tsae_kernels.topk_idx(pre.detach(), min(k_aux, len(dead)))
    error_hat = tsae_kernels.decode_codes(pre.gather(1, idx).relu(), idx, static.W_dec[dead])
    return (target - error_hat).square().sum() / spread


def tangent(
    grad: Float[Tensor, "d_sae d_in"], W_dec: Float[Tensor, "d_sae d_in"]
) -> Float[Tensor, "d_sae d_in"]:
    """The gradient less its part along the unit rows, which normalising undoes (Bricken 2023)."""
    return grad - (grad * W_dec).sum(1, keepdim=True) * W_dec


def _spread(x: Tensor, weight: Tensor) -> Tensor:
    n = weight.sum().clamp(min=1)
    mean = (x * weight[..., None]).sum((0, 1)) / n
    return ((x - mean).square().sum(-1) * weight).sum() / n


def _descend(trainer: Trainer, rate: dict[str, float], recipe: Recipe) -> float:
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
    return torch.stack(norms).norm().item()


DECAYS = (0.0, 0.5, 0.8, 0.95)  # of a unit's running mean, per token
AMPLITUDE = 0.3  # root mean square of a unit's input: tanh is near linear there
RIDGE_INPUT, RIDGE_OUTPUT = 0.02, 0.005  # relative to the mean variance of the regressors
START_ROWS = 64  # sequences per call


def integrators(
    params: Params,
    x: Float[Tensor, "batch seq d_in"],
    valid: Bool[Tensor, "batch seq"],
    dials: Dials,
    starts: Starts = None,
) -> Params:
    """`params` with a decoder LSTM that explains the static SAE's error on the valid tokens of `x`.

    Unit u of decay d: input gate 1 - d, forget gate d, output gate 0.95, candidate tanh(0.3 p_u r),
    where `r = (x_hat - b_dec) / scale` and p_u is one of the leading left singular directions, in
    the metric of r's covariance, of the ridge regression of the error on all running means; no
    recurrent weights. `W_out` is the ridge regression of the error on the units. Raises ValueError
    where no token is valid.
    """
    static, t = params.static, params.temporal
    if not valid.any():
        raise ValueError("integrators needs at least one valid token; got none")
    codes = [tsae.encode_static(rows, static, dials.k, dials.low) for rows in x.split(START_ROWS)]
    base = torch.cat([tsae.decode_static(row_codes, static) for row_codes in codes])
    r, error = (base - static.b_dec) / t.scale, ((x - base) / t.scale)[valid]
    means = [running_mean(r, decay, starts)[valid] for decay in DECAYS]
    W_x, b = _units(means, error, len(t.dec_W_h))
    zeros, W_h = r.new_zeros(START_ROWS, len(t.dec_W_h)), torch.zeros_like(t.dec_W_h)
    begun = [None] * len(codes) if starts is None else starts.split(START_ROWS)
    states = [
        tsae_kernels.lstm(rows, zero, zero, W_x, W_h, b, starts=new)[0]
        for rows, new in zip(r.split(START_ROWS), begun, strict=True)
        for zero in [zeros[: len(rows)]]
    ]
    W_out = _ridge(torch.cat(states)[valid], error, RIDGE_OUTPUT)
    return replace(params, temporal=replace(t, dec_W_x=W_x, dec_W_h=W_h, dec_b=b, W_out=W_out))


def _units(means: Sequence[Tensor], error: Tensor, hidden: int) -> tuple[Tensor, Tensor]:
    """Input weights (d_in, 4 hidden) and biases of the integrators."""
    d_in = error.shape[1]
    by_mean = _ridge(torch.cat(list(means), 1), error, RIDGE_INPUT).split(d_in)
    W_x, b = error.new_zeros(d_in, 4, hidden), error.new_zeros(4, hidden)
    for units, decay, mean, weight in zip(_shares(hidden), DECAYS, means, by_mean, strict=True):
        covariance = mean.t() @ mean / len(mean)
        jitter = 1e-4 * covariance.diagonal().mean().clamp(min=1e-12)
        root = torch.linalg.cholesky(covariance + jitter * torch.eye(len(covariance)).to(error))
        leading = torch.linalg.svd(root.t() @ weight)[0][:, : len(units)]
        # unit variance on the running mean; more units than dimensions: the rest starts silent
        directions = torch.linalg.solve_triangular(root.t(), leading, upper=True)
        W_x[:, 3, units[: directions.shape[1]]] = AMPLITUDE * directions
        forget = math.log(max(decay, 0.01) / (1 - max(decay, 0.01)))
        b[0, units], b[1, units], b[2, units] = 3.0, -forget, forget
    return W_x.flatten(1), b.flatten()


def _shares(hidden: int) -> list[list[int]]:
    """The units of each decay, in turn."""
    return [list(range(first, hidden, len(DECAYS))) for first in range(len(DECAYS))]


def running_mean(
    r: Float[Tensor, "batch seq d"], decay: float, starts: Starts = None
) -> Float[Tensor, "batch seq d"]:
    """`m_t = decay m_{t-1} + (1 - decay) r_t`, from 0 where a sequence begins and at `starts`."""
    out, mean = torch.empty_like(r), torch.zeros_like(r[:, 0])
    for t in range(r.shape[1]):
        mean = mean if starts is None else mean * ~starts[:, t, None]
        mean = decay * mean + (1 - decay) * r[:, t]
        out[:, t] = mean
    return out


def _ridge(A: Tensor, y: Tensor, ridge: float) -> Tensor:
    """`argmin ||y - A W||^2 + lambda ||W||^2`, lambda relative to the mean diagonal of `A^T A`."""
    gram = A.t() @ A
    penalty = ridge * gram.diagonal().mean().clamp(min=1e-12) * torch.eye(len(gram)).to(gram)
    return torch.linalg.solve(gram + penalty, A.t() @ y)
