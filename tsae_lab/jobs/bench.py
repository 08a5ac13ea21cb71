"""Speed of training: `python experiment.py bench` compares our steps with a plain dense SAE's.

All arms take the same tokens and the same recipe (loss, gradient clipping, Adam, unit decoder
rows), and take turns, so that a drift of the machine's speed falls on all of them alike. The limit
of a step is what its products and its memory traffic would take at the rates of a large product and
of a large copy on the same device.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Any

import torch
import typer
from jaxtyping import Float
from torch import Tensor, nn

import tsae
import tsae_kernels
from tsae_lab import devices
from tsae_lab.data import language_model
from tsae_lab.jobs import peer_steps, peers, schedules, training
from tsae_lab.jobs.training import Recipe, final_dials
from tsae_lab.measures.evaluation import wait_for
from tsae_lab.terminal import cell, cpu_threads, fast_memory, one_line_errors, print_table

ALONE = schedules.Phases(pretrain=10**6, settle=0, introduce=0, refine=0)
REFINE = schedules.Phases(pretrain=0, settle=0, introduce=0, refine=10**6)
STEP = 10_000  # in the middle of either: no warm-up, no decay
DENSE = "plain dense SAE, fp32"
Arms = dict[str, Callable[[], object]]


@dataclass(frozen=True, eq=False, kw_only=True)
class Job:
    """What every arm is given."""

    x: Float[Tensor, "batch seq d_in"]
    recipe: Recipe
    low: torch.dtype
    static: tsae.Static

    @property
    def tokens(self) -> int:
        """Tokens per step."""
        return self.x.shape[0] * self.x.shape[1]

    @property
    def device(self) -> torch.device:
        """Where the arms run."""
        return self.x.device


class DenseSAE(nn.Module):
    """A top-k SAE as one writes it in PyTorch: dense codes, autograd, everything in float32."""

    def __init__(self, static: tsae.Static, k: int):
        super().__init__()
        self.k = k
        self.W_enc = nn.Parameter(static.W_enc.clone())
        self.b_enc = nn.Parameter(static.b_enc.clone())
        self.W_dec = nn.Parameter(static.W_dec.clone())
        self.b_dec = nn.Parameter(static.b_dec.clone())

    def forward(self, x: Float[Tensor, "tokens d_in"]) -> Float[Tensor, "tokens d_in"]:
        """The reconstruction."""
        pre = (x - self.b_dec) @ self.W_enc + self.b_enc
        vals, idx = pre.topk(self.k, dim=-1, sorted=False)
        acts = torch.zeros_like(pre).scatter(-1, idx, vals.relu())
        return acts @ self.W_dec + self.b_dec


def dense_step(job: Job) -> Callable[[], object]:
    """One training step of `DenseSAE`."""
    sae, x = DenseSAE(job.static, job.recipe.k), job.x.flatten(0, 1)
    adam = torch.optim.Adam(sae.parameters(), lr=job.recipe.lr, fused=True)

    def step() -> Tensor:
        adam.zero_grad()
        loss = (x - sae(x)).square().sum(-1).mean()
        loss.backward()
        with torch.no_grad():
            grad, W_dec = sae.W_dec.grad, sae.W_dec
            assert grad is not None
            grad -= (grad * W_dec).sum(1, keepdim=True) * W_dec
            torch.nn.utils.clip_grad_norm_(sae.parameters(), job.recipe.clip)
            adam.step()
            W_dec /= W_dec.norm(dim=1, keepdim=True)
        return loss.detach()

    return step


def our_step(job: Job, *, temporal: bool) -> Callable[[], object]:
    """One `training.train_step` of the static SAE, or of the whole TSAE in its refinement."""
    named = tsae.tensors(_job_params(job) if temporal else job.static)
    trainers = [training.start_trainer(named, job.recipe)]
    weight, wait = job.x.new_ones(job.x.shape[:2]), job.device.type == "cpu"

    def step() -> dict[str, Any]:
        phases = REFINE if temporal else ALONE
        trainers[0], info = training.train_step(
            trainers[0], job.x, weight, STEP, job.recipe, phases, job.low, begins=False, wait=wait
        )
        return info

    return step


def _job_params(job: Job) -> tsae.Params:
    """A TSAE on the job's static SAE."""
    g, recipe = torch.Generator().manual_seed(1), job.recipe
    sizes = {"hidden_enc": recipe.hidden_enc, "hidden_dec": recipe.hidden_dec}
    return tsae.from_static(job.static, scale=1.0, generator=g, **sizes)


def _arms_of(job: Job) -> Arms:
    """The steps that are compared, and the product that none of them can do without."""
    plain = replace(job, low=torch.float32)
    arms = {
        DENSE: dense_step(job),
        f"static SAE, {_name_of(job.low)} products": our_step(job, temporal=False),
        f"TSAE, {_name_of(job.low)} products": our_step(job, temporal=True),
    }
    if job.low != torch.float32:
        arms["static SAE, fp32 products"] = our_step(plain, temporal=False)
        arms["TSAE, fp32 products"] = our_step(plain, temporal=True)
    for dtype in dict.fromkeys((job.low, torch.float32)):
        arms[_product_of(dtype)] = lambda low=dtype: tsae.pre_acts(job.x, job.static, low)
    return arms


def _name_of(dtype: torch.dtype) -> str:
    """Short name of a dtype: bf16, fp32, else its own."""
    return {torch.bfloat16: "bf16", torch.float32: "fp32"}.get(dtype, str(dtype))


def _product_of(low: torch.dtype) -> str:
    """The name of the arm that is the encoder's product alone."""
    return f"encoder product alone, {_name_of(low)}"


def _lstm_part(
    job: Job, W_x: Tensor, W_h: Tensor, b: Tensor, *, onward: Tensor | None = None
) -> Callable[[], object]:
    """An LSTM over the job's x, forward and backward; with `onward`, its states times that too."""
    x = job.x if onward is None else _leaf(job.x)
    w_x, w_h, bias = (_leaf(w) for w in (W_x, W_h, b))
    zeros = job.x.new_zeros(len(job.x), len(W_h))

    def forward() -> Tensor:
        hs, _, _ = tsae_kernels.lstm(x, zeros, zeros, w_x, w_h, bias, job.low)
        if onward is None:
            return hs
        return tsae_kernels.product(hs.flatten(0, 1), _leaf(onward), job.low)

    return _through(forward)


def _through(kernel: Callable[..., Tensor], *tensors: Tensor) -> Callable[[], object]:
    """A kernel, forward and backward."""

    def both_ways() -> None:
        out = kernel(*tensors)
        out.backward(torch.ones_like(out))

    return both_ways


def _parts_of(job: Job) -> Arms:
    """The parts of a TSAE's step, forward and backward, each by itself."""
    params, recipe = _job_params(job), job.recipe
    static, t = params.static, params.temporal
    dials, k = training.final_dials(recipe, job.low), recipe.k
    state = tsae.start_state(params, len(job.x), dials)
    flat_x, flat_pre = job.x.flatten(0, 1), tsae.pre_acts(job.x, static, job.low).flatten(0, 1)
    idx = tsae_kernels.topk_idx(flat_pre, k)
    chosen = flat_pre.gather(1, idx)
    vals = chosen.float().relu()
    trainer = training.start_trainer(tsae.tensors(params), recipe)
    for tensor in trainer.named.values():
        tensor.grad = torch.full_like(tensor, 1e-3)

    def update() -> None:
        training.tangent(trainer.named["W_dec"], trainer.named["W_dec"])
        moving = [w for w in trainer.named.values() if w.grad is not None]
        torch.nn.utils.clip_grad_norm_(moving, recipe.clip)
        trainer.adam.step()

    hs = job.x.new_ones(len(idx), len(t.enc_W_h))
    encoder = _leaf(static.W_enc), _leaf(static.b_enc)
    return {
        "encoder product": lambda: tsae.pre_acts(job.x, static, job.low),
        "top-k, twice": lambda: [tsae_kernels.topk_idx(flat_pre, k) for _ in range(2)],
        "selection": lambda: tsae.select(params, job.x - static.b_dec, dials, state.memory),
        "kept values": _through(tsae_kernels.kept_values, chosen, idx, flat_x, *encoder),
        "encoder LSTM": _lstm_part(job, t.enc_W_x, t.enc_W_h, t.enc_b),
        "gates": _through(
            tsae_kernels.gate_values, _leaf(hs), _leaf(t.W_gate), _leaf(t.b_gate), idx
        ),
        "decoder": _through(tsae_kernels.decode_codes, _leaf(vals), idx, _leaf(static.W_dec)),
        "decoder LSTM and its output": _lstm_part(
            job, t.dec_W_x, t.dec_W_h, t.dec_b, onward=t.W_out
        ),
        "clipping and Adam": update,
    }


def _leaf(tensor: Tensor) -> Tensor:
    """The tensor detached, as a leaf that requires a gradient."""
    return tensor.detach().requires_grad_()


def medians(arms: Arms, repeats: int, device: torch.device) -> dict[str, float]:
    """Median seconds of each arm; they take turns, after one turn that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(repeats + 1):
        for name, arm in arms.items():
            wait_for(device)
            began = time.perf_counter()
            arm()
            wait_for(device)
            if turn:
                seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(turns) for name, turns in seconds.items()}


def device_rates(device: torch.device, low: torch.dtype, repeats: int) -> tuple[float, float]:
    """Operations per second of a large product in `low`, bytes per second of a large copy."""
    n, size = (1_024, 2**24) if device.type == "cpu" else (8_192, 2**28)
    A, source = torch.ones(n, n, dtype=low, device=device), torch.ones(size, device=device)
    out, target = torch.empty_like(A), torch.empty_like(source)
    arms: Arms = {"product": lambda: torch.mm(A, A, out=out), "copy": lambda: target.copy_(source)}
    took = medians(arms, repeats, device)
    return 2 * n**3 / took["product"], 2 * source.nbytes / took["copy"]


def work(job: Job, *, temporal: bool) -> tuple[int, int]:
    """Operations of the products that a step cannot do without, and bytes that it has to move.

    Products: the encoder's, forward; the LSTMs' and their output's, both ways. Bytes: the
    pre-activations written and read, `k` rows of weights or activations per token in each of four
    sparse products (five with gates, whose rows are narrow), and weights, gradients, moments.
    """
    recipe, n, d_in = job.recipe, job.tokens, job.x.shape[2]
    units, own, d_sae, k = recipe.hidden_enc, recipe.hidden_dec, recipe.d_sae, recipe.k
    low, full = job.low.itemsize, job.x.element_size()
    products, n_weights = 2 * n * d_in * d_sae, 2 * d_in * d_sae
    moved = 2 * low * n * d_sae + 4 * full * n * k * d_in
    if temporal:
        recurrent = sum(4 * h * (d_in + h) for h in (units, own)) + own * d_in
        products += 6 * n * recurrent
        n_weights += recurrent + units * d_sae
        moved += 2 * low * n * d_sae + 3 * full * n * k * units
    return products, moved + 7 * full * n_weights  # Adam reads four and writes three


def _show_steps(seconds: dict[str, float], job: Job, peaks: dict[str, float | None]) -> None:
    """Per arm: milliseconds, tokens per second, times the dense arm, shares of encoder product and
    of the limit, GB at most.
    """
    rows, n = [], torch.get_num_threads()
    speed, copied = device_rates(job.device, job.low, 7)
    for name, took in seconds.items():
        own = _product_of(job.low if _name_of(job.low) in name else torch.float32)
        ratio, share, limit = seconds[DENSE] / took, seconds[own] / took, "-"
        if name.endswith(f"SAE, {_name_of(job.low)} products"):
            products, moved = work(job, temporal=name.startswith("TSAE"))
            limit = f"{(products / speed + moved / copied) / took:.0%}"
        speeds = f"{took * 1e3:.1f}", f"{job.tokens / took:,.0f}"
        peak = cell(peaks[name], ".2f")
        rows.append((name, *speeds, f"{ratio:.2f}", f"{share:.0%}", limit, peak))
    where = f"{n} threads" if job.device.type == "cpu" else str(job.device)
    title = f"one step of {job.tokens:,} tokens, {where}"
    known = f"{speed / 1e12:.3g} T operations/s in {_name_of(job.low)}, {copied / 1e9:.3g} GB/s"
    columns = ("arm", "ms", "tokens/s", "x dense", "encoder product", "limit", "peak GB")
    print_table(title, columns, rows, caption=f"limit: at the device's {known}")


def _show_parts(seconds: dict[str, float], whole: float) -> None:
    """What takes the time in a TSAE's step."""
    shown = dict(seconds)
    selection = shown.pop("selection")
    shown["memory"] = max(selection - shown["top-k, twice"] - shown["encoder product"], 0.0)
    # each alone may take more than in its place: what is left is not below 0
    shown["everything else"] = max(whole - sum(shown.values()), 0.0)
    slowest_first = sorted(shown.items(), key=lambda item: -item[1])
    rows = [(name, f"{took * 1e3:.1f}", f"{took / whole:.0%}") for name, took in slowest_first]
    title = "parts of the TSAE step, each alone, forward and backward"
    print_table(title, ("part", "ms", "of the step"), rows)


def bench_command(
    batch: Annotated[int, typer.Option(min=1, help="sequences per step")] = 64,
    seq: Annotated[int, typer.Option(min=2, help="tokens of a sequence that a step reads")] = 63,
    d_in: Annotated[
        int, typer.Option("--d_in", "--d-in", min=1, help="width of the activations")
    ] = 576,
    d_sae: Annotated[int, typer.Option("--d_sae", "--d-sae", help="features")] = Recipe.d_sae,
    k: Annotated[int, typer.Option(help="active features per token")] = Recipe.k,
    window: Annotated[int, typer.Option(help="tokens that the memory holds")] = Recipe.window,
    hidden_enc: Annotated[
        int, typer.Option("--hidden_enc", "--hidden-enc", min=1)
    ] = Recipe.hidden_enc,
    hidden_dec: Annotated[
        int, typer.Option("--hidden_dec", "--hidden-dec", min=1)
    ] = Recipe.hidden_dec,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
    repeats: Annotated[int, typer.Option(min=1, help="turns of every arm; medians are shown")] = 7,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0 takes all cores")] = 0,
    profile: Annotated[
        bool, typer.Option("--profile", help="show the operations of one TSAE step too")
    ] = False,
    peers_python: Annotated[
        str, typer.Option("--peers", metavar="PYTHON", help=f"with {', '.join(peer_steps.PEERS)}")
    ] = "",
) -> None:
    """Tokens per second of training: dense fp32 SAE, static SAE, TSAE; and what takes the time."""
    recipe = Recipe(
        k=k,
        d_sae=d_sae,
        window=window,
        hidden_enc=hidden_enc,
        hidden_dec=hidden_dec,
        dead_after=10**12,
    )
    with one_line_errors():
        tsae.check_dials(final_dials(recipe), d_sae=d_sae)
        place = devices.check_device(device)
        other = peers_python and peers.interpreter(peers_python)
        fast_memory()
        devices.same_sums()
        torch.set_num_threads(cpu_threads(threads))
        _bench(recipe, (batch, seq, d_in), place, repeats, profile=profile)
        if other:
            _beside_peers(other, job_of(recipe, (batch, seq, d_in), place), repeats)


def _beside_peers(python: str, job: Job, repeats: int) -> None:
    """Our static step, with float32 products too, beside those of other libraries."""
    recipe = job.recipe
    about = {"shape": list(job.x.shape), "d_sae": recipe.d_sae, "k": recipe.k, "lr": recipe.lr}
    about |= {"device": str(job.device), "threads": torch.get_num_threads(), "repeats": repeats}
    arms = {
        f"ours, {_name_of(low)}": our_step(replace(job, low=low), temporal=False)
        for low in dict.fromkeys((job.low, torch.float32))
    }
    peers.show_peers(python, about, arms)


def job_of(recipe: Recipe, shape: tuple[int, int, int], device: torch.device) -> Job:
    """A random static SAE on random activations of shape (batch, seq, d_in)."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=g).to(device)
    static = tsae.init_static(x.mean((0, 1)), recipe.d_sae, generator=g)
    return Job(x=x, recipe=recipe, low=language_model.fast_dtype(x.device), static=static)


def _peak(arm: Callable[[], object], device: torch.device) -> float | None:
    devices.start_peak(device)
    arm()
    return devices.peak_gb(device)


def _bench(
    recipe: Recipe, shape: tuple[int, int, int], device: torch.device, repeats: int, *,
    profile: bool,
) -> None:  # fmt: skip
    job = job_of(recipe, shape, device)
    arms = _arms_of(job)
    seconds = medians(arms, repeats, device)
    _show_steps(seconds, job, {name: _peak(arm, device) for name, arm in arms.items()})
    full = f"TSAE, {_name_of(job.low)} products"
    _show_parts(medians(_parts_of(job), repeats, device), seconds[full])
    if profile:
        with torch.profiler.profile() as profiled:
            arms[full]()
            wait_for(device)
        operations = profiled.key_averages()
        typer.echo(operations.table("self_cpu_time_total", 24, max_name_column_width=40))
