"""Synthetic activations whose answer lies in the order of tokens, and what one token says of it.

Each task gives activations (n_seq, seq, d_in), the answer at each token, the best score that any
function of a single token can reach (`ceiling`) and the score of an oracle that reads the past.
Symbols are unit directions, drawn with the seed, plus a little noise.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

D_IN, NOISE = 32, 0.05  # width of the activations; standard deviation per dimension
POSITIONS, SPEED, TURNS = 16, 3, 1 / 32  # of the motion: places on a cycle, step, P(turn)
STATES, SWITCHES, LONGEST = 8, 1 / 16, 16  # of the switches: states, P(switch), tokens counted
BASE, JUMP, DECAY = 0.05, 0.2, 0.7  # of the events: rate, rise of the rate per event, its decay


@dataclass(frozen=True, eq=False, kw_only=True)
class OrderTask:
    """Activations, the answer at each token, and what can be known of it."""

    name: str
    x: Float[Tensor, "n_seq seq d_in"]
    answer: Float[Tensor, "n_seq seq"]
    binary: bool  # scored by accuracy; else by R^2
    ceiling: float  # best score of a function of one token
    oracle: float  # of the tokens up to this one


def _shown(symbols: Int[Tensor, "n_seq seq"], n: int, generator: Generator) -> Tensor:
    directions = torch.randn(n, D_IN, generator=generator)
    directions = directions / directions.norm(dim=1, keepdim=True)
    return directions[symbols] + NOISE * torch.randn(*symbols.shape, D_IN, generator=generator)


def signed_motion(n_seq: int, seq: int, generator: Generator) -> OrderTask:
    """A place on a cycle moves by +v or -v; asked is the sign of the last move.

    Places are uniform whatever the signs were (the start is), so one token says nothing: .50. Two
    neighbours say all of it, as v is not half of the cycle.
    """
    turned = torch.rand(n_seq, seq, generator=generator) < TURNS
    first = torch.randint(2, (n_seq, 1), generator=generator)
    sign = (turned.long().cumsum(1) + first) % 2
    start = torch.randint(POSITIONS, (n_seq, 1), generator=generator)
    place = (start + (SPEED * (2 * sign - 1)).cumsum(1)) % POSITIONS
    x = _shown(place, POSITIONS, generator)
    return OrderTask(
        name="signed_motion", x=x, answer=sign.float(), binary=True, ceiling=0.5, oracle=1.0
    )


def since_switch(n_seq: int, seq: int, generator: Generator) -> OrderTask:
    """A state that switches to another; asked is how many tokens ago, up to 16.

    States are exchangeable, so one token explains nothing of the time: R^2 0. The last 16 tokens
    say all of it; a sequence's start counts as a switch.
    """
    switched = torch.rand(n_seq, seq, generator=generator) < SWITCHES
    switched[:, 0] = True
    by = torch.randint(1, STATES, (n_seq, seq), generator=generator)
    first = torch.randint(STATES, (n_seq, 1), generator=generator)
    state = (first + (by * switched).cumsum(1)) % STATES
    t = torch.arange(seq).expand(n_seq, -1)
    last = torch.where(switched, t, 0).cummax(1).values
    answer = (t - last).clamp(max=LONGEST).float()
    x = _shown(state, STATES, generator)
    return OrderTask(name="since_switch", x=x, answer=answer, binary=False, ceiling=0.0, oracle=1.0)


def self_exciting(n_seq: int, seq: int, generator: Generator) -> OrderTask:
    """Events that make events likelier; asked is the rate of the next token.

    `rate_t = base + jump sum_j decay^(j-1) event_{t-j}`. The best function of one token, which is
    an event or is not, is the mean rate after either: its R^2 is the ceiling, below the oracle's.
    """
    rate, event, rates, events = torch.zeros(n_seq), torch.zeros(n_seq), [], []
    for _ in range(seq):
        event = (torch.rand(n_seq, generator=generator) < BASE + rate).float()
        rate = DECAY * rate + JUMP * event
        rates.append(rate)
        events.append(event)
    answer, happened = torch.stack(rates, 1) + BASE, torch.stack(events, 1)
    filler = 1 + torch.randint(STATES, (n_seq, seq), generator=generator)
    x = _shown(torch.where(happened > 0, 0, filler), 1 + STATES, generator)
    means = torch.where(happened > 0, answer[happened > 0].mean(), answer[happened == 0].mean())
    ceiling = float(
        (means - answer.mean()).square().sum() / (answer - answer.mean()).square().sum()
    )
    return OrderTask(
        name="self_exciting", x=x, answer=answer, binary=False, ceiling=ceiling, oracle=1.0
    )


ORDER_TASKS: Mapping[str, Callable[[int, int, Generator], OrderTask]] = MappingProxyType(
    {"signed_motion": signed_motion, "since_switch": since_switch, "self_exciting": self_exciting}
)


def linear_score(
    features: Float[Tensor, "n_seq seq width"], task: OrderTask, ridge: float = 1e-3
) -> float:
    """Accuracy (binary) or R^2 of a linear probe, fitted on half of the sequences, on the others.

    Ridge regression; a binary answer is 1 where it foretells more than 1/2.
    """
    half = len(features) // 2
    ones = torch.ones(*features.shape[:2], 1)
    A, A_new = torch.cat([features, ones], 2).double().split([half, len(features) - half])
    y, y_new = task.answer.double().split([half, len(features) - half])
    A, A_new, y, y_new = A.flatten(0, 1), A_new.flatten(0, 1), y.flatten(), y_new.flatten()
    gram = A.t() @ A
    penalty = ridge * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    told = A_new @ torch.linalg.solve(gram + penalty, A.t() @ y)
    if task.binary:
        return float(((told > 0.5) == (y_new > 0.5)).double().mean())
    return float(1 - (y_new - told).square().sum() / (y_new - y_new.mean()).square().sum())
