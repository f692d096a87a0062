"""Amounts of money as text. Imports nothing heavy: commands that must start fast use it."""

from decimal import Decimal


def plain(amount: Decimal) -> str:
    """A decimal number without an exponent and without zeros at its end."""
    text = f"{amount:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
