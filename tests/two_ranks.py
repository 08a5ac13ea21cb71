"""What two processes do together, for test_ranks.py: once per rank, under torchrun's variables.

`PYTHONPATH=. OUT=FILE python tests/two_ranks.py`: rank 0 writes what it saw. Each batch has five
sequences, of which rank 0 reads two and rank 1 three; alone, either rank trains on all of them.
"""

import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import toys

import tsae
from tsae_lab import files
from tsae_lab.data import language_model, store
from tsae_lab.jobs import plan, ranks, training
from tsae_lab.jobs.schedules import Phases
from tsae_lab.jobs.training import Recipe, Trainer

RECIPE = Recipe(k=3, d_sae=64, window=2, hidden_enc=3, hidden_dec=4, dead_after=12, k_aux=4,
                warmup=2)  # fmt: skip
PHASES = Phases(pretrain=6, settle=1, introduce=2, refine=3)
N, SEQ, D_IN = 5, 6, 8


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A step's activations; sequences are padded at the end, the first has no token at all."""
    generator = torch.Generator().manual_seed(step)
    valid = torch.arange(SEQ) < torch.tensor([0, 6, 4, 1, 5])[:, None]
    x = torch.randn(N, SEQ, D_IN, generator=generator) * torch.arange(1, D_IN + 1)
    return x * valid[..., None], valid.float()


def started() -> tuple[Trainer, Trainer]:
    generator = torch.Generator().manual_seed(0)
    static = tsae.init_static(torch.zeros(D_IN), RECIPE.d_sae, generator=generator)
    trainer = training.start_trainer(tsae.tensors(static), RECIPE)
    hidden = {"hidden_enc": 3, "hidden_dec": 4}
    params = tsae.from_static(static, scale=3.0, **hidden, generator=generator)
    return trainer, training.start_trainer(tsae.tensors(params), RECIPE)


def trained(*, pieces: bool) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
    """Log lines of a static SAE and of a TSAE, and all that the last step left behind."""
    static, temporal = started()
    lines, rows = [], ranks.own_share(N)
    for step in range(PHASES.total):
        trainer = static if step < PHASES.pretrain else temporal
        x, weight = (t[rows] for t in batch(step))
        if pieces:
            begins, span = step % 2 == 0, slice(0, 3) if step % 2 == 0 else slice(3, 6)
            x, weight = x[:, span], weight[:, span]
        else:
            begins = True
        trainer, info = training.train_step(
            trainer, x, weight, step, RECIPE, PHASES, torch.float32, begins=begins
        )
        lines.append(training.fetched([info])[0])
        static, temporal = (trainer, temporal) if step < PHASES.pretrain else (static, trainer)
    temporal = replace(temporal, state=ranks.joined_state(temporal.state, N))
    left = training.snapshot(static) | {f"t.{n}": t for n, t in training.snapshot(temporal).items()}
    return lines, {name: tensor.clone() for name, tensor in left.items()}


def differences(pieces: bool) -> dict[str, Any]:
    """Largest differences of what two ranks and one process come to."""
    lines, left = trained(pieces=pieces)
    with ranks.apart():  # each by itself, on all sequences
        alone, right = trained(pieces=pieces)
    keys = ("loss", "fve", "l0", "grad_norm")
    far = {
        key: max(abs(a[key] - b[key]) for a, b in zip(lines, alone, strict=True)) for key in keys
    }
    loss = max(a["loss"] for a in alone)
    exact = ("dead", "tokens")
    same = all(a[key] == b[key] for a, b in zip(lines, alone, strict=True) for key in exact)
    counts = [name for name in left if "life." in name and not left[name].is_floating_point()]
    return far | {
        "loss": far["loss"] / loss,
        "grad_norm": far["grad_norm"] / max(a["grad_norm"] for a in alone),
        "same_dead": same and all(torch.equal(left[name], right[name]) for name in counts),
        "some_dead": max(a["dead"] for a in alone),
        "weights": max(
            (left[name] - right[name]).abs().max().item() for name in left if "param." in name
        ),
        "shapes": all(left[name].shape == right[name].shape for name in right),
    }


def basics() -> dict[str, Any]:
    """Every function that has no training in it."""
    own = ranks.rank()
    rows = torch.arange(10.0).view(5, 2)[ranks.own_share(5)]
    given = {"a": torch.full((2, 3), float(own)).t(), "b": torch.tensor(own)}
    ranks.same_everywhere(given)
    ranks.wait()
    weight = torch.ones(2 + own, 1)
    return {
        "ranks": ranks.n_ranks(),
        "total": ranks.total(torch.tensor([1.0, own])).tolist(),
        "largest": ranks.largest(torch.tensor([-own, own])).tolist(),
        "mean": ranks.mean(rows).tolist(),
        "shared": ranks.total(ranks.shared(torch.tensor(float(own)), weight)).item(),
        "joined": ranks.joined_rows(rows, 5).flatten().tolist(),
        "same": [given["a"].sum().item(), given["b"].item()],
        "led": ranks.led(lambda: f"said by {ranks.rank()}"),
    }


def extracted(folder: Path) -> dict[str, Any]:
    """Stores that both ranks extract, and rank 0 by itself; then one with an error on rank 1."""
    ranks.led(lambda: toys.save_model(folder / "lm", "llama") and None)
    lm = toys.load_toy(folder / "lm")
    documents = [f"{i} the quick brown fox jumps over" * (1 + i % 3) for i in range(9)]
    tokens = language_model.tokenize(lm, documents, seq=9)
    store.BLOCK_TOKENS = 27  # three sequences
    made: list[int] = []

    def make(what: str, number: int) -> np.ndarray:
        assert what == store.tokens_digest(tokens)
        made.append(number)
        return store.block(lm, tokens, toys.HOOK, number)

    def opened(place: str, **more: Any) -> np.ndarray:
        own = {"hook": toys.HOOK, "cache_dir": folder / place} | more
        return np.array(store.activation_store(lm, tokens, **own).data)

    both = ranks.in_turn(lambda: opened("both", deal=ranks.dealt), make)
    with ranks.apart():
        alone = opened(f"alone_{ranks.rank()}", deal=ranks.dealt)
    seen = {"equal": np.array_equal(both, alone), "made": made}
    seen["blocks"] = -(-len(tokens.ids) // store.block_rows_of(tokens))

    def bad(what: str, number: int) -> np.ndarray:
        if number == 3:
            raise ValueError("block 3 cannot be made")
        return make(what, number)

    try:
        ranks.in_turn(lambda: opened("bad", deal=ranks.dealt), bad)
    except ranks.Refused:
        seen["error"] = "silent"
    except ValueError as error:
        seen["error"] = str(error)
    again = ranks.in_turn(lambda: opened("bad", deal=ranks.dealt), make)  # goes on
    return seen | {"again": np.array_equal(again, alone)}


def fetched(folder: Path) -> bool:
    """Whether a language model of the package index is whole where rank 1 asks for it first."""
    place = folder / "fetched"
    language_model.smollm2_folder = lambda: files.whole_folder(
        place, lambda stage: toys.save_model(stage, "llama"), "a toy"
    )
    if ranks.rank() == 0:
        time.sleep(1)
    lm = plan.lm_of(plan.Config(lm=language_model.EMBEDDED, hook=toys.HOOK, seq=9, device="cpu"))
    return lm.n_layers == 3


def refused() -> str:
    """What a rank with another configuration says; rank 0 is silent."""
    try:
        ranks.refuse_others("configuration", {"k": 8, "steps": 10 + ranks.rank()})
    except ranks.Refused:
        return "silent"
    except ValueError as error:
        return str(error)
    return "taken"


def main(out: Path) -> None:
    torch.set_num_threads(1)
    with ranks.together(torch.device("cpu"), spread="sequences"):
        seen: dict[str, Any] = {"basics": basics(), "whole": differences(False)}
        seen["pieces"] = differences(True)
        own = extracted(out.parent) | {"fetched": fetched(out.parent)}
        (out.parent / f"extracted_{ranks.rank()}.json").write_text(json.dumps(own))
        says = refused()
        seen["refused"] = [says, ranks.led(lambda: None)]
        (out.parent / f"said_by_{ranks.rank()}.txt").write_text(says)
        try:
            ranks.led(lambda: int("no number"))
        except ranks.Refused:
            (out.parent / "led_elsewhere.txt").write_text("silent")
        except ValueError as error:
            seen["led_error"] = str(error)
        if ranks.rank() == 1:
            os._exit(3)
        try:
            for _ in range(3):
                ranks.total(torch.ones(2))
        except ValueError as error:
            seen["lost"] = str(error)
        out.write_text(json.dumps(seen))


if __name__ == "__main__":
    main(Path(os.environ["OUT"]))
