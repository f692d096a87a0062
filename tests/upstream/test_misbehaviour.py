"""Which call is treated how."""

import math
import random
import statistics
from collections import Counter

import pytest
from pydantic import ValidationError

from tests.upstream.answers import Reply
from tests.upstream.misbehaviour import Conduct, Latency, Mix, Order, Script, Share

STALL, RESET, DRIP = Conduct(fault="stall"), Conduct(fault="reset"), Conduct(fault="drip")


def test_what_is_upcoming_goes_first_then_the_models_then_the_mix() -> None:
    """The more precise an order is, the earlier it applies."""
    script = Script()
    script.take(Order(upcoming=(STALL,), models={"m": RESET}, mix=Mix(shares=(Share(share=1, conduct=DRIP),))))
    assert [script.conduct_for(model) for model in ("m", "m", "n")] == [STALL, RESET, DRIP]


def test_a_mix_is_drawn_from_its_seed() -> None:
    """In its proportions, and in the same sequence again."""
    script, mix = Script(), Mix(seed=7, shares=(Share(share=0.2, conduct=STALL), Share(share=0.1, conduct=RESET)))
    script.mix = mix
    drawn = [script.conduct_for("m") for _ in range(2000)]
    counted = Counter(conduct.fault for conduct in drawn)
    assert counted["stall"] == pytest.approx(400, abs=60)
    assert counted["reset"] == pytest.approx(200, abs=45)
    assert counted["none"] == pytest.approx(1400, abs=75)
    script.mix = mix
    assert [script.conduct_for("m") for _ in range(2000)] == drawn


def test_an_order_changes_only_what_it_tells() -> None:
    """And what stands can be told."""
    script = Script()
    script.take(Order(usual=STALL, models={"m": DRIP}))
    script.take(Order(usual=RESET, reply=Reply(words=("Yes",))))
    assert script.told() == Order(usual=RESET, upcoming=(), models={"m": DRIP}, mix=Mix(), reply=Reply(words=("Yes",)))


def test_latency_is_fixed_or_log_normal() -> None:
    """Around its median."""
    generator = random.Random(1)
    assert Latency(median_s=0.5).draw(generator) == 0.5
    drawn = [Latency(median_s=0.5, sigma=1.0).draw(generator) for _ in range(4000)]
    assert statistics.median(drawn) == pytest.approx(0.5, rel=0.1)
    assert statistics.stdev(map(math.log, drawn)) == pytest.approx(1.0, rel=0.1)


@pytest.mark.parametrize(
    "order",
    [
        '{"usual": {"fault": "explode"}}',
        '{"usual": {"status": 600}}',
        '{"usual": {"status": 302}}',
        '{"usuall": {}}',
        '{"mix": {"shares": [{"share": 0.7, "conduct": {}}, {"share": 0.4, "conduct": {}}]}}',
        '{"usual": {"latency": {"median_s": -1}}}',
    ],
)
def test_an_order_that_cannot_be_is_refused(order: str) -> None:
    """A typing error in a chaos test must not pass as calm."""
    with pytest.raises(ValidationError):
        Order.model_validate_json(order)
