# pyright: reportMissingImports=false
"""Seconds of a training step of other libraries' top-k SAEs, with their own trainers.

Another interpreter, which has them, reads this file from its standard input (`peers`): it needs
torch and the libraries alone.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

Took = list[tuple[float, float]]
"""Times at which batches were asked for: of the clock, of the process."""


def batches_of(job: dict[str, Any], took: Took) -> Iterator[Any]:
    """The job's activations again and again; notes when each is asked for."""
    import torch

    x = torch.randn(job["shape"], generator=torch.Generator().manual_seed(0)).to(job["device"])
    while True:
        if x.is_cuda:
            torch.cuda.synchronize()
        took.append((time.perf_counter(), time.process_time()))
        yield x.flatten(0, 1)


def seconds_of(took: Took, repeats: int) -> dict[str, float]:
    """Medians over the last `repeats` steps: of the clock, and of the process's own time."""
    last = took[-repeats - 1 :]
    clock, own = (
        statistics.median(end[i] - begin[i] for begin, end in pairwise(last)) for i in (0, 1)
    )
    return {"seconds": clock, "process_seconds": own}


def _dictionary_learning_steps(job: dict[str, Any], batches: Iterator[Any]) -> None:
    """`TopKTrainer.update`."""
    from dictionary_learning.trainers.top_k import TopKTrainer

    n = job["repeats"] + 2
    trainer = TopKTrainer(
        steps=10 * n, activation_dim=job["shape"][2], dict_size=job["d_sae"], k=job["k"], layer=0,
        lm_name="", lr=job["lr"], device=job["device"], seed=0, warmup_steps=1, decay_start=9 * n,
    )  # fmt: skip
    for step in range(n):
        trainer.update(step, next(batches))
    next(batches)


def _saelens_steps(job: dict[str, Any], batches: Iterator[Any]) -> None:
    """`SAETrainer.fit` of a `TopKTrainingSAE`."""
    import sae_lens
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    tokens, n = job["shape"][0] * job["shape"][1], job["repeats"] + 3
    sizes = {"d_in": job["shape"][2], "d_sae": job["d_sae"], "k": job["k"]}
    sae = sae_lens.TopKTrainingSAE(
        sae_lens.TopKTrainingSAEConfig(device=job["device"], dtype="float32", **sizes)
    )
    settings = SAETrainerConfig(
        total_training_samples=n * tokens, train_batch_size_samples=tokens, lr=job["lr"],
        lr_end=job["lr"] / 10, lr_warm_up_steps=1, device=job["device"],
    )  # fmt: skip
    SAETrainer(settings, sae, batches).fit()


def _sparsify_steps(job: dict[str, Any], batches: Iterator[Any]) -> None:
    """`Trainer.fit` on a model whose only layer gives the batches."""
    import torch
    from datasets import Dataset
    from sparsify import SparseCoderConfig, TrainConfig, Trainer

    class Read(torch.nn.Module):
        def forward(self, _: Any) -> Any:
            return next(batches)[None]

    class StandIn(torch.nn.Module):
        device = torch.device(job["device"])
        dummy_inputs: dict[str, Any] = {"input_ids": torch.zeros(1, 1, dtype=torch.long)}  # noqa: RUF012

        def __init__(self) -> None:
            super().__init__()
            self.read = Read()

        @property
        def base_model(self) -> Any:
            return self

        def forward(self, input_ids: Any) -> Any:
            return self.read(input_ids)

    settings = TrainConfig(
        sae=SparseCoderConfig(num_latents=job["d_sae"], k=job["k"]), batch_size=1, lr=job["lr"],
        hookpoints=["read"], log_to_wandb=False, save_every=10**9,
    )  # fmt: skip
    tokens = [0] * (job["shape"][0] * job["shape"][1])  # it counts them
    rows = Dataset.from_dict({"input_ids": [tokens] * (job["repeats"] + 3)})
    trainer = Trainer(settings, rows.with_format("torch"), StandIn())
    trainer.save = lambda *_: None  # nothing is written
    trainer.fit()


PEERS: dict[str, Callable[[dict[str, Any], Iterator[Any]], None]] = {
    "dictionary_learning": _dictionary_learning_steps,
    "SAELens": _saelens_steps,
    "sparsify": _sparsify_steps,
}


def times_of_peers(job: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """By library its seconds per step, or why there are none."""
    results: dict[str, dict[str, Any]] = {}
    for name, run in PEERS.items():
        took: Took = []
        try:
            import torch

            torch.set_num_threads(job["threads"])
            run(job, batches_of(job, took))
            results[name] = seconds_of(took, job["repeats"])
        except ImportError as error:
            results[name] = {"absent": " ".join(str(error).split())}
        except Exception as error:  # whatever a library of another version raises
            results[name] = {"failed": f"{type(error).__name__}: {' '.join(str(error).split())}"}
    return results


if __name__ == "__main__":
    measured = times_of_peers(json.loads(sys.argv[1]))
    sys.stdout.write("\n" + json.dumps(measured) + "\n")
