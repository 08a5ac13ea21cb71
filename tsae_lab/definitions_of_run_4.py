"""What run_4 and `absorption` report beside the other runs: the fields of a `definitions.Measure`,
by key.
"""

from typing import Any

# fmt: off
OF_RUN_4: dict[str, tuple[Any, ...]] = {
    "persistence_lift": (
        "stability", "persistence above shuffled tokens", "",
        "How much more often a feature that is on stays on than in the same code with the tokens "
        "of each document in random order.",
        "persistence - shuffled_persistence", "[-1, 1]", "higher",
        "rival_table.lasting"),
    "utilisation": (
        "faithfulness", "utilisation", "",
        "Hill number of order 1 of the features' shares of all contributions, by d_sae: 1 where "
        "all features carry as much.",
        "exp(-sum p log p) / d_sae, p the shares of sum_t acts * |W_dec|", "(0, 1]", "higher",
        "usage.utilisation"),
    "pattern_match": (
        "stability", "match of activation patterns across seeds", "",
        "Mean over the features of one seed of the best cosine of their activations over tokens "
        "with a feature of the next seed.",
        "mean_f max_g <a_f, a_g> / (|a_f| |a_g|)", "[0, 1]", "higher", "usage.pattern_match"),
    "temporal_share_{key}": (
        "stability", "temporal share of the gain, {key}", "",
        "Share of what the TSAE gains over the static SAE in a measure that training on sequences "
        "of shuffled tokens does not give; with Fieller's interval over seeds, absent where the "
        "gain is not clear of 0.",
        "mean(ordered - shuffled) / mean(ordered - static)", "(-inf, inf)", "higher",
        "rival_table.temporal_share"),
    "order_{task}": (
        "order-only tasks", "order-only task: {task}", "",
        "Accuracy (signed motion) or R^2 of a linear probe on a system's codes of synthetic "
        "activations whose answer lies in the order of tokens; an oracle of the past scores 1.",
        "", "(-inf, 1]", "higher", "order_tasks.linear_score"),
    "order_{task}_ceiling": (
        "order-only tasks", "order-only task: {task}, ceiling of one token", "",
        "The best score that a function of a single token can reach.", "", "[0, 1]", "neither",
        "order_tasks.linear_score"),
    "n_params": (
        "speed", "parameters", "", "Numbers that were learned.", "", "[1, inf)", "lower",
        "training.start_trainer"),
    "memory_mib": (
        "speed", "memory of training", "MiB",
        "Most that the process held after a step of training, less what it held before the first; "
        "on Linux alone.",
        "", "[0, inf)", "lower", "terminal.more_than"),
    "absorption_full": (
        "absorption", "absorbed in full", "",
        "Mean over the letters that words begin with of the share of a letter's tokens, of "
        "held-out words and found by a linear probe on the activations, on which none of the "
        "letter's own features M is on and one feature that leans towards the letter holds 40 % of "
        "the code's projection on the probe's direction u. M: those whose being on finds the "
        "letter best by F1, at most 5; leaning: a cosine of u and the decoder row above 0.1.",
        "mean_t [acts_M = 0 and max_a p_a >= 0.4 sum_f p_f], p_f = acts_f max(<W_dec_f, u>, 0), "
        "a not in M, cos(W_dec_a, u) > 0.1", "[0, 1]", "lower",
        "absorption.letters; Chanin et al. 2024, who ablate instead of project"),
    "absorption_part": (
        "absorption", "absorbed in part", "",
        "Mean over letters and the same tokens of the share that the three strongest features "
        "leaning towards the letter hold of their and its own features' projection; 0 where "
        "neither has any.",
        "mean_t sum_{a of top 3} p_a / (sum_{a of top 3} p_a + sum_{f in M} p_f)", "[0, 1]",
        "lower", "absorption.letters; Karvonen et al. 2025 (SAEBench)"),
}
# fmt: on
