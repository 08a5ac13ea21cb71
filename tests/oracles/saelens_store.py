"""A saved model in SAELens: `SAE.load_from_disk`, `ActivationsStore.from_sae`, and its own codes.

By hand, in an environment with both (`pip install -c constraints.txt -e . "sae-lens==6.54.*"`):

    python tests/oracles/saelens_store.py run_2/sotu/seed_0/tsae notes.txt
"""

import argparse
import sys
from pathlib import Path

from datasets import Dataset
from sae_lens import SAE, ActivationsStore  # pyright: ignore[reportMissingImports]

import tsae
from tsae_lab.data import texts
from tsae_lab.jobs import checkpoint, saved


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    given = parser.parse_args()
    theirs = SAE.load_from_disk(str(given.model))
    about = theirs.cfg.metadata
    say(f"model_name {about.model_name}, hook {about.hook_name}, context_size"
          f" {about.context_size}, prepend_bos {about.prepend_bos}")  # fmt: skip
    lm, _ = saved.with_lm(saved.open_model(given.model), exact=True)
    rows = Dataset.from_list([{"text": text} for text in texts.documents_at(given.text)])
    sizes = {"store_batch_size_prompts": 4, "n_batches_in_buffer": 4}
    store = ActivationsStore.from_sae(lm.bridge, theirs, rows, streaming=False, **sizes)
    tokens = store.get_batch_tokens(4)
    x = store.get_activations(tokens).squeeze(2).float()
    say(f"tokens {tuple(tokens.shape)}, activations {tuple(x.shape)}")
    ours, _ = checkpoint.load_sae(given.model)
    codes = tsae.encode_static(x, ours.params.static, ours.dials.k)
    dense, expected = tsae.dense(codes, ours.d_sae), theirs.encode(x)
    say(f"codes differ by {float((dense - expected).norm() / expected.norm()):.1e} of their norm")


if __name__ == "__main__":
    main()
