# pyright: reportMissingImports=false
"""The published trainers on our activations: top-k and batch top-k, beside our own.

By hand, from the root of the repository; OTHER is an environment of dictionary-learning 0.1.0,
sae-lens 6.54 or eai-sparsify 1.3, DATA a new folder:

    python tests/oracles/trainers.py ours DATA --steps=100 --d_sae=1152
    OTHER/bin/python tests/oracles/trainers.py dictionary_learning DATA
    OTHER/bin/python tests/oracles/trainers.py saelens DATA
    OTHER/bin/python tests/oracles/trainers.py sparsify DATA
    python tests/oracles/trainers.py compare DATA

All read the same batches in the same order, have the same width, k, steps and share of warm-up and
decay (sparsify's default optimiser has neither), and three rates: ours times .2, .5 and 1 for Adam,
the library's own times .5, 1 and 2 for sparsify. FVE is of the same validation tokens, by
`metrics.fve`; all else is the default of either. Batch top-k is measured with its threshold, but
sae-lens's with its selection over 2,048 tokens: the running mean of its threshold (.99 a step)
begins at 0 and is too low after so few steps.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

sys.path[:0] = [str(Path(__file__).parents[2])]
FACTORS = (0.5, 1.0, 0.2)  # of our rate
OWN_FACTORS = (1.0, 0.5, 2.0)  # of sparsify's
Arms = Iterator[tuple[str, float, Callable[[Tensor], Tensor]]]
"""Kind, rate and reconstruction of each finished SAE."""


# ------------------------------------------------------------------------------------------- ours


def write_ours(data: Path, about: argparse.Namespace) -> None:
    """Batches, validation tokens and settings; reconstructions of our static and batch top-k."""
    import experiment
    from tsae_lab.jobs import entries, plan, training
    from tsae_lab.measures import evaluation
    from tsae_lab.rivals.system import Run

    config = plan.Config(
        datasets=about.text, steps=about.steps, d_sae=about.d_sae, k=about.k, seeds=1
    )
    lm = plan.lm_of(config)
    unit = plan.Unit(
        config=config, data=plan.load_data(config, lm, about.text), seed=0, folder=data,
        log=data / "log.jsonl", device=lm.device, low=plan.products(config, lm.device),
    )  # fmt: skip
    data.mkdir(parents=True)
    batches = [experiment.batch_at(unit, step) for step in range(about.steps)]
    tokens = [x[weight > 0].bfloat16() for x, weight in batches]
    store = unit.data.val
    valid = store.tokens.valid
    save_file({f"step_{i:05}": x for i, x in enumerate(tokens)}, data / "train.safetensors")
    save_file({"x": store.x(slice(None))[valid].bfloat16()}, data / "val.safetensors")
    about_all = {"d_sae": config.d_sae, "k": config.k, "lr": config.lr, "steps": config.steps}
    about_all |= {"warmup": config.warmup, "decay": config.decay}
    (data / "about.json").write_text(json.dumps(about_all))

    def save(kind: str, run: Run) -> None:
        with torch.inference_mode():
            x_hat = torch.cat([run(x)[0] for x in store.x(slice(None)).split(16)])
        save_file({"x_hat": x_hat[valid]}, data / f"ours_{kind}_{config.lr:g}.safetensors")

    _, static, _ = experiment.train_static(unit)
    import tsae

    save("topk", evaluation.sae_run(tsae.static_sae(training.static_of(static), config.k)))
    around = entries.Surroundings(low=unit.low, d_in=unit.data.train.d_in, distinct=lambda n: n)
    entry = entries.ENTRIES["batch_topk"]
    assert entry.make is not None
    system = entry.make(config, around)
    trainer, _ = experiment.train_rival(unit, "batch_topk", system)
    named = {n: t.detach() for n, t in trainer.named.items()}
    save("batch_topk", lambda x: system.run(named, x))


# ----------------------------------------------------------------------------------------- theirs


def dictionary_learning(batches: list[Tensor], about: dict[str, Any]) -> Arms:
    from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
    from dictionary_learning.trainers.top_k import TopKTrainer

    n = len(batches)
    for kind, trainer_class in (("topk", TopKTrainer), ("batch_topk", BatchTopKTrainer)):
        for factor in FACTORS:
            trainer = trainer_class(
                steps=n, activation_dim=batches[0].shape[1], dict_size=about["d_sae"],
                k=about["k"], layer=0, lm_name="", lr=factor * about["lr"], device="cpu", seed=0,
                warmup_steps=about["warmup"], decay_start=round(n * (1 - about["decay"])),
                threshold_start_step=n // 2, threshold_beta=0.9,
            )  # fmt: skip
            for step, x in enumerate(batches):
                trainer.update(step, x.float())
            ae, by_threshold = trainer.ae, {"use_threshold": True} if kind != "topk" else {}
            yield kind, trainer.lr, lambda x: ae.decode(ae.encode(x, **by_threshold))  # noqa: B023


def saelens(batches: list[Tensor], about: dict[str, Any]) -> Arms:
    import sae_lens
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    n, tokens = len(batches), sum(len(x) for x in batches)
    for kind, name in (("topk", "TopK"), ("batch_topk", "BatchTopK")):
        for factor in FACTORS:
            torch.manual_seed(0)
            config = getattr(sae_lens, f"{name}TrainingSAEConfig")(
                d_in=batches[0].shape[1], d_sae=about["d_sae"], k=about["k"]
            )
            sae = getattr(sae_lens, f"{name}TrainingSAE")(config)
            settings = SAETrainerConfig(
                total_training_samples=tokens, train_batch_size_samples=tokens // n,
                lr=factor * about["lr"], lr_warm_up_steps=about["warmup"],
                lr_decay_steps=round(n * about["decay"]), lr_end=factor * about["lr"] / 10,
            )  # fmt: skip
            SAETrainer(settings, sae, iter(x.float() for x in batches)).fit()
            yield kind, settings.lr, lambda x: sae.decode(sae.encode(x))  # noqa: B023


def sparsify(batches: list[Tensor], about: dict[str, Any]) -> Arms:
    from datasets import Dataset
    from sparsify import SparseCoderConfig, TrainConfig, Trainer

    own = 5e-3 / (about["d_sae"] / 2**14) ** 0.5
    for factor in OWN_FACTORS:
        sizes = SparseCoderConfig(num_latents=about["d_sae"], k=about["k"])
        settings = TrainConfig(
            sae=sizes, batch_size=1, lr=factor * own, hookpoints=["read"], log_to_wandb=False,
            save_every=10**9, auxk_alpha=1 / 32,
        )  # fmt: skip
        rows = Dataset.from_dict({"input_ids": [[i] * len(x) for i, x in enumerate(batches)]})
        trainer = Trainer(settings, rows.with_format("torch"), _stand_in(batches))
        trainer.save = lambda *_: None  # nothing is written
        trainer.fit()
        for optimizer in trainer.optimizers:
            if hasattr(optimizer, "eval"):
                optimizer.eval()
        sae = trainer.saes["read"]
        yield "topk", settings.lr or own, lambda x: sae(x).sae_out  # noqa: B023


def _stand_in(batches: list[Tensor]) -> Any:
    """A language model, for sparsify's trainer, whose only layer gives the batch of an index."""

    class Read(torch.nn.Module):
        def forward(self, ids: Tensor) -> Tensor:
            return batches[int(ids.flatten()[0])].float()[None]

    class StandIn(torch.nn.Module):
        device = torch.device("cpu")
        dummy_inputs: dict[str, Tensor] = {"input_ids": torch.zeros(1, 1, dtype=torch.long)}  # noqa: RUF012

        def __init__(self) -> None:
            super().__init__()
            self.read = Read()

        @property
        def base_model(self) -> "StandIn":
            return self

        def forward(self, input_ids: Tensor) -> Tensor:
            return self.read(input_ids)

    return StandIn()


def write_theirs(library: str, data: Path) -> None:
    """The reconstructions of one library's SAEs, one file each."""
    held, about = (
        load_file(data / "train.safetensors"),
        json.loads((data / "about.json").read_text()),
    )
    x = load_file(data / "val.safetensors")["x"].float()
    arms = {"dictionary_learning": dictionary_learning, "saelens": saelens, "sparsify": sparsify}
    for kind, rate, reconstruct in arms[library]([held[name] for name in sorted(held)], about):
        with torch.no_grad():
            x_hat = torch.cat([reconstruct(part) for part in x.split(2_048)])
        save_file({"x_hat": x_hat}, data / f"{library}_{kind}_{rate:g}.safetensors")
        print(library, kind, rate, flush=True)  # noqa: T201


# ---------------------------------------------------------------------------------------- compare


def compare(data: Path) -> None:
    """FVE of every reconstruction, and how far each library's best is from ours."""
    import metrics

    x, best = load_file(data / "val.safetensors")["x"].float(), {}
    for path in sorted(data.glob("*_*topk_*.safetensors")):
        library, _, rest = path.stem.partition("_batch_topk_")
        kind = "batch top-k" if rest else "top-k"
        library, rate = (library, rest) if rest else path.stem.split("_topk_")
        fve = metrics.fve(x, load_file(path)["x_hat"].float())
        print(f"{library:20} {kind:12} rate {float(rate):<8g} FVE {fve:.4f}")  # noqa: T201
        best[kind, library] = max(fve, best.get((kind, library), -1.0))
    for (kind, library), fve in best.items():
        if library != "ours":
            print(f"{kind}: ours - {library} {best[kind, 'ours'] - fve:+.4f}")  # noqa: T201


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "what", choices=["ours", "dictionary_learning", "saelens", "sparsify", "compare"]
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--text", default="sotu")
    for name, value in (("steps", 100), ("d_sae", 1_152), ("k", 32)):
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    if options.what == "ours":
        write_ours(options.data, options)
    elif options.what == "compare":
        compare(options.data)
    else:
        write_theirs(options.what, options.data)
