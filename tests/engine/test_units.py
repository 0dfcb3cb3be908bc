"""Sizes and ages as people write them."""

import pytest

from ftbuild.units import parse_age, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0 B", 0),
        ("8 GB", 8_000_000_000),
        ("8GB", 8_000_000_000),
        ("8 gb", 8_000_000_000),
        ("1.5 MB", 1_500_000),
        ("1 GiB", 1_073_741_824),
        ("1 KiB", 1024),
        ("2 TB", 2_000_000_000_000),
        ("8", None),
        ("8 G", None),
        ("GB", None),
        ("-1 GB", None),
        ("1e3 GB", None),
        ("8  GB", None),
        ("٣ GB", None),
    ],
)
def test_a_size_is_a_number_and_a_unit(text: str, size: int | None) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "age"),
    [
        ("30 d", 2_592_000),
        ("1 w", 604_800),
        ("12h", 43_200),
        ("90 min", 5_400),
        ("1.5 h", 5_400),
        ("10 s", 10),
        ("30", None),
        ("1 month", None),
    ],
)
def test_an_age_is_a_number_and_a_unit(text: str, age: int | None) -> None:
    assert parse_age(text) == age
