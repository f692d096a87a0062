"""Policies out of YAML: what is taken, and that everything wrong is told with its line."""

import json
import re
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.contracts.documents import MOST_BYTES
from services.contracts.failures import Rejected
from services.inference.policies.parsing import check_policy, parse_policy
from services.inference.policies.records import policy_text
from services.inference.policies.schema import (
    Gate,
    IsotonicCalibrator,
    LogisticCalibrator,
    OperatingPoint,
    Policy,
    Router,
    RouterModel,
    StagePolicy,
)

MODELS = {"fast", "large", "unpriced", "local/extract-1"}
PRICED = MODELS - {"unpriced"}
DOCS = Path(__file__).parents[3] / "docs" / "policies.md"

GOOD = """\
name: support
stages:
  - name: first
    model: fast
    max_cost_usd: 0.02
    gate:
      threshold: 0.8
      calibrator:
        kind: isotonic
        signal: logprob_mean
        x: [-2, -1, 0]
        y: [0.1, 0.5, 1]
  - name: last
    model: large
    verifier: fast
router:
  models:
    first: {intercept: -1, weights: {log_chars: 0.5, "word:17": 2}}
  skip_below: {first: 0.2}
operating_points:
  - {quality: 0.98, thresholds: {first: 0.7}, cost_ratio: 0.4, guaranteed_with: 0.9}
"""


def rejection(text: str) -> str:
    """Why `text` is refused."""
    with pytest.raises(Rejected) as refused:
        parse_policy(text, known_models=MODELS, priced=PRICED)
    assert refused.value.reason == "POLICY_INVALID"
    return refused.value.message


def changed(old: str, new: str) -> str:
    """The good policy with one thing changed."""
    assert GOOD.count(old) == 1, old
    return GOOD.replace(old, new)


def test_a_policy_is_read() -> None:
    """Values arrive with their types; money is exact; what is left out has its default."""
    policy = parse_policy(GOOD, known_models=MODELS, priced=PRICED)
    first, last = policy.stages
    assert first.max_cost_usd == Decimal("0.02")
    assert first.gate.calibrator == IsotonicCalibrator(signal="logprob_mean", x=(-2, -1, 0), y=(0.1, 0.5, 1))
    assert last.gate == Gate(threshold=0)
    assert policy.operating_points[0].guaranteed_with == 0.9


def test_json_is_yaml() -> None:
    """The same policy in JSON is the same policy."""
    policy = parse_policy(GOOD, known_models=None, priced=None)
    assert parse_policy(policy.model_dump_json(exclude_none=True), known_models=None, priced=None) == policy


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("threshold: 0.8", "threshold: 1.8", "line 7: 'threshold' must be at most 1"),
        ("threshold: 0.8", "threshold: -0.1", "line 7: 'threshold' must be at least 0"),
        ("threshold: 0.8", 'threshold: "0.8"', "line 7: 'threshold' must be a number, without quotes"),
        ("threshold: 0.8", "threshold: .nan", "line 7: 'threshold' must be a number, without quotes"),
        ("threshold: 0.8", "threshold: 1e999", "line 7: 'threshold' must be a number, without quotes"),
        ("threshold: 0.8", "threshold: true", "line 7: 'threshold' must be a number, without quotes"),
        ("threshold: 0.8", "treshold: 0.8", "line 7: in gate: there is no field 'treshold'; did you mean 'threshold'?"),
        ("    model: fast\n", "", "line 3: in stages: 'model' is missing"),
        ("model: fast", "model: fsat", "line 4: nobody knows a model 'fsat'; did you mean 'fast'?"),
        ("verifier: fast", "verifier_max_output_tokens: 9", "line 15: there is no verifier to limit"),
        ("verifier: fast", "verifier: huge", "line 15: nobody knows a model 'huge'"),
        ("model: large", "model: unpriced", "line 14: model 'unpriced' has no price"),
        ("signal: logprob_mean", "signal: logprob_men", "line 10: there is no signal 'logprob_men'; did you mean 'log"),
        ("y: [0.1, 0.5, 1]", "y: [0.1, 1]", "line 12: x has 3 points and y has 2: they must be equally long"),
        ("x: [-2, -1, 0]", "x: [-2, -2, 0]", "line 11: x must rise from point to point"),
        ("y: [0.1, 0.5, 1]", "y: [0.1, 0.5, 0.4]", "line 12: y must never fall from point to point"),
        ("name: last", "name: first", "line 13: another stage is named first already"),
        ("name: last", "name: [last]", "line 13: 'name' must be text"),
        ("max_cost_usd: 0.02", "max_cost_usd: 0", "line 5: 'max_cost_usd' must be more than 0"),
        ("max_cost_usd: 0.02", "max_cost_usd: 0.00000000001", "line 5: 'max_cost_usd' must not be finer than a nano-"),
        ("max_cost_usd: 0.02", "samples: 2.5", "line 5: 'samples' must be a whole number"),
        ("max_cost_usd: 0.02", "model: large", "line 5: 'model' stands here a second time; the first is on line 4"),
        ("kind: isotonic", "kind: isotone", "line 8: 'calibrator' must be of kind logistic or isotonic"),
        ("skip_below: {first: 0.2}", "skip_below: {frist: 0.2}", "line 19: there is no stage frist"),
        ("skip_below: {first: 0.2}", "skip_below: {last: 0.2}", "line 19: router.models has no last"),
        ("log_chars: 0.5", "log_char: 0.5", "line 18: there is no prompt feature 'log_char'"),
        ("intercept: -1,", "intercept: -1, features_version: 99,", "line 18: it was fit on version 99"),
        ("thresholds: {first: 0.7}", "thresholds: {second: 0.7}", "line 21: there is no stage second"),
        ("name: support", "name: a.b", "line 1: 'name' must be a name"),
        ("name: support", "name: &x support", "line 1: anchors and aliases"),
        ("name: support", "name: !!python/name:os.system x", "line 1: tags (!name) are not allowed"),
        ("name: support", "name: support\n---", "line 2: a second document begins here"),
        ("name: support", "name: sup\x07port", "line 1: the character U+0007 is not allowed"),
        ("model: fast", "model: fast: 1", "line 4: this is no YAML"),
        ("name: support", "[name]: support", "line 1: a key must be a word"),
    ],
)
def test_a_mistake_is_told_with_its_line_and_reason(old: str, new: str, told: str) -> None:
    """One mistake, one sentence that leads to it."""
    assert told in rejection(changed(old, new))


def test_all_mistakes_are_told_at_once() -> None:
    """An author should not have to send a policy ten times."""
    text = changed("threshold: 0.8", "threshold: 8").replace("model: fast", "model: nope").replace("1]", "2]")
    assert re.findall(r"line (\d+):", rejection(text)) == ["4", "7", "12"]


def test_many_mistakes_are_counted_not_told() -> None:
    """A message stays readable whatever is sent."""
    stages = "\n".join(f"  - {{name: s{number}, modle: x}}" for number in range(16))
    message = rejection(f"name: many\nstages:\n{stages}\n")
    assert message.endswith("and 12 more")
    assert len(message) < 4000


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# nothing\n",
        "5",
        "- a\n- b",
        "{" * 100_000,
        "- " * 5000,
        "a: " * 5000,
        "x" * (MOST_BYTES + 1),
        "[" + "1," * 150_000 + "1]",
        "a: &a [x]\nb: &b [*a, *a]\nc: [*b, *b]",
        "%YAML 9.9\n---\nname: x",
        "name: \ud800",
        '{"name": "\\ud800"}',
        "\ufeff\ufeff",
        "? [a]\n: b",
        "9" * 5000,
    ],
)
def test_what_is_no_policy_at_all_is_refused_with_a_line(text: str) -> None:
    """Hostile documents end quickly and clearly."""
    assert re.match(r"line \d+: ", rejection(text))


PARTS = (StagePolicy, Gate, LogisticCalibrator, IsotonicCalibrator, Router, RouterModel, OperatingPoint, Policy)
KEYS = st.sampled_from(sorted({name for part in PARTS for name in part.model_fields} | {"first", "zz", "isotonic"}))
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["fast", "logistic", "isotonic", "confidence"])
)
TREES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=6), max_leaves=30
)


@given(st.text(max_size=400) | st.text(alphabet="ab:-[]{},&*!|>'\"#\n \t%@`0.?~", max_size=200))
def test_garbage_is_never_a_crash(text: str) -> None:
    """Any text at all is refused with a line."""
    assert re.match(r"line \d+: ", rejection(text))


@given(TREES)
def test_documents_of_the_wrong_shape_are_never_a_crash(tree: object) -> None:
    """Our own field names in wrong places, with wrong values: refused with lines that the document has."""
    text = json.dumps(tree, indent=1)
    policy, problems = check_policy(text, known_models=MODELS, priced=PRICED)
    if policy is None:
        assert problems
        assert all(1 <= problem.line <= text.count("\n") + 1 and problem.reason for problem in problems)


@given(st.data())
def test_a_good_policy_with_one_value_replaced_is_never_a_crash(data: st.DataObject) -> None:
    """Near misses take the deepest paths through the schema."""
    tree = json.loads(parse_policy(GOOD, known_models=None, priced=None).model_dump_json())
    where = tree
    while True:
        step = data.draw(st.sampled_from(sorted(where)) if isinstance(where, dict) else st.integers(0, len(where) - 1))
        if not isinstance(where[step], dict | list) or not where[step] or data.draw(st.booleans()):
            where[step] = data.draw(TREES)
            break
        where = where[step]
    policy, problems = check_policy(json.dumps(tree, indent=1), known_models=MODELS, priced=PRICED)
    assert (policy is None) == bool(problems)


PROBABILITIES = st.floats(0, 1)
CURVES = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20, unique=True).flatmap(
    lambda x: st.tuples(st.just(sorted(x)), st.lists(PROBABILITIES, min_size=len(x), max_size=len(x)).map(sorted))
)


@given(CURVES, PROBABILITIES, st.decimals("0.000000001", "1000", places=9), st.floats(-1e9, 1e9))
def test_what_is_written_reads_the_same(
    curve: tuple[list[float], list[float]], share: float, usd: Decimal, weight: float
) -> None:
    """A fitted policy survives its way through a file to the last digit."""
    x, y = curve
    isotonic = IsotonicCalibrator(signal="verifier", x=tuple(x), y=tuple(y))
    logistic = LogisticCalibrator(intercept=weight, weights={"margin_min": weight, "verifier": -weight})
    policy = Policy(
        name="no",
        stages=(
            StagePolicy(name="1", model="on", gate=Gate(threshold=share, calibrator=isotonic), max_cost_usd=usd),
            StagePolicy(name="2", model="null", gate=Gate(threshold=share, calibrator=logistic), timeout_seconds=1.5),
        ),
        router=Router(
            models={"1": RouterModel(intercept=weight, weights={"bytes:0": weight})}, skip_below={"1": share}
        ),
        operating_points=(OperatingPoint(quality=share, thresholds={"1": share}, cost_ratio=0.5),),
    )
    assert parse_policy(policy_text(policy), known_models=None, priced=None) == policy


def test_the_documentations_examples_are_valid() -> None:
    """What docs/policies.md shows can be put as it stands."""
    examples = re.findall(r"```yaml\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert examples
    for example in examples:
        parse_policy(example, known_models=None, priced=None)


def test_the_documentation_names_every_field_and_signal() -> None:
    """A field without a word of explanation would be found by reading code."""
    text = DOCS.read_text()
    fields = {name for part in PARTS for name in part.model_fields}
    assert not {name for name in fields if f"`{name}`" not in text}
