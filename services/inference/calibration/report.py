"""What a calibration reached: a table for the terminal, and cost against quality as a picture and a page."""

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

from services.inference.calibration.fit import Choice
from services.inference.calibration.reached import Reached
from services.inference.calibration.recorded import Recorded

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_TITLES = ("asked for", "estimated", "replayed", "cost", "saved")
_INK, _FAINT, _OURS, _CHOSEN = "#1f2933", "#8a97a5", "#1769aa", "#c8102e"


@dataclass(frozen=True, slots=True)
class Outcome:
    """All that is told of a calibration."""

    policy: str
    recorded: Recorded
    curve: tuple[Reached, ...]
    """The cheapest for each quality that can be reached."""
    chosen: Reached
    statement: str
    """What was proven or estimated, from how many questions."""

    @property
    def stages(self) -> list[tuple[str, float, float]]:
        """Each stage alone: its name, cost ratio and accuracy relative to the last one's."""
        recorded = self.recorded
        costs, accuracy = recorded.mean(recorded.cost), recorded.accuracy
        return [
            (name, float(costs[k] / costs[-1]), float(accuracy[k] / accuracy[-1]))
            for k, name in enumerate(recorded.stages)
        ]


def table(outcome: Outcome) -> Table:
    """The curve, one quality a row, the chosen one last."""
    made = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold")
    for title in _TITLES:
        made.add_column(title, justify="right")
    made.add_column("stages, and what each one's draft must reach")
    for one in outcome.curve:
        made.add_row(*_row(f"{one.asked:.0%}", one, outcome.recorded.stages))
    made.add_section()
    made.add_row(*_row(f"{outcome.chosen.asked:.1%}", outcome.chosen, outcome.recorded.stages), style="bold")
    return made


def _row(label: str, one: Reached, stages: Sequence[str]) -> tuple[str, ...]:
    return (
        label,
        f"{one.estimated:.1%}",
        f"{one.quality:.1%}",
        f"{one.cost_ratio:.1%}",
        f"{1 - one.cost_ratio:.1%}",
        described(one.choice, stages),
    )


def described(choice: Choice, stages: Sequence[str]) -> str:
    """As in ``small ≥ 0.80, large``."""
    gated = [f"{stages[k]} ≥ {t:.2f}" for k, t in zip(choice.columns, choice.thresholds, strict=False)]
    return ", ".join([*gated, stages[choice.columns[-1]]])


def write_plots(outcome: Outcome, folder: Path) -> tuple[Path, Path]:
    """Writes cascade.png and cascade.html into `folder`; the page holds the picture and needs no network."""
    folder.mkdir(parents=True, exist_ok=True)
    picture, page = folder / "cascade.png", folder / "cascade.html"
    png = _png(drawn(outcome))
    picture.write_bytes(png)
    page.write_text(_page(outcome, png), encoding="utf-8")
    return picture, page


def drawn(outcome: Outcome) -> "Figure":
    """Cost against quality: each stage alone, the curve, and what was chosen; all as replayed on the record."""
    # The object interface: pyplot would keep figures and choose a window system.
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    figure = Figure(figsize=(9, 5.6), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    stages, chosen = outcome.stages, outcome.chosen
    mixing = zip(*mixed([(cost, quality) for _, cost, quality in stages]), strict=True)
    axes.plot(*mixing, "--", color=_FAINT, linewidth=1.2, label="best random mixing of stages")
    steps = sorted((one.cost_ratio, one.quality) for one in outcome.curve)
    axes.plot(*zip(*steps, strict=True), "o-", color=_OURS, markersize=4, linewidth=1.8, label="calibrated, replayed")
    axes.plot([s[1] for s in stages], [s[2] for s in stages], "s", color=_INK, markersize=6, label="one stage alone")
    axes.plot([chosen.cost_ratio], [chosen.quality], "*", color=_CHOSEN, markersize=15, zorder=5, label="chosen")
    axes.set_xlim(0, 1.08 * max(1.0, chosen.cost_ratio, *(cost for _, cost, _ in stages), *(cost for cost, _ in steps)))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    _dress(axes, outcome)
    return figure


def _png(figure: "Figure") -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)  # type: ignore[no-untyped-call]
    return buffer.getvalue()


def _dress(axes: "Axes", outcome: Outcome) -> None:
    asked = outcome.chosen.asked
    axes.axhline(asked, color=_CHOSEN, linewidth=0.8, linestyle=":")
    axes.annotate(
        f"asked for: {asked:.1%}", (0.005, asked), xycoords=("axes fraction", "data"),
        xytext=(2, -3), textcoords="offset points", color=_CHOSEN, fontsize=8, va="top",
    )  # fmt: skip
    _name_stages(axes, outcome.stages)
    axes.set_xlabel("mean cost, relative to always asking the last stage")
    axes.set_ylabel("accuracy, relative to the last stage's")
    axes.set_title(f"{outcome.policy}: cost against quality", loc="left", fontsize=12, color=_INK)
    axes.grid(visible=True, color="#e4e8ec", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right", frameon=False, fontsize=9)


def mixed(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The best that drawing lots between single stages reaches: the upper hull of (cost, quality), by cost."""
    hull: list[tuple[float, float]] = []
    for cost, quality in sorted(set(points)):
        if hull and quality <= hull[-1][1] and cost > hull[-1][0]:
            continue
        while hull and (cost == hull[-1][0] or (len(hull) > 1 and _bends_up(hull[-2], hull[-1], (cost, quality)))):
            hull.pop()
        hull.append((cost, quality))
    return hull


def _bends_up(one: tuple[float, float], two: tuple[float, float], three: tuple[float, float]) -> bool:
    return (two[1] - one[1]) * (three[0] - two[0]) <= (three[1] - two[1]) * (two[0] - one[0])


def _name_stages(axes: "Axes", stages: Sequence[tuple[str, float, float]]) -> None:
    """Beside each stage its name; of two that nearly coincide, one above and one below."""
    from matplotlib.patheffects import withStroke

    width = axes.get_xlim()[1]
    for at, (name, cost, quality) in enumerate(stages):
        crowded = any(abs(cost - c) < 0.11 * width and abs(quality - q) < 0.03 for _, c, q in stages[:at])
        right = cost > 0.8 * width
        axes.annotate(
            name, (cost, quality), xytext=(-8 if right else 8, 9 if crowded else -11), textcoords="offset points",
            ha="right" if right else "left", fontsize=8, color=_INK,
            path_effects=[withStroke(linewidth=3, foreground="white")], zorder=6,
        )  # fmt: skip


def _page(outcome: Outcome, picture: bytes) -> str:
    labelled = [*((f"{one.asked:.0%}", one) for one in outcome.curve)]
    labelled.append((f"chosen: {outcome.chosen.asked:.1%}", outcome.chosen))
    rows = "".join(
        "<tr>"
        + "".join(f"<td>{html.escape(cell)}</td>" for cell in _row(label, one, outcome.recorded.stages))
        + "</tr>"
        for label, one in labelled
    )
    titles = "".join(f"<th>{title}</th>" for title in (*_TITLES, "stages"))
    encoded = base64.b64encode(picture).decode("ascii")
    name = html.escape(outcome.policy)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{name}: calibration</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; color: {_INK}; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }}
img {{ max-width: 100% }} table {{ border-collapse: collapse }}
td, th {{ padding: .3rem .8rem; text-align: right; border-bottom: 1px solid #e4e8ec }}
td:last-child, th:last-child {{ text-align: left }} tr:last-child {{ font-weight: 600 }}
</style></head><body>
<h1>{name}: cost against quality</h1>
<p>{html.escape(outcome.statement)}</p>
<img alt="Cost against quality" src="data:image/png;base64,{encoded}">
<table><thead><tr>{titles}</tr></thead>
<tbody>{rows}</tbody></table>
</body></html>
"""
