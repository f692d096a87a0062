"""The stages of a policy: each made once from what it names, for as long as the policy is in use."""

from collections.abc import Callable, Mapping, Sequence

from services.contracts.failures import Rejected
from services.inference.confidence import BEST_SENTENCE, SHORT_ANSWER
from services.inference.deployments.model import Model
from services.inference.drafts import Stage
from services.inference.generative import GenerativeStage
from services.inference.local import ExtractStage
from services.inference.policies.gates import signals_of
from services.inference.policies.records import PolicyVersion
from services.inference.policies.schema import Gate, Policy, StagePolicy
from services.inference.settings import InferenceSettings
from services.knowledge.embedder import Embedder

EXTRACT_1, EXTRACT_20 = "local/extract-1", "local/extract-20"
"""The local stages: the best sentence of the best passage; a short answer composed from up to twenty passages."""

_MOST_CACHED = 1000


class Stages:
    """Makes the stages of policies from the models that are configured."""

    def __init__(self, settings: InferenceSettings, models: Mapping[str, Model], embedder: Embedder | None) -> None:
        """`embedder`: None when no local stages are served."""
        self._models = models
        self._local: dict[str, Callable[[StagePolicy], Stage]] = {}
        if embedder is not None:
            one, twenty = settings.extract_1, settings.extract_20
            self._local = {
                EXTRACT_1: lambda policy: ExtractStage(policy.name, EXTRACT_1, one, BEST_SENTENCE, embedder),
                EXTRACT_20: lambda policy: ExtractStage(policy.name, EXTRACT_20, twenty, SHORT_ANSWER, embedder),
            }
        self._made: dict[tuple[str, int], tuple[Stage, ...]] = {}

    @property
    def known_models(self) -> frozenset[str]:
        """What a policy's stages may name."""
        return frozenset(self._local) | frozenset(self._models)

    def of(self, version: PolicyVersion) -> Sequence[Stage]:
        """The stages of a policy, in its order.

        Raises:
            KeyError: it names a model that is not configured; a policy in force never does (see PolicyStore).
        """
        key = (version.name, version.version)
        if key not in self._made:
            if len(self._made) >= _MOST_CACHED:
                self._made.clear()
            self._made[key] = tuple(map(self._make, version.policy.stages))
        return self._made[key]

    def _make(self, policy: StagePolicy) -> Stage:
        if policy.model in self._local:
            return self._local[policy.model](policy)
        verifier = self._models[policy.verifier] if policy.verifier else None
        return GenerativeStage(policy, self._models[policy.model], verifier, logprobs=_looks_at_logprobs(policy.gate))


def built_in_policy(settings: InferenceSettings) -> Policy:
    """The policy where none is in force: the local stages, then one model.

    Raises:
        Rejected: there is neither.
    """
    stages = []
    if settings.local_stages:
        stages = [
            StagePolicy(name=EXTRACT_1, model=EXTRACT_1, gate=Gate(threshold=settings.extract_1.threshold)),
            StagePolicy(name=EXTRACT_20, model=EXTRACT_20, gate=Gate(threshold=settings.extract_20.threshold)),
        ]
    model = settings.default_model or next(iter(settings.models), "")
    if model:
        stages.append(StagePolicy(name=model, model=model))
    if not stages:
        message = "set HEADWATER_INFERENCE__MODELS or leave HEADWATER_INFERENCE__LOCAL_STAGES on: nothing could answer"
        raise Rejected("NO_MODELS", message)
    return Policy(name="default", stages=tuple(stages), answer_floor=settings.answer_floor)


def _looks_at_logprobs(gate: Gate) -> bool:
    return any(signal.startswith(("logprob_", "margin_")) for signal in signals_of(gate))
