"""Training: one loop for the static SAE and for the three phases of the TSAE, resumable to the bit.

The trainer owns its tensors and updates them in place; everything else here is a function of the
step.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

import tsae
from tsae import Dials, Memory, Params, Phases, State, Static, decode_static, encode_static
from tsae_kernels import lstm


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a static SAE or a TSAE is trained; one recipe for every arm of a comparison."""

    k: int = 32
    """active features a token"""
    d_sae: int = 4_608
    """features"""
    window: int = 16
    """tokens that the memory holds"""
    tau: float = 2.0
    """tokens in which the memory's reading falls by 1/e"""
    cap: float = 1.6
    """largest value of a code that the memory reads, in units of the root mean square of x -
    b_dec
    """
    beta: float = 1.3
    """strength of the memory in the selection"""
    hidden_enc: int = 64
    """units of the encoder LSTM"""
    hidden_dec: int = 256
    """units of the decoder LSTM"""
    gate: bool = True
    """whether the encoder LSTM gates the codes"""
    recur: bool = True
    """whether the decoder LSTM corrects the reconstruction"""
    learn_bridge: bool = True
    """whether the bridge's strength is learned per feature"""
    lr: float = 5e-3
    """peak learning rate of Adam"""
    lr_lstm: float = 1.0
    """rate of the LSTMs and gates relative to lr while they are introduced"""
    lr_lstm_refine: float = 1.0
    """rate of the LSTMs and gates relative to lr in the refinement"""
    lr_bridge: float = 1.0
    """rate of the bridge relative to lr"""
    warmup: int = 20
    """steps of linear warm-up, at the start and of the temporal parts at theirs"""
    decay: float = 0.3
    """last share of all steps in which the rate falls to 0"""
    pretrain: float = 0.5
    """share of the steps that pretrain the static SAE"""
    distil: float = 0.02
    """share of the steps of phase (a)"""
    introduce: float = 0.02
    """share of the steps of phase (b)"""
    k_multiple: float = 1.5
    """k at the start of the annealing, relative to its final value; 1 anneals nothing"""
    aux: float = 1 / 32
    """coefficient of the auxiliary loss that revives dead features"""
    dead_after: int = 60_000
    """tokens without firing after which a feature counts as dead"""
    k_aux: int = 256
    """dead features that the auxiliary loss uses a token"""
    clip: float = 1.0
    """largest norm of the gradient"""


@dataclass(frozen=True, eq=False, kw_only=True)
class Trainer:
    """Tensors by name, their Adam moments (inside `adam`), and the tokens since each feature was
    last on.
    """

    named: dict[str, Tensor]
    adam: torch.optim.Adam
    idle: Tensor
    teacher: Static | None  # the frozen static SAE of phase (a)
    state: State | None = (
        None  # of the streams that the next step reads on; None where it begins new ones
    )


TEMPORAL = tuple(tsae.Temporal.__dataclass_fields__)
STATIC = tuple(tsae.Static.__dataclass_fields__)


def start_trainer(
    named: dict[str, Tensor],
    recipe: Recipe,
    *,
    teacher: Static | None = None,
    before: Trainer | None = None,
) -> Trainer:
    """A trainer on copies of the tensors; a static SAE's four, or all of a TSAE's.

    From `before`, the trainer of its static SAE, it takes over the moments and the tokens since
    each feature was on: Adam starting anew in phase (a), where the student equals its teacher,
    makes steps of the rounding noise.
    """
    own = {
        name: _own(name, named[name]) for name in (*STATIC, *TEMPORAL) if name in named
    }  # files sort by name
    if teacher is not None:
        teacher = Static(**{name: _own(name, tensor) for name, tensor in vars(teacher).items()})
    groups = [{"params": [tensor], "name": name} for name, tensor in own.items() if name != "scale"]
    adam = torch.optim.Adam(groups, lr=recipe.lr, fused=True)
    idle = torch.zeros(len(own["b_enc"]), dtype=torch.int64, device=own["b_enc"].device)
    if before is not None:
        moments = {
            group["name"]: before.adam.state[group["params"][0]]
            for group in before.adam.param_groups
        }
        for group in adam.param_groups:
            if moments.get(group["name"]):
                adam.state[group["params"][0]] = {
                    key: v.clone() for key, v in moments[group["name"]].items()
                }
        idle = before.idle.clone()
    return Trainer(named=own, adam=adam, idle=idle, teacher=teacher)


def _own(name: str, tensor: Tensor) -> Tensor:
    """A copy; `W_enc` with its columns contiguous, which is how its gradient comes."""
    tensor = tensor.detach()
    return (
        tensor.t().clone(memory_format=torch.contiguous_format).t()
        if name == "W_enc"
        else tensor.clone()
    )


def snapshot(trainer: Trainer) -> dict[str, Tensor]:
    """Everything that the next step depends on, by name: what a checkpoint saves."""
    out = {f"param.{name}": tensor for name, tensor in trainer.named.items()} | {
        "idle": trainer.idle
    }
    for group in trainer.adam.param_groups:
        for key, value in trainer.adam.state[group["params"][0]].items():
            out[f"adam.{group['name']}.{key}"] = value
    if trainer.teacher is not None:
        out |= {f"teacher.{name}": tensor for name, tensor in vars(trainer.teacher).items()}
    if trainer.state is not None:
        named = vars(trainer.state) | vars(trainer.state.memory)
        out |= {
            f"state.{name}": torch.as_tensor(value)
            for name, value in named.items()
            if name != "memory"
        }
    return out


def restore(saved: dict[str, Tensor], recipe: Recipe) -> Trainer:
    """The trainer that `snapshot` was taken of; its next steps are the same to the bit."""

    def part(prefix: str) -> dict[str, Tensor]:
        return {
            name.removeprefix(prefix): value
            for name, value in saved.items()
            if name.startswith(prefix)
        }

    teacher = part("teacher.")
    trainer = start_trainer(part("param."), recipe, teacher=Static(**teacher) if teacher else None)
    for group in trainer.adam.param_groups:
        state = part(f"adam.{group['name']}.")
        if state:
            trainer.adam.state[group["params"][0]] = {
                key: _own(group["name"] if value.ndim == 2 else "", value)
                for key, value in state.items()
            }
    streams = part("state.")
    memory = (
        Memory(streams.pop("vals"), streams.pop("idx"), int(streams.pop("pushed")))
        if streams
        else None
    )
    state = None if memory is None else State(memory=memory, **streams)
    return replace(trainer, idle=saved["idle"].clone(), state=state)


def dials_at(step: int, recipe: Recipe, phases: Phases, low: torch.dtype) -> Dials:
    """Dials of a TSAE at a step counted from the start of its static SAE's pretraining."""
    mix = tsae.mix_at(step, phases)
    return Dials(
        k=tsae.k_at(step, phases, k=recipe.k, multiple=recipe.k_multiple),
        window=recipe.window,
        tau=recipe.tau,
        cap=recipe.cap,
        beta=recipe.beta,
        mix=mix,
        gate=recipe.gate,
        recur=recipe.recur,
        low=low,
    )


def final_dials(recipe: Recipe, low: torch.dtype = torch.float32) -> Dials:
    """Dials of the finished TSAE."""
    return dials_at(10**9, recipe, tsae.Phases(pretrain=0, distil=0, introduce=0, refine=0), low)


def trained_at(phase: str, recipe: Recipe) -> frozenset[str]:
    """Names of the tensors that learn in a phase."""
    if phase == "pretrain":
        return frozenset(STATIC)
    temporal = {
        n
        for n in TEMPORAL
        if n not in ("bridge", "scale") or (n == "bridge" and recipe.learn_bridge)
    }
    if phase == "distil":
        return frozenset(STATIC) | {n for n in temporal if n != "bridge"}
    return frozenset(temporal) if phase == "introduce" else frozenset(STATIC) | temporal


def rates(step: int, recipe: Recipe, phases: Phases, phase: str) -> dict[str, float]:
    """Learning rate of every tensor at a step."""
    base = recipe.lr * tsae.rate_at(
        step, total=phases.total, warmup=recipe.warmup, decay=recipe.decay
    )
    into = tsae.rate_at(
        step - phases.pretrain, total=phases.total, warmup=recipe.warmup, decay=1e-9
    )
    lstm = recipe.lr_lstm_refine if phase == "refine" else recipe.lr_lstm
    temporal = {n: recipe.lr_bridge if n == "bridge" else lstm for n in TEMPORAL if n != "scale"}
    return {n: base for n in STATIC} | {
        n: base * max(into, 0.0) * ratio for n, ratio in temporal.items()
    }


def train_step(
    trainer: Trainer, x: Float[Tensor, "batch seq d_in"], weight: Float[Tensor, "batch seq"], step: int,
    recipe: Recipe, phases: Phases, low: torch.dtype, *, begins: bool = True,
) -> tuple[Trainer, dict[str, Any]]:  # fmt: skip
    """One step; the trainer's tensors are updated in place. Returns it, and what a log line says of
    the step.

    `x` is 0 where `weight` is 0 (padding, at the end of a sequence). Where it `begins` new
    sequences nothing is remembered; else it goes on from the step before, whose state is carried
    over without its gradient (truncated backpropagation through time, Williams & Peng 1990). `fve`
    of an `x` that does not vary is 0. A static SAE is a TSAE that stays in the phase "pretrain".
    """
    phase = tsae.phase_at(step, phases)
    learning = trained_at(phase, recipe)
    for name, tensor in trainer.named.items():
        tensor.requires_grad_(name in learning)
        tensor.grad = None
    dials = dials_at(step, recipe, phases, low)
    dials = replace(dials, k=recipe.k) if phase == "pretrain" else dials
    state = None if begins else trainer.state
    loss, x_hat, codes, state = _loss(trainer, x, weight, phase, dials, state)
    dead = (trainer.idle >= recipe.dead_after).nonzero()[:, 0]
    static = Static(**{name: trainer.named[name] for name in STATIC})
    total = loss
    spread = _spread(x, weight)
    if len(dead) and "W_enc" in learning:
        real, error = x[weight > 0][None], (x - x_hat)[weight > 0][None]
        total = loss + recipe.aux * spread * tsae.auxiliary_loss(
            error, real, static, dead, recipe.k_aux, low
        )
    total.backward()
    norm = _descend(trainer, rates(step, recipe, phases, phase), recipe)
    with torch.no_grad():
        idle = _idle(trainer.idle, codes, weight)
        error = tsae.squared_error(x, x_hat, weight) if phase == "distil" else loss.detach()
        info = {
            "loss": loss.item(),
            "fve": 1 - (error / spread).item() if spread > 0 else 0.0,
            "l0": (((codes.vals > 0).sum(-1) * weight).sum() / weight.sum().clamp(min=1)).item(),
            "dead": len(dead),
            "k": dials.k,
            "mix": dials.mix,
            "grad_norm": norm,
        }
    return replace(trainer, idle=idle, state=_detached(state)), {"phase": phase} | info


def _detached(state: State | None) -> State | None:
    if state is None:
        return None
    memory = replace(state.memory, vals=state.memory.vals.detach())
    rest = {name: tensor.detach() for name, tensor in vars(state).items() if name != "memory"}
    return State(memory=memory, **rest)


def _loss(
    trainer: Trainer, x: Tensor, weight: Tensor, phase: str, dials: Dials, state: State | None
):
    if phase == "pretrain":
        static = Static(**{name: trainer.named[name] for name in STATIC})
        codes = tsae.encode_static(x, static, dials.k, dials.low)
        x_hat = tsae.decode_static(codes, static)
        return tsae.squared_error(x, x_hat, weight), x_hat, codes, None
    params = tsae.params_from(trainer.named)
    if phase == "distil" and trainer.teacher is not None:
        return tsae.distillation_loss(params, x, trainer.teacher, dials, weight, state)
    x_hat, codes, state = tsae.forward(params, x, dials, state)
    return tsae.squared_error(x, x_hat, weight), x_hat, codes, state


def _spread(x: Tensor, weight: Tensor) -> Tensor:
    n = weight.sum().clamp(min=1)
    mean = (x * weight[..., None]).sum((0, 1)) / n
    return ((x - mean).square().sum(-1) * weight).sum() / n


def _idle(idle: Tensor, codes: tsae.Codes, weight: Tensor) -> Tensor:
    on = (codes.vals > 0) & (weight > 0)[..., None]
    fired = torch.zeros_like(idle, dtype=torch.bool)
    fired[codes.idx[on]] = True
    return torch.where(fired, 0, idle + int(weight.sum().item()))


def _descend(trainer: Trainer, rate: dict[str, float], recipe: Recipe) -> float:
    """Clip, step, normalise the decoder's rows; the norm of the gradient before clipping."""
    with torch.no_grad():
        W_dec = trainer.named["W_dec"]
        if W_dec.grad is not None:
            W_dec.grad = tsae.tangent(W_dec.grad, W_dec)
        moving = [tensor for tensor in trainer.named.values() if tensor.grad is not None]
        norm = torch.nn.utils.clip_grad_norm_(moving, recipe.clip)
        for group in trainer.adam.param_groups:
            group["lr"] = rate[group["name"]]
        trainer.adam.step()
        if W_dec.grad is not None:
            W_dec /= W_dec.norm(dim=1, keepdim=True)
        if "bridge" in trainer.named:
            bridge = trainer.named["bridge"].clamp_(min=0.0)
            bridge /= bridge.mean().clamp(
                min=1e-6
            )  # beta says how strong, the bridge says for which features
    return norm.item()


DECAYS = (0.0, 0.5, 0.8, 0.95)  # of what was decoded, a token
AMPLITUDE = 0.3  # root mean square of a unit's input: tanh is near linear there
RIDGE_INPUT, RIDGE_OUTPUT = 0.02, 0.005  # relative to the mean variance of the regressors
START_ROWS = 64  # sequences a call


def integrators(
    params: Params,
    x: Float[Tensor, "batch seq d_in"],
    valid: Bool[Tensor, "batch seq"],
    dials: Dials,
) -> Params:
    """`params` with a decoder LSTM that explains the static SAE's error on the valid tokens of `x`
    linearly.

    Unit u of decay d: input gate 1 - d, forget gate d, output gate 0.95, candidate tanh(0.3 p_u r),
    where `r = (x_hat - b_dec) / scale` and p_u is one of the leading left singular directions, in
    the metric of r's covariance, of the ridge regression of the error on all running means; no
    recurrent weights. `W_out` is the ridge regression of the error on the units. Raises ValueError
    where no token is valid.
    """
    static, t = params.static, params.temporal
    if not valid.any():
        raise ValueError("integrators needs at least one valid token; got none")
    parts = [
        decode_static(encode_static(part, static, dials.k, dials.low), static)
        for part in x.split(START_ROWS)
    ]
    base = torch.cat(parts)
    r, error = (base - static.b_dec) / t.scale, ((x - base) / t.scale)[valid]
    W_x, b = _units(r, error, valid, len(t.dec_W_h))
    zeros, W_h = r.new_zeros(START_ROWS, len(t.dec_W_h)), torch.zeros_like(t.dec_W_h)
    states = [
        lstm(part, zeros[: len(part)], zeros[: len(part)], W_x, W_h, b)[0]
        for part in r.split(START_ROWS)
    ]
    W_out = _ridge(torch.cat(states)[valid], error, RIDGE_OUTPUT)
    return replace(params, temporal=replace(t, dec_W_x=W_x, dec_W_h=W_h, dec_b=b, W_out=W_out))


def _units(r: Tensor, error: Tensor, valid: Tensor, hidden: int) -> tuple[Tensor, Tensor]:
    """Input weights (d_in, 4 hidden) and biases of the integrators."""
    means = [running_mean(r, decay)[valid] for decay in DECAYS]
    by_mean = _ridge(torch.cat(means, 1), error, RIDGE_INPUT).split(r.shape[-1])
    W_x, b = r.new_zeros(r.shape[-1], 4, hidden), r.new_zeros(4, hidden)
    for units, decay, mean, weight in zip(_shares(hidden), DECAYS, means, by_mean, strict=True):
        covariance = mean.t() @ mean / len(mean)
        jitter = 1e-4 * covariance.diagonal().mean().clamp(min=1e-12)
        root = torch.linalg.cholesky(covariance + jitter * torch.eye(len(covariance)).to(r))
        leading = torch.linalg.svd(root.t() @ weight)[0][:, : len(units)]
        found = torch.linalg.solve_triangular(
            root.t(), leading, upper=True
        )  # unit variance on the running mean
        W_x[:, 3, units[: found.shape[1]]] = (
            AMPLITUDE * found
        )  # more units than dimensions: the rest starts silent
        forget = math.log(max(decay, 0.01) / (1 - max(decay, 0.01)))
        b[0, units], b[1, units], b[2, units] = 3.0, -forget, forget
    return W_x.flatten(1), b.flatten()


def _shares(hidden: int) -> list[list[int]]:
    """The units of each decay, in turn."""
    return [list(range(at, hidden, len(DECAYS))) for at in range(len(DECAYS))]


def running_mean(r: Float[Tensor, "batch seq d"], decay: float) -> Float[Tensor, "batch seq d"]:
    """`m_t = decay m_{t-1} + (1 - decay) r_t`, from 0 at each sequence's start."""
    out, mean = torch.empty_like(r), torch.zeros_like(r[:, 0])
    for t in range(r.shape[1]):
        mean = decay * mean + (1 - decay) * r[:, t]
        out[:, t] = mean
    return out


def _ridge(A: Tensor, y: Tensor, ridge: float) -> Tensor:
    """`argmin ||y - A W||^2 + lambda ||W||^2`, lambda relative to the mean diagonal of `A^T A`."""
    gram = A.t() @ A
    penalty = ridge * gram.diagonal().mean().clamp(min=1e-12) * torch.eye(len(gram)).to(gram)
    return torch.linalg.solve(gram + penalty, A.t() @ y)
