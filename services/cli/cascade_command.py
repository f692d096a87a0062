"""`headwater cascade`: calibrate a policy on recorded outputs, and replay one. Asks no server and no model."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from services.cli.errors import CommandFailed, Exit
from services.cli.rendering import note, plain, print_json, stderr, stdout, table
from services.contracts.failures import Rejected

if TYPE_CHECKING:
    from services.inference.calibration.recorded import Recorded
    from services.inference.calibration.replay import Score
    from services.inference.policies.schema import Policy

app = typer.Typer(
    help="Calibrate a cascade policy on recorded outputs, and replay one (docs/calibration.md). Calls nobody.",
    rich_markup_mode="rich",
    no_args_is_help=True,
)
_MOST_POLICY_BYTES = 1024 * 1024

_Policy = Annotated[
    Path, typer.Option("--policy", help="The policy, YAML or JSON; its stages from the cheapest on.", metavar="FILE")
]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


@app.command(
    "calibrate",
    epilog="Example:  [cyan]headwater cascade calibrate --gold gold.jsonl --policy policy.yaml --target-quality .98 "
    "--confidence .9 --plot plots[/], then [cyan]headwater policy put policy.calibrated.yaml[/]",
)
def calibrate_command(
    gold: Annotated[Path, typer.Option(help="Questions with every stage's output, JSON Lines.", metavar="FILE")],
    policy: _Policy,
    target_quality: Annotated[
        float, typer.Option(help="To reach, relative to the last stage's accuracy: .98", metavar="SHARE")
    ],
    confidence: Annotated[
        float | None,
        typer.Option(help="Prove the quality with this probability: .9. Costs more than an estimate.", metavar="P"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Where to write the calibrated policy; by default FILE.calibrated.yaml.", metavar="FILE"),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw cost against quality there: cascade.png, cascade.html.", metavar="FOLDER")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of folds and splits.", min=0)] = 0,
    json_output: _Json = False,
) -> None:
    """Fit calibrators, router and thresholds, and write the policy that reaches a quality at the least cost."""
    if not 0 < target_quality <= 1:
        raise CommandFailed(Exit.USAGE, "--target-quality must be more than 0 and at most 1, as in .98")
    if confidence is not None and not 0.5 <= confidence <= 0.999:
        raise CommandFailed(Exit.USAGE, "--confidence must be at least .5 and at most .999, as in .9")
    read = _read_policy(policy)
    with stderr().status("reading"):
        from services.inference.calibration.calibrate import calibrate
        from services.inference.calibration.report import table as curve
        from services.inference.calibration.report import write_plots
        from services.inference.calibration.versions import written

        recorded = _recorded(gold, read, "calibrate")
    with stderr().status(f"calibrating on {len(recorded)} questions"):
        made = calibrate(recorded, read, target_quality, confidence, seed=seed)
    target = out or policy.with_name(f"{policy.stem}.calibrated.yaml")
    _write(target, written(made.policy, made.notes))
    pictures = write_plots(made.outcome, plot) if plot is not None else ()
    chosen = made.outcome.chosen
    if json_output:
        print_json(
            {
                "policy": str(target),
                "stages": [stage.name for stage in made.policy.stages],
                "thresholds": [stage.gate.threshold for stage in made.policy.stages],
                "quality": chosen.quality,
                "estimated_quality": chosen.estimated,
                "cost_ratio": chosen.cost_ratio,
                "notes": list(made.notes),
                "plots": [str(path) for path in pictures],
            }
        )
        return
    stdout().print(curve(made.outcome))
    for told in made.notes:
        stdout().print(plain(told))
    for path in (target, *pictures):
        note(f"wrote {path}")


@app.command(
    "replay", epilog="Example:  [cyan]headwater cascade replay --recorded outputs.jsonl --policy policy.yaml[/]"
)
def replay_command(
    recorded: Annotated[
        Path, typer.Option(help="Questions with every stage's output, as a gold file.", metavar="FILE")
    ],
    policy: _Policy,
    target_quality: Annotated[
        float | None,
        typer.Option(help="As a caller would state it; by default the gates as they are.", metavar="SHARE"),
    ] = None,
    json_output: _Json = False,
) -> None:
    """Score a policy on recorded outputs: accuracy, cost, latency, each stage's share. Calls nobody."""
    if target_quality is not None and not 0 < target_quality <= 1:
        raise CommandFailed(Exit.USAGE, "--target-quality must be more than 0 and at most 1, as in .98")
    read = _read_policy(policy)
    with stderr().status("replaying"):
        from services.inference.calibration.replay import replay

        score = replay(_recorded(recorded, read, "replay"), read, target_quality)
    if json_output:
        print_json(_as_json(score))
        return
    _show(score)


def _read_policy(path: Path) -> "Policy":
    from services.inference.policies.parsing import parse_policy

    with path.open("rb") as file:
        content = file.read(_MOST_POLICY_BYTES + 1)
    try:
        return parse_policy(content.decode(), known_models=None, priced=None)
    except UnicodeDecodeError:
        raise CommandFailed(Exit.REJECTED, f"{path}: line 1: this is no UTF-8 text") from None
    except Rejected as rejected:
        raise CommandFailed(Exit.REJECTED, f"{path}: {rejected.message}") from rejected


def _recorded(path: Path, policy: "Policy", purpose: Any) -> "Recorded":
    from services.inference.calibration.gold import read_recorded

    try:
        return read_recorded(path, [stage.name for stage in policy.stages], purpose=purpose)
    except Rejected as rejected:
        raise CommandFailed(Exit.REJECTED, f"{path}: {rejected.message}") from rejected


def _write(path: Path, text: str) -> None:
    """All of it or nothing: a policy that is cut off could be valid."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_text(text, encoding="utf-8")
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def _show(score: "Score") -> None:
    shown = table(
        "STAGE", *((name, "right") for name in ("ASKED", "ANSWERED", "RIGHT", "ALONE", "COST ALONE $", "ECE"))
    )
    for stage in score.stages:
        values = (stage.ran, stage.answered, stage.accuracy_here, stage.accuracy_alone)
        known = [f"{value:.1%}" if value == value else "-" for value in values]  # noqa: PLR0124 - NaN alone differs
        error = "-" if stage.calibration_error != stage.calibration_error else f"{stage.calibration_error:.3f}"
        shown.add_row(plain(stage.name), *known, f"{stage.cost_usd:.9f}", error)
    out = stdout()
    out.print(shown)
    out.print(
        f"{score.questions} questions: {score.accuracy:.1%} right, {score.quality:.1%} ± {score.quality_error:.1%} "
        f"of the last stage's accuracy, at {score.cost_ratio:,.1%} of its cost (${score.cost_usd:.9f} a question)"
    )
    if score.latency_ms:
        out.print(
            "latency, one stage after the other: " + ", ".join(f"{k} {v:.0f} ms" for k, v in score.latency_ms.items())
        )


def _as_json(score: "Score") -> dict[str, Any]:
    from dataclasses import asdict

    def known(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: known(inner) for key, inner in value.items()}
        if isinstance(value, (list, tuple)):
            return [known(inner) for inner in value]
        return None if isinstance(value, float) and value != value else value  # noqa: PLR0124 - NaN is no JSON

    return dict(known(asdict(score)))
