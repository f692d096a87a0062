"""What the guard in front of the engine lets through, on canonical text."""

import pytest

from services.contracts.failures import Rejected
from services.metering.reports.statements import check_statement


@pytest.mark.parametrize(
    "canonical",
    [
        "SELECT 'it\\'s file(1) INTO OUTFILE'",
        "SELECT 'a''b', `into`, outfile FROM t",
        "DESCRIBE TABLE (SELECT 1)",
        "DESCRIBE TABLE headwater.`odd name`",
        "SELECT filesize, my_file FROM t",
    ],
)
def test_texts_and_names_are_not_mistaken(canonical: str) -> None:
    """Words inside texts and longer names do not trip the guard."""
    check_statement(canonical)


@pytest.mark.parametrize(
    "canonical",
    [
        "",
        "'select'",
        "SELECT 'a\\\\', file('x')",
        "SELECT '''', file('x')",
        "SELECT `a\\`b`, file('x')",
        "SELECT 1 INTO OUTFILE 'x' AND STDOUT",
        "EXPLAIN SELECT 1 INTO OUTFILE 'x'",
        "DESCRIBE TABLE `url`('x')",
        "DESCRIBE TABLE url  ('x')",
        "BACKUP TABLE t TO File('x')",
    ],
)
def test_no_quoting_hides_what_is_refused(canonical: str) -> None:
    """Escapes and doubled quotes end where the engine ends them."""
    with pytest.raises(Rejected) as raised:
        check_statement(canonical)
    assert raised.value.reason == "SQL_REFUSED"
