"""The call that audits."""

from collections.abc import Iterable
from typing import Final

from headwater.metering.v1 import metering_pb2 as pb
from headwater.metering.v1.metering_pb2_grpc import MeteringServiceServicer

from services.contracts.amounts import plain
from services.metering.audit.audit import Audit
from services.metering.audit.ranges import SequenceRange
from services.metering.rpc.translation import Context
from services.runtime.calls import time_left

_SHARE_OF_DEADLINE: Final = 0.7
"""So that an answer still arrives when the last step takes its time."""


class AuditRpc(MeteringServiceServicer):
    """Translates to and from protobuf; decides nothing."""

    def __init__(self, audit: Audit) -> None:
        self._audit = audit

    async def Audit(self, request: pb.AuditRequest, context: Context) -> pb.AuditResponse:
        """Audits for as long as the call may take; the next call goes on."""
        report = await self._audit(_SHARE_OF_DEADLINE * time_left(), full=request.full, dry_run=request.dry_run)
        found, sums = report.found, report.sums
        return pb.AuditResponse(
            first_sequence=report.first_sequence,
            last_sequence=report.last_sequence,
            stored=report.stored,
            duplicates=found.duplicates,
            dead_lettered=found.dead_lettered,
            gaps=_ranges(found.gaps),
            missing=found.missing,
            replayed=found.replayed,
            lost=_ranges(found.lost_ranges),
            waiting=report.waiting,
            truth_usd=plain(sums.truth_usd),
            rollup_usd=plain(sums.rollup_usd),
            differing_hours=sums.differing_hours,
            kept_hours=len(sums.kept),
            forgotten_hours=sums.forgotten_hours,
            complete=report.complete,
            finished=report.finished,
            lost_before=report.lost_before,
            duplicated=_ranges(found.duplicated),
            redrivable=found.redrivable,
            redriven=found.redriven,
            late=report.late,
            second_charges=[
                pb.SecondCharge(event_id=str(charge.event_id), sequences=charge.sequences)
                for charge in report.second_charges
            ],
        )


def _ranges(ranges: Iterable[SequenceRange]) -> list[pb.SequenceRange]:
    return [pb.SequenceRange(first=first, last=last) for first, last in ranges]
