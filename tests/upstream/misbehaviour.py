"""How calls are to be treated, and in which order. Pure but for the seeded generator."""

import math
import random
from collections import deque
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tests.upstream.answers import Reply

Fault = Literal[
    "none",
    # nothing comes
    "reset",
    "close",
    "stall",
    "stall_after_headers",
    # half of it comes
    "reset_half_way",
    "close_half_way",
    "stall_half_way",
    "cut",  # and ends as if it were whole
    # something else comes
    "malformed",
    "error_in_stream",  # a body is an error under the status 200, as some gateways send it
    "html",
    "not_a_stream",
    "empty",
    "content_filter",
    # all of it comes, oddly
    "no_usage",
    "negative_usage",
    "text_usage",
    "absurd_usage",
    "early_usage",  # a stream tells what it has used before the first word, and never again
    "early_usage_cut",  # and its connection is lost before the last event
    "anonymous_calls",  # OpenAI: the tool is called twice, both calls without an identity and with index 0
    "wrong_content_type",
    "crlf_and_comments",
    "no_done",
    "drip",
]


class _Told(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Latency(_Told):
    """How long the first byte takes: exactly the median where `sigma` is 0, else log-normal around it."""

    median_s: Annotated[float, Field(ge=0)] = 0.0
    sigma: Annotated[float, Field(ge=0)] = 0.0

    def draw(self, generator: random.Random) -> float:
        """One latency, in seconds."""
        if not self.median_s or not self.sigma:
            return self.median_s
        return generator.lognormvariate(math.log(self.median_s), self.sigma)


class Conduct(_Told):
    """How one call is treated."""

    fault: Fault = "none"
    status: Literal[200] | Annotated[int, Field(ge=400, le=599)] = 200
    """With any but 200 the call is refused; `fault` then says how the refusal is sent."""
    code: str = "told_to"
    """Of the refusal."""
    retry_after_s: float | None = None
    retry_after_form: Literal["seconds", "date"] = "seconds"
    headers: dict[str, str] = {}
    """Sent besides."""
    latency: Latency = Latency()
    pace_s: Annotated[float, Field(ge=0)] = 0.0
    """Between two pieces of a stream (between two bytes of a drip); a body waits for all of its pieces."""


class Share(_Told):
    """A part of the calls."""

    share: Annotated[float, Field(ge=0, le=1)]
    conduct: Conduct


class Mix(_Told):
    """Calls treated at random: by each share's conduct with its probability, the rest as usual."""

    seed: int = 0
    shares: tuple[Share, ...] = ()

    @model_validator(mode="after")
    def _at_most_all(self) -> Self:
        if math.fsum(share.share for share in self.shares) > 1 + 1e-9:
            raise ValueError("the shares sum up to more than 1")
        return self


class Order(_Told):
    """A change of the script; what is left out stays as it is."""

    usual: Conduct | None = None
    upcoming: tuple[Conduct, ...] | None = None
    """One call each, in this order, before anything else applies."""
    models: dict[str, Conduct] | None = None
    """How calls for a model are treated, in place of the mix and the usual."""
    mix: Mix | None = None
    reply: Reply | None = None


class Script:
    """Decides how the next call is treated, and what an answer says."""

    def __init__(self) -> None:
        self.usual = Conduct()
        self.upcoming: deque[Conduct] = deque()
        self.models: dict[str, Conduct] = {}
        self.reply = Reply()
        self.generator = random.Random(0)
        self._mix = Mix()

    @property
    def mix(self) -> Mix:
        """What is drawn from; setting it starts its sequence again from its seed."""
        return self._mix

    @mix.setter
    def mix(self, mix: Mix) -> None:
        self._mix = mix
        self.generator = random.Random(mix.seed)

    def take(self, order: Order) -> None:
        """Changes what `order` tells."""
        self.usual = order.usual if order.usual is not None else self.usual
        self.upcoming = deque(order.upcoming) if order.upcoming is not None else self.upcoming
        self.models = order.models if order.models is not None else self.models
        self.reply = order.reply if order.reply is not None else self.reply
        if order.mix is not None:
            self.mix = order.mix

    def told(self) -> Order:
        """As it stands."""
        return Order(
            usual=self.usual, upcoming=tuple(self.upcoming), models=self.models, mix=self.mix, reply=self.reply
        )

    def conduct_for(self, model: str) -> Conduct:
        """How a call that comes now is treated."""
        if self.upcoming:
            return self.upcoming.popleft()
        if model in self.models:
            return self.models[model]
        return self._drawn() if self._mix.shares else self.usual

    def _drawn(self) -> Conduct:
        at = self.generator.random()
        for share in self._mix.shares:
            if at < share.share:
                return share.conduct
            at -= share.share
        return self.usual
