"""How long a code is still that of the text before, where a text goes on as another document."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import sparse
from torch import Tensor

from metrics import CodedText, document_rank, ratio, similarity, token_matrix

EPS = 1e-9  # a similarity that is above chance by less has nothing to keep


@dataclass(frozen=True, eq=False)
class Splice:
    """Similarity to the last code before a splice, by tokens after it (0: the first one)."""

    after: tuple[int, ...]
    within: Float[np.ndarray, " after"]  # of the codes of the same document, had it gone on
    across: Float[np.ndarray, " after"]  # of the codes after the splice
    chance: Float[np.ndarray, " after"]  # of the other document's codes where nothing was spliced
    kept: Float[
        np.ndarray, " after"
    ]  # (across - chance) / (within - chance); NaN if within is not above
    survived: Float[np.ndarray, "after n_doc"]
    """sum of across - chance over the splices that begin in each document, ids ascending"""
    could: Float[np.ndarray, "after n_doc"]
    """sum of within - chance: `kept` is the ratio of the sums over all documents"""
    n_splices: int


def splice_documents(
    x: Float[Tensor, "n_seq seq d_in"], document: Int[Tensor, " n_seq"], position: int
) -> tuple[Float[Tensor, "n_spliced seq d_in"], Int[Tensor, " n_spliced"]]:
    """Chunks that go on, from `position`, as another document, and the chunk each begins as.

    Encode the result for `splice_kept`. Each chunk is continued by one of another
    document, or left out. `x` may be anything per token. Raises ValueError for a position outside
    the chunk or a single document.
    """
    if not 0 < position < x.shape[1]:
        raise ValueError(f"splice needs 0 < position < {x.shape[1]}; got {position}")
    # chunks in order of document, moved on by the size of the largest, so that few meet their own
    order = document.argsort(stable=True)
    other = order.roll(-int(document.unique(return_counts=True)[1].max()))
    differ = document[order] != document[other]
    if not differ.any():
        raise ValueError("splice needs chunks of at least two documents; got one")
    begun, continued = order[differ], other[differ]
    return torch.cat([x[begun, :position], x[continued, position:]], dim=1), begun


def splice_kept(
    codes: CodedText,
    spliced: CodedText,
    begun: Int[Tensor, " n_spliced"],
    continued: Int[Tensor, " n_spliced"],
    position: int,
    dec_norm: Float[Tensor, " d_sae"] | None = None,
    after: Iterable[int] = (0, 1, 2, 4, 8),
) -> Splice:
    """Share of a code's similarity above chance that survives a splice of two documents.

    1 = the code is still the old document's, 0 = it is what it would be without that document (a
    static code); a code that lags by L tokens keeps 1 for L tokens. `spliced` are the codes of the
    chunks that begin as chunks `begun` of `codes` and go on, from `position`, as `continued`, the
    state carried over. Similarity: `sum_f min(a, b) / sum_f max(a, b)` of contributions.
    Raises ValueError for no splice, or one whose chunks end before the last token asked for.
    """
    after, seq = tuple(after), codes.valid.shape[1]
    whole = position + max(after) < seq and bool(codes.valid[begun].all())
    if not (whole and len(begun) and position > 0 and min(after) >= 0):
        raise ValueError(
            f"splice needs whole chunks of over {position} + {after} tokens; got {seq}"
        )
    tokens = [token_matrix(part, dec_norm) for part in (codes, spliced)]
    matrix = sparse.csr_array(sparse.vstack(tokens))
    seam = codes.valid.numel() + np.arange(len(begun)) * seq + position
    goes_on = begun.numpy() * seq + position, seam, continued.numpy() * seq + position
    within, across, chance = (
        np.stack([similarity(matrix, (seam - 1, rows + d)) for d in after]) for rows in goes_on
    )
    rank = document_rank(codes)
    begins = rank[begun.numpy()][:, None] == np.arange(rank.max() + 1)
    survived, could = (across - chance) @ begins, (within - chance) @ begins
    top, bottom = survived.sum(1) / len(begun), could.sum(1) / len(begun)
    kept = np.where(bottom > EPS, ratio(top, bottom), np.nan)
    means = within.mean(1), across.mean(1), chance.mean(1)
    return Splice(after, *means, kept, survived, could, len(begun))
