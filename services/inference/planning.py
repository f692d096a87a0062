"""Planning: the stages that a request may go through, made from its tenant's policy and what its caller asks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from services.contracts.failures import Rejected
from services.contracts.tenants import TenantId
from services.inference.answers import Question
from services.inference.drafts import Stage
from services.inference.policies.plan import Plan, plan
from services.inference.policies.records import PolicyVersion
from services.inference.policies.schema import Policy, StagePolicy

LOCAL = "local/"
"""How the models that run on the embedding model alone are called; they answer from passages only."""


@dataclass(frozen=True, slots=True)
class PlannedStage:
    """A stage of a plan."""

    policy: StagePolicy
    stage: Stage
    threshold: float
    skipped: str
    """Why it is not asked, in words; empty when it is."""


@dataclass(frozen=True, slots=True)
class Route:
    """What one request may go through."""

    version: str
    """Of the policy, as name@version."""
    policy: Policy
    plan: Plan
    stages: tuple[PlannedStage, ...]

    @property
    def asked(self) -> tuple[PlannedStage, ...]:
        """The stages that are not skipped."""
        return tuple(stage for stage in self.stages if not stage.skipped)


@dataclass(frozen=True, slots=True)
class Planner:
    """Makes routes."""

    policy_for: Callable[[TenantId, str], PolicyVersion]
    """The policy in force for a tenant's feature, from memory."""
    stages: Callable[[PolicyVersion], Sequence[Stage]]
    """Its stages, in order."""

    def route(self, tenant: TenantId, question: Question) -> Route:
        """The route of `question`.

        Raises:
            Rejected: it names a stage that its policy does not have, or continues a conversation and its policy has
                only stages that answer from documents.
        """
        version = self.policy_for(tenant, question.attribution.feature)
        prompt = question.text if question.chat is None else question.chat.messages[-1].content
        limits = question.limits
        planned = plan(version.policy, prompt, target_quality=limits.target_quality, max_stage=limits.max_stage)
        made = dict(zip((stage.name for stage in version.policy.stages), self.stages(version), strict=True))
        stages = tuple(
            PlannedStage(
                policy,
                made[policy.name],
                planned.thresholds[policy.name],
                planned.skipped.get(policy.name, ""),
            )
            for policy in planned.stages
            if question.chat is None or not policy.model.startswith(LOCAL)
        )
        route = Route(f"{version.name}@{version.version}", version.policy, planned, stages)
        if not route.asked:
            raise Rejected(
                "NO_STAGE_FOR_CHAT",
                "every stage that may be asked answers from documents only: configure a model, or ask a question",
            )
        return route
