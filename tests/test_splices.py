import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

import metrics
from tsae_lab.measures import splices


def lagging(x, lag):
    """A code that shows, at each token, what stood `lag` tokens before it."""
    acts = torch.nn.functional.one_hot(x, 40).float()
    return torch.cat([torch.zeros_like(acts[:, :lag]), acts[:, : acts.shape[1] - lag]], dim=1)


def topics(n_seq=40, seq=40):
    """Words of a document's own three, so that its tokens are more alike than those of two."""
    g = torch.Generator().manual_seed(0)
    return torch.randint(3, (n_seq, seq), generator=g) + 10 * (torch.arange(n_seq) % 4)[:, None]


@pytest.mark.parametrize("lag", [0, 1, 2, 4, 8])
def test_a_code_that_lags_keeps_all_over_a_splice_for_as_long_and_a_static_one_nothing(lag):
    x, rows = topics(), torch.arange(40.0)[:, None, None].expand(40, 40, 1)
    mixed, begun = splices.splice_documents(rows, torch.arange(40) % 4, 20)
    continued = mixed[:, -1, 0].long()
    spliced = torch.cat([x[begun, :20], x[continued, 20:]], dim=1)
    codes, across = (metrics.codes_from_dense(lagging(text, lag)) for text in (x, spliced))
    found = splices.splice_kept(
        codes, across, begun, continued, 20, after=(0, 1, 2, 3, 4, 7, 8, 12)
    )
    assert found.kept.tolist() == [float(after < lag) for after in found.after]
    assert found.n_splices == 40
    assert (found.within > found.chance).all()


def test_what_survives_a_splice_is_summed_by_the_document_that_it_ends():
    x, rows, document = (
        topics(),
        torch.arange(40.0)[:, None, None].expand(40, 40, 1),
        torch.arange(40) % 3,
    )
    mixed, begun = splices.splice_documents(rows, document, 20)
    continued = mixed[:, -1, 0].long()
    acts = lagging(torch.cat([x[begun, :20], x[continued, 20:]], dim=1), 1)
    codes = metrics.codes_from_dense(lagging(x, 1), document=document)

    def measured(some):
        across = metrics.codes_from_dense(acts[some])
        return splices.splice_kept(codes, across, begun[some], continued[some], 20, after=(0, 2))

    whole = measured(torch.arange(len(begun)))
    for row in range(3):
        some = (document[begun] == row).nonzero()[:, 0]
        alone = measured(some)
        survived, could = alone.across - alone.chance, alone.within - alone.chance
        assert whole.survived[:, row] == pytest.approx(len(some) * survived)
        assert whole.could[:, row] == pytest.approx(len(some) * could)
    assert whole.kept == pytest.approx(whole.survived.sum(1) / whole.could.sum(1))


def test_a_frozen_code_has_nothing_above_chance_to_keep_and_chunks_must_be_long_enough():
    codes, rows = metrics.codes_from_dense(torch.ones(4, 6, 3)), torch.arange(4)
    assert np.isnan(
        splices.splice_kept(codes, codes, rows, rows.flip(0), 3, after=(0, 2)).kept
    ).all()
    for position, after in ((3, (0, 3)), (0, (0,)), (3, (-1,))):
        with pytest.raises(ValueError, match="splice needs whole chunks"):
            splices.splice_kept(codes, codes, rows, rows.flip(0), position, after=after)


def test_similarities_at_a_splice_by_hand():
    acts = torch.tensor([[[2.0, 0], [1, 1]], [[0, 2], [0, 4]]])
    spliced = metrics.codes_from_dense(torch.tensor([[[2.0, 0], [1, 3]]]))
    codes = metrics.codes_from_dense(acts)
    found = splices.splice_kept(codes, spliced, torch.tensor([0]), torch.tensor([1]), 1, after=[0])
    assert (found.within[0], found.across[0], found.chance[0]) == (1 / 3, 1 / 5, 0.0)
    assert found.kept[0] == pytest.approx(3 / 5)


def test_similarity_is_that_of_contributions_and_0_of_two_empty_codes():
    matrix = metrics.token_matrix(
        metrics.codes_from_dense(torch.tensor([[[1.0, 2], [2, 0], [0, 0]]]))
    )
    first, second = np.array([0, 2]), np.array([1, 2])
    assert metrics.similarity(matrix, (first, second)).tolist() == [1 / 4, 0.0]


@given(st.data(), st.integers(1, 6), st.integers(2, 5))
def test_splice_joins_chunks_of_two_documents(data, n_seq, seq):
    document = torch.tensor(data.draw(st.lists(st.integers(0, 3), min_size=n_seq, max_size=n_seq)))
    assume(len(document.unique()) > 1)
    x = torch.arange(n_seq)[:, None, None].expand(n_seq, seq, 1) + 0.0
    spliced, begun = splices.splice_documents(x, document, position=1)
    assert torch.equal(spliced[:, 0, 0].long(), begun)
    assert (spliced[:, 1:] == spliced[:, 1:2]).all()
    assert (document[spliced[:, 1, 0].long()] != document[begun]).all()


def test_splice_refuses_one_document_and_a_seam_outside():
    with pytest.raises(ValueError, match="two documents"):
        splices.splice_documents(
            torch.zeros(2, 3, 1), torch.zeros(2, dtype=torch.int64), position=1
        )
    with pytest.raises(ValueError, match="0 < position < 3; got 3"):
        splices.splice_documents(torch.zeros(2, 3, 1), torch.arange(2), position=3)
