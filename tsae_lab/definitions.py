"""What every reported number means: name, unit, formula, range and source of each measure.

`python -m tsae_lab.definitions > docs/MEASURES.md` writes the reference.
"""

import functools
import re
from dataclasses import dataclass, fields
from typing import Literal

from tsae_lab.definitions_of_run_4 import OF_RUN_4


@dataclass(frozen=True)
class Measure:
    """Name and meaning of one measure. Text in braces is filled in from the key."""

    group: str
    label: str
    unit: str  # empty for a share, a ratio or a score
    definition: str  # one sentence
    formula: str  # empty where the sentence says it all
    range: str
    better: Literal["higher", "lower", "neither"]
    source: str  # the function that computes it, then the paper, if there is one


PREFIXES = {
    "static_": "of the static SAE",
    "difference_": "TSAE minus static SAE",
    "resid_": "of the residual stream itself (probes)",
    "embed_": "of the embedding, layer 0 (probes)",
    "majority_": "of the most frequent label alone (probes of public sets)",
    "words_": "of a bag of words (probes of public sets)",
    "memory_": "of the memory's reading (probes)",
    "tsae_memory_": "of code and memory side by side (probes)",
    "window_": "of the plain mean over the memory's window (probes)",
    "tsae_window_": "of code and window side by side (probes)",
    "state_": "of the hidden states of the LSTMs (probes)",
    "static_window_": "of the plain mean of the static SAE's codes over the window (probes)",
}
"""Before a measure's key; without a prefix a number is the TSAE's, or the text's."""

_VALUES: dict[str, str] = dict.fromkeys(("lag", "after", "tau", "k"), r"\d+")
_VALUES |= dict.fromkeys(("items", "set"), ".+")
_VALUES |= {"average": "pooled|feature", "mode": "local|propagated", "rule": "standardised|l1"}
_VALUES |= {"key": "fve|tss_mean", "task": "signed_motion|since_switch|self_exciting"}
"""What may stand for {lag} and so on in a key."""

# fmt: off
DEFINITIONS = {
    "fve": Measure(
        "faithfulness", "FVE", "",
        "Fraction of the variance of the activations that the reconstruction explains; the sums "
        "run over all tokens and dimensions, with one mean vector.",
        "1 - sum (x - x_hat)^2 / sum (x - mean)^2", "(-inf, 1]", "higher", "metrics.fve"),
    "delta_ce": Measure(
        "faithfulness", "delta CE", "nats per token",
        "Rise of the language model's cross-entropy when the reconstruction replaces the "
        "residual stream.",
        "CE(spliced) - CE(clean)", "(-inf, inf)", "lower", "evaluation.splice_losses"),
    "kl": Measure(
        "faithfulness", "KL", "nats per token",
        "Divergence of the language model's next-token prediction with the reconstruction in "
        "place from its own.",
        "mean over tokens of KL(clean || spliced)", "[0, inf)", "lower",
        "evaluation.splice_losses"),
    "ce_recovered": Measure(
        "faithfulness", "CE recovered", "",
        "Share of the loss caused by mean ablation that the reconstruction avoids; absent where "
        "the ablation costs nothing.",
        "(CE(ablated) - CE(spliced)) / (CE(ablated) - CE(clean))", "(-inf, about 1]", "higher",
        "metrics.ce_recovered"),
    "clean_ce": Measure(
        "faithfulness", "CE of the language model", "nats per token",
        "Cross-entropy of the unchanged language model on the evaluated text.",
        "mean of -ln p(token | text before it)", "[0, inf)", "neither",
        "evaluation.splice_losses"),
    "ablated_ce": Measure(
        "faithfulness", "CE, mean ablation", "nats per token",
        "Cross-entropy with the mean activation of training text at every token.",
        "CE with x replaced by mean(x)", "[0, inf)", "neither", "evaluation.mean_replacement"),
    "clean_nats_per_char": Measure(
        "faithfulness", "loss of the language model", "nats per character",
        "The unchanged language model's summed loss over the characters of the evaluated text.",
        "sum of -ln p / characters", "[0, inf)", "neither", "evaluation.splice_losses"),
    "final_train_loss": Measure(
        "faithfulness", "loss with the code in place, training text", "nats per character",
        "The language model's loss per character of training text with the trained model's "
        "reconstruction in place.",
        "sum of -ln p / characters", "[0, inf)", "lower", "evaluation.splice_losses"),
    "best_val_loss": Measure(
        "faithfulness", "loss with the code in place, validation text", "nats per character",
        "The same on validation text, of the model as saved.",
        "sum of -ln p / characters", "[0, inf)", "lower", "evaluation.splice_losses"),

    "l0": Measure(
        "sparsity", "L0", "features per token",
        "Mean number of active features.",
        "mean over tokens of #{f: a_f > 0}", "[0, k]", "neither", "metrics.l0"),
    "alive_frac": Measure(
        "sparsity", "alive features", "",
        "Share of the features that are active on at least one evaluated token; the dead "
        "fraction is 1 minus this.",
        "#{f: a_f(t) > 0 for a t} / d_sae", "[0, 1]", "higher", "metrics.alive_frac"),
    "dead_frac": Measure(
        "sparsity", "dead features", "",
        "Share of the features that fired at none of the last 10 M tokens of training, or of its "
        "last pass over the text where that is shorter.",
        "#{f: idle_f >= min(10 M, tokens of a pass)} / d_sae", "[0, 1]", "lower",
        "training.dead_frac"),

    "births": Measure(
        "sparsity", "births", "features per token",
        "Features that switch on at a token, over the tokens that have one before them in their "
        "chunk: what a reader has to read anew.",
        "mean over t of |A_t+1 - A_t|", "[0, L0]", "lower", "metrics.births"),
    "residual_taken": Measure(
        "sparsity", "error taken away at equal births", "",
        "Share of the static SAE's residual variance that the TSAE lacks at as many births per "
        "token, interpolated over k; of `tradeoff --ks`; absent outside the TSAE's range.",
        "1 - (1 - FVE) / (1 - FVE of the static SAE)", "(-inf, 1]", "higher",
        "evaluation.at_equal_births"),
    "distinct": Measure(
        "sparsity", "distinct features per 16 tokens", "features per window",
        "Different features that are on in a window of 16 tokens; windows follow one another "
        "from the start of a chunk. Absent where no chunk has 16 tokens.",
        "mean over windows of |union of A_t|", "[L0, 16 L0]", "lower", "metrics.distinct"),

    "jaccard": Measure(
        "stability", "Jaccard overlap of neighbours", "",
        "Mean overlap of the active sets of neighbouring tokens of one chunk; two empty sets "
        "count as 0.",
        "mean over t of |A_t & A_t+1| / |A_t | A_t+1|", "[0, 1]", "higher", "metrics.jaccard"),
    "jaccard_kappa": Measure(
        "stability", "Jaccard overlap above chance", "",
        "The overlap of neighbours, corrected by the mean overlap J0 of random pairs of tokens.",
        "(J - J0) / (1 - J0)", "(-inf, 1]", "higher", "metrics.jaccard_kappa"),
    "tss": Measure(
        "stability", "TSS, lag 1", "",
        "Temporal stability score of neighbouring tokens (see `tss_lag_{lag}`).",
        "mean over eligible f of max(0, kappa_f(1))", "[0, 1]", "higher", "metrics.tss"),
    "tss_mean": Measure(
        "stability", "TSS, mean of lags 1 to 16", "",
        "Temporal stability score: mean over the lags of `tss_lag_{lag}`, over all eligible "
        "features alike.",
        "mean over j of TSS_j", "[0, 1]", "higher", "metrics.tss"),
    "tss_floor": Measure(
        "stability", "TSS, lag 1, shuffled", "",
        "TSS of the same codes with the tokens of each document in random order: what the topic of "
        "a document and the maximum with 0 give without any order in time.",
        "`tss` of shuffled codes", "[0, 1]", "neither", "lifetimes.shuffle"),
    "tss_floor_mean": Measure(
        "stability", "TSS, mean of lags 1 to 16, shuffled", "",
        "The same for the mean of the lags.",
        "`tss_mean` of shuffled codes", "[0, 1]", "neither", "lifetimes.shuffle"),
    "tss_in_document_floor_mean": Measure(
        "stability", "TSS above the document's own level, shuffled", "",
        "The same against the null that reorders tokens inside documents: the bias of the maximum "
        "with 0 alone.",
        "`tss_in_document_mean` of shuffled codes", "[0, 1]", "neither", "lifetimes.shuffle"),
    "tss_weighted_mean": Measure(
        "stability", "TSS, weighted by activity", "",
        "TSS with each feature weighted by its summed contribution a = acts * |W_dec row|.",
        "mean over j of sum_f w_f max(0, kappa_f(j)) / sum_f w_f, w_f = sum_t a_f(t)", "[0, 1]",
        "higher", "metrics.tss"),
    "tss_in_document_mean": Measure(
        "stability", "TSS above the document's own level", "",
        "TSS against the null that reorders tokens inside documents only, so that a topic of a "
        "document counts as chance.",
        "as `tss_mean`, p0 by document, weighted by its pairs", "[0, 1]", "higher", "metrics.tss"),
    "tss_in_document_weighted_mean": Measure(
        "stability", "TSS above the document's own level, weighted by activity", "",
        "The same, with each feature weighted by its summed contribution.",
        "as `tss_weighted_mean`, p0 by document", "[0, 1]", "higher", "metrics.tss"),
    "tss_lag_{lag}": Measure(
        "stability", "TSS, lag {lag}", "",
        "Mean chance-corrected overlap of a feature's contributions {lag} tokens apart, over "
        "the eligible features; N values a_(i) ascending over all tokens give the chance level.",
        "mean over f of max(0, (p - p0) / (1 - p0)), p = sum_t min(a_t, a_t+j) / sum_t max(a_t, "
        "a_t+j), p0 = sum_i (N - i) a_(i) / sum_i (i - 1) a_(i)", "[0, 1]", "higher",
        "metrics.tss"),
    "tss_weighted_lag_{lag}": Measure(
        "stability", "TSS, lag {lag}, weighted by activity", "",
        "The same, with each feature weighted by its summed contribution.",
        "sum_f w_f max(0, kappa_f(j)) / sum_f w_f", "[0, 1]", "higher", "metrics.tss"),
    "tss_in_document_lag_{lag}": Measure(
        "stability", "TSS, lag {lag}, above the document's own level", "",
        "`tss_lag_{lag}` against the null that reorders tokens inside documents only.",
        "as `tss_lag_{lag}`, p0 by document", "[0, 1]", "higher", "metrics.tss"),
    "tss_in_document_weighted_lag_{lag}": Measure(
        "stability", "TSS, lag {lag}, above the document's own level, weighted by activity", "",
        "The same, with each feature weighted by its summed contribution.",
        "as `tss_weighted_lag_{lag}`, p0 by document", "[0, 1]", "higher", "metrics.tss"),
    "tss_eligible_frac": Measure(
        "stability", "share of features eligible for TSS", "",
        "Share of the features that are active at 20 tokens or more in 5 documents or more and "
        "have a chance level of at most 0.95 at all lags.",
        "#{f eligible} / d_sae", "[0, 1]", "neither", "metrics.tss"),
    "splice_kept_{after}": Measure(
        "stability", "similarity kept {after} tokens after a splice", "",
        "Share of the similarity above chance to the last code before a splice of two documents, "
        "the state carried over it, that the code {after} tokens after the first one still has; "
        "0 for a static code, 1 for {after} tokens and more of lag.",
        "(across - chance) / (within - chance)", "(-inf, about 1]", "lower",
        "splices.splice_kept"),
    "similarity_within": Measure(
        "stability", "similarity of neighbours", "",
        "Mean similarity of the contributions of two neighbouring tokens, where a splice would be.",
        "mean of sum_f min(a, b) / sum_f max(a, b)", "[0, 1]", "neither", "splices.splice_kept"),
    "similarity_across": Measure(
        "stability", "similarity across a splice", "",
        "The same of the two tokens at the splice.",
        "mean of sum_f min(a, b) / sum_f max(a, b)", "[0, 1]", "lower", "splices.splice_kept"),
    "similarity_chance": Measure(
        "stability", "similarity of two documents", "",
        "The same where the second token is coded in its own document, without a splice.",
        "mean of sum_f min(a, b) / sum_f max(a, b)", "[0, 1]", "neither", "splices.splice_kept"),
    "smoothness": Measure(
        "stability", "smoothness of T-SAE", "activation per norm of x",
        "Mean steepest slope of the features active in a chunk; depends on the scale of the "
        "code, and inactive codes score low.",
        "mean over chunks and features of max_t |a_t - a_t-1| / |x_t - x_t-1|", "[0, inf)",
        "lower", "metrics.smoothness; Bhalla et al. 2025, arXiv 2511.05541"),

    "restricted_mean_{tau}": Measure(
        "lifetimes", "mean lifetime up to {tau} tokens", "tokens",
        "Mean lifetime, cut at {tau} tokens, of the runs of all features, from the Kaplan-Meier "
        "survival S; runs cut at a chunk's end are censored, runs of unseen beginning left out.",
        "sum over 0 <= t < {tau} of S(t)", "[1, {tau}]", "higher", "lifetimes.restricted_mean"),
    "feature_restricted_mean_{tau}": Measure(
        "lifetimes", "mean lifetime up to {tau} tokens, mean over features", "tokens",
        "The same for each feature with 5 ends seen or more, averaged over those features.",
        "mean over f of sum over 0 <= t < {tau} of S_f(t)", "[1, {tau}]", "higher",
        "lifetimes.feature_restricted_mean"),
    "shuffled_restricted_mean_{tau}": Measure(
        "lifetimes", "mean lifetime up to {tau} tokens, shuffled", "tokens",
        "`restricted_mean_{tau}` with the tokens of each document in random order: the part "
        "that is not due to time.",
        "sum over 0 <= t < {tau} of S(t)", "[1, {tau}]", "neither", "lifetimes.shuffle"),
    "half_life": Measure(
        "lifetimes", "half-life", "tokens",
        "First time at which half of the runs or fewer survive; absent where more than half "
        "survive the longest time observed.",
        "min t with S(t) <= 1/2", "[1, inf)", "higher", "lifetimes.survival"),
    "persistence": Measure(
        "lifetimes", "persistence, P(on | on before)", "",
        "Probability that an active feature is active at the next token, over runs of length L "
        "pooled.",
        "sum (L - 1) / (sum (L - 1) + ends seen)", "[0, 1]", "higher", "lifetimes.persistence"),
    "feature_persistence": Measure(
        "lifetimes", "persistence, mean over features", "",
        "The same for each feature that is ever active, averaged.",
        "mean over f of sum (L - 1) / (sum (L - 1) + ends seen)", "[0, 1]", "higher",
        "lifetimes.persistence"),
    "shuffled_persistence": Measure(
        "lifetimes", "persistence, shuffled", "",
        "Persistence with the tokens of each document in random order.",
        "sum (L - 1) / (sum (L - 1) + ends seen)", "[0, 1]", "neither", "lifetimes.shuffle"),
    "lifecycle_{average}_gap_tokens": Measure(
        "lifetimes", "dormant gap, {average}", "tokens",
        "Mean length of the dormant stretches between two runs of a feature in one chunk "
        "(pooled: over stretches; feature: over features).",
        "dormant tokens / gaps", "[0, inf)", "neither", "lifetimes.lifecycle_means"),
    "lifecycle_{average}_age_tokens": Measure(
        "lifetimes", "age of an active feature, {average}", "tokens",
        "Mean number of tokens since an active feature was last off (pooled: over active "
        "tokens; feature: over features).",
        "sum of ages / active tokens", "[0, inf)", "higher", "lifetimes.lifecycle_means"),
    "lifecycle_{average}_births_per_1000_active": Measure(
        "lifetimes", "births, {average}", "per 1,000 active tokens",
        "Runs whose beginning was seen (pooled: over all features; feature: mean over "
        "features).",
        "1000 births / active tokens", "[0, 1000]", "lower", "lifetimes.lifecycle_means"),
    "lifecycle_{average}_deaths_per_1000_active": Measure(
        "lifetimes", "deaths, {average}", "per 1,000 active tokens",
        "Runs whose end was seen (pooled: over all features; feature: mean over features).",
        "1000 deaths / active tokens", "[0, 1000]", "lower", "lifetimes.lifecycle_means"),
    "lifecycle_feature_peak": Measure(
        "lifetimes", "peak activation, mean over features", "activation",
        "Mean over the features that are ever active of their largest activation.",
        "mean over f of max_t a_f(t)", "[0, inf)", "neither", "lifetimes.lifecycle_means"),
    "lifecycle_feature_oldest_tokens": Measure(
        "lifetimes", "longest run, mean over features", "tokens",
        "Mean over the features that are ever active of their largest age.",
        "mean over f of max L", "[0, inf)", "higher", "lifetimes.lifecycle_means"),
    "survival": Measure(
        "lifetimes", "survival", "",
        "Column of survival.csv: share of the runs that are longer than t tokens, by Kaplan and "
        "Meier.",
        "S(t) = product over s <= t of (1 - hazard(s))", "[0, 1]", "neither",
        "lifetimes.survival"),
    "hazard": Measure(
        "lifetimes", "hazard", "",
        "Column of survival.csv: share of the runs followed for t tokens that end after exactly "
        "t.",
        "ends at t / at risk at t", "[0, 1]", "neither", "lifetimes.survival"),

    "transitions_candidates": Measure(
        "transitions", "candidates of transitions", "transitions",
        "Patterns (onset of i, then of j after a lag of 1 to 16 tokens) that one half of the "
        "documents has 3 times or more, above the rates by a deviance of at least 13.8.",
        "2 (N_ij ln(N_ij / E) - N_ij + E), E = N_i N_j / M", "[0, inf)", "neither",
        "transitions.find_transitions"),
    "transitions_cut_frac": Measure(
        "transitions", "share of the candidates that was not tested", "",
        "Of more than 10,000 candidates as many are tested: the 2,000 of the largest deviance and "
        "a random sample of the others, each of which counts for the many it stands for.",
        "1 - tested / candidates", "[0, 1]", "neither", "transitions.find_transitions"),
    "transitions_screened": Measure(
        "transitions", "transitions screened", "transitions",
        "Candidates with a p-value of at most 0.001 on one half of the documents.",
        "#{p <= 0.001}", "[0, inf)", "neither", "transitions.find_transitions"),
    "transitions_significant": Measure(
        "transitions", "transitions, significant", "transitions",
        "Screened patterns that are significant on the other half of the documents against "
        "circular shifts of j (Benjamini-Hochberg at 0.05).",
        "#{q <= 0.05}", "[0, inf)", "higher", "transitions.find_transitions"),
    "transitions_replication": Measure(
        "transitions", "transitions that replicate in other documents", "",
        "Share of the screened patterns, weighted by the candidates they stand for, with a p-value "
        "of at most 0.05 on the other half; 0.05 if chance alone screened.",
        "#{p <= 0.05} / screened", "[0, 1]", "higher", "transitions.find_transitions"),
    "transitions_beyond_token_pairs": Measure(
        "transitions", "transitions beyond token pairs", "transitions",
        "Significant transitions that remain when places are stratified by their pair of tokens "
        "(Cochran-Mantel-Haenszel).",
        "#{q <= 0.05 within strata}", "[0, inf)", "higher", "transitions.beyond_token_pairs"),
    "transitions_beyond_token_pairs_frac": Measure(
        "transitions", "share of the transitions beyond token pairs", "",
        "The same as a share of the significant transitions.",
        "beyond token pairs / significant", "[0, 1]", "higher", "transitions.beyond_token_pairs"),
    "transitions_chains": Measure(
        "transitions", "chains of three", "chains",
        "Chains of three onsets that are more frequent than their last step alone foretells "
        "(binomial, Benjamini-Hochberg at 0.05), of the 1,000 most significant transitions.",
        "#{q <= 0.05}", "[0, 1000]", "higher", "transitions.chains"),
    "lift": Measure(
        "transitions", "lift", "",
        "Column of the transition tables: how much more often than by their rates the target "
        "follows, on the M places of documents where both onsets can be seen at that lag.",
        "N_ij M / (N_i N_j)", "[0, inf)", "higher", "transitions.find_transitions"),
    "expected": Measure(
        "transitions", "expected count", "occurrences",
        "Column of the transition tables: mean count over all circular shifts of the target within "
        "its chunks, the null of the p-value.",
        "mean over shifts of N_ij", "[0, inf)", "neither", "transitions.shift_test"),
    "npmi": Measure(
        "transitions", "NPMI", "",
        "Column of the transition tables: normalised pointwise mutual information of the two "
        "onsets at that lag.",
        "PMI_ij / -ln(N_ij / M), PMI_ij = ln lift", "[-1, 1]", "higher",
        "transitions.find_transitions"),
    "direction": Measure(
        "transitions", "direction", "nats",
        "Column of the transition tables: how much more the target follows the source than the "
        "source the target, each above its rates; empty where the reverse is never seen.",
        "PMI_ij - PMI_ji", "(-inf, inf)", "neither", "transitions.find_transitions"),
    "token_pair_lift": Measure(
        "transitions", "lift among equal token pairs", "",
        "Column of the transition tables: count over what the rates within each pair of tokens "
        "foretell; 1 for a pattern that only a bigram makes.",
        "N_ij / sum over pairs s of n_i(s) n_j(s) / n(s)", "[0, inf)", "higher",
        "transitions.beyond_token_pairs"),

    "probe_{items}": Measure(
        "probes", "probe: {items}, dense", "",
        "Accuracy of logistic regressions on the whole code, on held-out groups; after the task "
        "may stand `long` (the deciding word over 20 tokens away) and the unit or kind of its "
        "items.",
        "right / items", "[0, 1]", "higher", "probes.task_rows"),
    "probe_{items}_k{k}": Measure(
        "probes", "probe: {items}, {k} features", "",
        "The same on the {k} features whose class means differ most in the training items, in the "
        "code's own units.",
        "right / items", "[0, 1]", "higher",
        "probes.task_rows; Gurnee et al. 2023, arXiv 2305.01610"),
    "probe_{items}_k{k}_{rule}": Measure(
        "probes", "probe: {items}, {k} features, {rule}", "",
        "The same on {k} features chosen by another rule: standardised, those whose class means "
        "differ most in standard deviations; l1, those of a logistic regression at the strongest "
        "L1 penalty that leaves as many weights.",
        "right / items", "[0, 1]", "higher", "probes.chosen"),
    "probe_{items}_selectivity": Measure(
        "probes", "selectivity: {items}", "",
        "Accuracy minus that of a probe on random labels, one per held-out group; after the task "
        "may stand the number of features, as `k5`.",
        "accuracy - control", "[-1, 1]", "higher",
        "probes.group_labels; Hewitt and Liang 2019, arXiv 1909.03368"),

    "full_patch_logits": Measure(
        "interventions", "effect of the whole full patch", "logits",
        "Mean change of logit(good) - logit(bad) at the verb when the residual stream from "
        "subject to verb is that of the twin sentence of the other number.",
        "mean over cases of d(patched) - d(clean)", "(-inf, inf)", "neither",
        "effects.full_patch"),
    "agreement_clean_accuracy": Measure(
        "interventions", "agreement accuracy of the language model", "",
        "Share of the test cases in which the unchanged language model prefers the right verb.",
        "#{d(clean) > 0} / cases", "[0, 1]", "neither", "effects.clean_differences"),
    "agreement_skipped": Measure(
        "interventions", "agreement cases skipped", "cases",
        "Cases that could not be used, by reason in skipped.csv.",
        "", "[0, inf)", "neither", "effects.batches"),
    "effect_{mode}": Measure(
        "interventions", "effect of 10 number features at the verb, {mode}", "",
        "Effect, as a share of the full patch's, of giving the 10 features that best tell the "
        "numbers apart the twin's values (local: decoder alone; propagated: through the state "
        "too).",
        "sum over cases of effect / sum of full-patch effect", "(-inf, inf)", "higher",
        "effects.swap_features"),
    "effect_best_{mode}": Measure(
        "interventions", "effect of the best number feature at the verb, {mode}", "",
        "The same for the one feature that tells the numbers apart best.",
        "sum over cases of effect / sum of full-patch effect", "(-inf, inf)", "higher",
        "effects.swap_features"),
    "effect_ablated_{mode}": Measure(
        "interventions", "effect of ablating 10 number features, {mode}", "",
        "The same with the 10 features set to 0.",
        "sum over cases of effect / sum of full-patch effect", "(-inf, inf)", "neither",
        "effects.ablate_features"),
    "effect_code_{mode}": Measure(
        "interventions", "effect of the whole code at the verb, {mode}", "",
        "The same with the twin's whole code.",
        "sum over cases of effect / sum of full-patch effect", "(-inf, inf)", "higher",
        "effects.swap_codes"),
    "control_mean": Measure(
        "interventions", "effect of matched random sets, mean", "",
        "Mean effect of random sets of features matched in position, contribution and firing "
        "rate.",
        "mean over sets of normalised effect", "(-inf, inf)", "neither", "effects.matched_push"),
    "control_p95": Measure(
        "interventions", "effect of matched random sets, 95th percentile", "",
        "95th percentile of their size of effect.",
        "quantile 0.95 over sets of |normalised effect|", "[0, inf)", "lower",
        "effects.matched_push"),
    "control_beaten_frac": Measure(
        "interventions", "share of matched random sets beaten", "",
        "Share of the random sets with a smaller effect than the number features on the same "
        "cases.",
        "#{|set| < |own|} / sets", "[0, 1]", "higher", "effects.matched_push"),
    "random_direction": Measure(
        "interventions", "effect of a random direction", "",
        "Effect of a vector of random direction with the norm that the edit has at each "
        "position.",
        "sum over cases of effect / sum of full-patch effect", "(-inf, inf)", "neither",
        "effects.random_direction"),
    "other_position": Measure(
        "interventions", "effect at another position", "",
        "Effect of the edit's sum, put at the position after the subject.",
        "sum over cases of effect / sum of full-patch effect", "(-inf, inf)", "neither",
        "effects.elsewhere"),
    "kl_unrelated": Measure(
        "interventions", "KL of ablating number features on other text", "nats per token",
        "Divergence of the prediction when the number features are off at every token of "
        "unrelated text.",
        "mean over tokens of KL(clean || edited)", "[0, inf)", "lower",
        "text_effects.unrelated_kl"),
    "kl_unrelated_control": Measure(
        "interventions", "KL of ablating a matched random set", "nats per token",
        "The same for a random set of features matched in firing rate.",
        "mean over tokens of KL(clean || edited)", "[0, inf)", "neither",
        "text_effects.unrelated_kl"),
    "effect_duration_{mode}": Measure(
        "interventions", "duration of an ablation's effect, {mode}", "tokens",
        "Mean over features of the KL-weighted distance, 0 to 12 tokens, from the one token at "
        "which the feature is ablated.",
        "mean over f of sum_d d KL(d) / sum_d KL(d)", "[0, 12]", "neither",
        "text_effects.durations"),
    "effect_inactive_frac": Measure(
        "interventions", "occurrences inactive in a short text", "",
        "Share of the tokens drawn for timed ablations at which the feature is not active when the "
        "text begins 16 tokens before; they are not timed.",
        "#{inactive} / drawn", "[0, 1]", "neither", "text_effects.active_places"),
    "lifetime_effect_rho_{mode}": Measure(
        "interventions", "lifetime against duration of effect, rho, {mode}", "",
        "Spearman's rank correlation over features of mean lifetime (up to 16 tokens) and "
        "duration of effect.",
        "rho", "[-1, 1]", "higher", "text_effects.spearman"),
    "minimal_pairs_{set}": Measure(
        "interventions", "minimal pairs: {set}", "",
        "Share of the pairs in which the language model, with the reconstruction in place, "
        "prefers the good sentence.",
        "#{ln p(good) > ln p(bad)} / pairs", "[0, 1]", "higher", "minimal_pairs.pair_accuracy"),
    "minimal_pairs_clean_{set}": Measure(
        "interventions", "minimal pairs: {set}, language model", "",
        "The same for the unchanged language model.",
        "#{ln p(good) > ln p(bad)} / pairs", "[0, 1]", "neither", "minimal_pairs.pair_accuracy"),
    "minimal_pair_sets_absent": Measure(
        "interventions", "minimal-pair sets absent", "sets",
        "Sets of minimal pairs that were not found in the data folder.",
        "", "[0, inf)", "neither", "public_sets.find_sets"),

    "total_train_time": Measure(
        "speed", "training time", "s",
        "Time of the training steps; a TSAE's with its share of the static pretraining. A step of "
        "over 10 times the median of the 100 before it (the machine or the process stood still) "
        "counts as that median.",
        "", "[0, inf)", "lower", "training.train_step"),
    "train_tokens_per_second": Measure(
        "speed", "training speed", "tokens per second",
        "Tokens trained on over the training time.",
        "tokens / total_train_time", "[0, inf)", "higher", "training.train_step"),
    "avg_inference_tokens_per_second": Measure(
        "speed", "speed of encoding and decoding", "tokens per second",
        "Tokens encoded and decoded per second, the language model left out; a batch during which "
        "the machine stood still counts as in the training time.",
        "valid tokens / s", "[0, inf)", "higher", "evaluation.measure"),
} | {key: Measure(*said) for key, said in OF_RUN_4.items()}
# fmt: on


def pattern_of(key: str) -> str:
    """The key of `DEFINITIONS` that a number's key stands for, with or without a prefix.

    Of several patterns the one with the most text of its own counts: `probe_agreement_k5` is
    `probe_{items}_k{k}`. Raises ValueError for a key that nothing defines.
    """
    return _matched(key)[0]


def definition(key: str) -> Measure:
    """The measure that a number's key stands for (see `pattern_of`), its blanks filled in."""
    pattern, values = _matched(key)
    texts = {field.name: getattr(DEFINITIONS[pattern], field.name) for field in fields(Measure)}
    for name, value in values.items():
        words = value.replace("_", ", ", 1).replace("_", " ")  # agreement_object_RC
        texts = {field: text.replace(f"{{{name}}}", words) for field, text in texts.items()}
    return Measure(**texts)


def label(key: str) -> str:
    """The measure's name for a table or an axis, with its unit where the name does not say it."""
    measure = definition(key)
    silent = not measure.unit or measure.unit in measure.label
    return measure.label if silent else f"{measure.label}, {measure.unit}"


def _matched(key: str) -> tuple[str, dict[str, str]]:
    """The pattern of a key, and what stands in its blanks."""
    for prefix in ("", *PREFIXES):
        for pattern, rule in _rules().items():
            if key.startswith(prefix) and (match := rule.fullmatch(key, len(prefix))):
                return pattern, match.groupdict()
    raise ValueError(f"no measure is called {key!r}; docs/MEASURES.md lists them")


@functools.cache
def _rules() -> dict[str, re.Pattern[str]]:
    """Every pattern as a regular expression, those with the most text of their own first."""
    blank = re.compile(r"\{(\w+)\}")
    by_length = sorted(DEFINITIONS, key=lambda key: -len(blank.sub("", key)))
    filled = {p: blank.sub(lambda b: f"(?P<{b[1]}>{_VALUES[b[1]]})", p) for p in by_length}
    return {pattern: re.compile(rule) for pattern, rule in filled.items()}


_PREAMBLE = (
    "Written by `python -m tsae_lab.definitions > docs/MEASURES.md`; not edited by hand.",
    "The keys are those of `measures.json`, `final_info.json`, `summary.csv` and of a command's",
    "`--json`. `{lag}`, `{tau}`, `{k}`, `{items}`, `{set}`: any value; `{average}`: pooled,",
    "feature; `{mode}`: local, propagated; `{rule}`: standardised, l1. Documents never touch: no",
    "pair, run or transition crosses the end of a chunk of text. What cannot be computed is absent",
    "(null in JSON, empty in CSV, - in tables): TSS without an eligible feature, a difference or",
    "share of nothing, an interval of a single document, which cannot be resampled, a standard",
    "error of a single seed.",
    "`+-` is over seeds: each trains its own models and draws its own probing items, folds and",
    "cases; the text is the same. Intervals are of one seed, over documents (probes: groups of",
    "items; interventions: lemmas with their twins, features, sequences or minimal pairs).",
)


def markdown() -> str:
    """docs/MEASURES.md: all measures by group, and what stands before a key."""
    lines = ["# Measures", "", *_PREAMBLE, "", "| before a key | the number is |", "|---|---|"]
    lines += [f"| `{prefix}` | {meaning} |" for prefix, meaning in PREFIXES.items()]
    for group in dict.fromkeys(measure.group for measure in DEFINITIONS.values()):
        lines += ["", f"## {group.capitalize()}"]
        for key, measure in DEFINITIONS.items():
            if measure.group == group:
                lines += ["", f"### `{key}`: {measure.label}", "", *_entry(measure)]
    return "\n".join(lines) + "\n"


def _entry(measure: Measure) -> list[str]:
    formula = [f"- formula: `{measure.formula}`"] if measure.formula else []
    better = "" if measure.better == "neither" else f", {measure.better} is better"
    function, _, paper = measure.source.partition("; ")
    return [
        measure.definition,
        "",
        *formula,
        f"- range: {measure.range}{better}",
        f"- unit: {measure.unit or 'none'}",
        f"- source: `{function}`{paper and '; ' + paper}",
    ]


if __name__ == "__main__":
    print(markdown(), end="")  # noqa: T201
