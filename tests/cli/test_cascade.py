"""`headwater cascade`: a calibration and a replay as a user runs them."""

import re
from pathlib import Path

import pytest

from services.inference.calibration.versions import written
from tests.cli.conftest import Headwater
from tests.inference.calibration.samples import chain, lines, policy, write


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    """A gold file and a policy."""
    gold, before = tmp_path / "gold.jsonl", tmp_path / "policy.yaml"
    write(gold, lines(chain(400)))
    before.write_text(written(policy(), ()))
    return str(gold), str(before)


async def test_a_calibrated_policy_is_written_checked_and_replayed(
    headwater: Headwater, files: tuple[str, str], tmp_path: Path
) -> None:
    """What calibrate writes is what `policy check` and `cascade replay` take."""
    gold, before = files
    plots = tmp_path / "plots"
    asked = ("--gold", gold, "--policy", before, "--target-quality", ".95", "--plot", str(plots))
    ended = await headwater("cascade", "calibrate", *asked)
    assert ended.code == 0, ended.err
    assert re.search(r"estimated from 400 questions", ended.out)
    assert (plots / "cascade.png").is_file()
    assert (plots / "cascade.html").is_file()
    after = tmp_path / "policy.calibrated.yaml"
    assert (await headwater("policy", "check", str(after))).code == 0
    replayed = await headwater("cascade", "replay", "--recorded", gold, "--policy", str(after), "--json")
    assert replayed.code == 0, replayed.err
    assert replayed.json["questions"] == 400
    assert replayed.json["cost_ratio"] < 1


async def test_a_wrong_gold_file_writes_nothing(headwater: Headwater, files: tuple[str, str], tmp_path: Path) -> None:
    """The line and the reason are told, and the folder stays as it was."""
    gold, before = files
    rows = lines(chain(400))
    rows[6]["outputs"]["small"].pop("cost_usd")
    write(Path(gold), rows)
    asked = ("--gold", gold, "--policy", before, "--target-quality", ".95", "--plot", str(tmp_path / "plots"))
    ended = await headwater("cascade", "calibrate", *asked)
    assert ended.code == 6
    assert "line 7: outputs.small.cost_usd: has no price" in ended.err
    assert not (tmp_path / "policy.calibrated.yaml").exists()
    assert not (tmp_path / "plots").exists()


@pytest.mark.parametrize("wrong", [("--target-quality", "98"), ("--target-quality", ".9", "--confidence", "90")])
async def test_a_percentage_is_told_to_be_a_share(
    headwater: Headwater, files: tuple[str, str], wrong: tuple[str, ...]
) -> None:
    """98 is not .98."""
    gold, before = files
    ended = await headwater("cascade", "calibrate", "--gold", gold, "--policy", before, *wrong)
    assert ended.code == 2
    assert "as in .9" in ended.err
