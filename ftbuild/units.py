"""Sizes and ages as people write them: `8 GB`, `30 d`."""

import re

_BYTES = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_BYTES |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
_SECONDS = {"s": 1, "min": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_QUANTITY = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?) ?([A-Za-z]+)")


def parse_size(text: str) -> int | None:
    """Return the bytes that `text` stands for, or None if it is not a size.

    Units: B, KB, MB, GB, TB are powers of 1000; KiB, MiB, GiB, TiB of 1024.
    """
    match = _QUANTITY.fullmatch(text)
    if match is None or match[2].upper() not in _BYTES:
        return None
    return int(float(match[1]) * _BYTES[match[2].upper()])


def parse_age(text: str) -> int | None:
    """Return the seconds that `text` stands for, or None if it is not an age.

    Units: s, min, h, d, w.
    """
    match = _QUANTITY.fullmatch(text)
    if match is None or match[2] not in _SECONDS:
        return None
    return int(float(match[1]) * _SECONDS[match[2]])
