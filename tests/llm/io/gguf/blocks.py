"""Blocks of quantised numbers: random ones, and their meaning, number by number.

The layouts are those of `block_q2_K` and so on in `ggml-common.h` of ggml.
"""

from __future__ import annotations

import numpy as np

# Numbers and bytes of a block, and where its scales lie: (offset, count) of float16.
LAYOUTS = {
    "Q4_0": (32, 18, (0, 1)),
    "Q4_1": (32, 20, (0, 2)),
    "Q5_0": (32, 22, (0, 1)),
    "Q5_1": (32, 24, (0, 2)),
    "Q8_0": (32, 34, (0, 1)),
    "Q2_K": (256, 84, (80, 2)),
    "Q3_K": (256, 110, (108, 1)),
    "Q4_K": (256, 144, (0, 2)),
    "Q5_K": (256, 176, (0, 2)),
    "Q6_K": (256, 210, (208, 1)),
    "IQ4_NL": (32, 18, (0, 1)),
}
_LEVELS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


def random(dtype: str, rows: int, columns: int, seed: int = 0) -> np.ndarray:
    """Random blocks, `[rows, bytes]`, whose numbers are about as large as weights."""
    numbers, size, (offset, count) = LAYOUTS[dtype]
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (rows * columns // numbers, size), np.uint8)
    largest = {"Q6_K": 5e-5}.get(dtype, {32: 1e-2, 256: 2e-4}[numbers])
    scales = rng.uniform(0.1 * largest, largest, (len(blocks), count)).astype(np.float16)
    blocks[:, offset : offset + 2 * count] = scales.view(np.uint8)
    return blocks.reshape(rows, -1)


def values(dtype: str, data: np.ndarray) -> np.ndarray:
    """Numbers of the blocks in `[rows, bytes]`."""
    numbers, size, (offset, count) = LAYOUTS[dtype]
    result = []
    for block in data.reshape(-1, size):
        scales = block[offset : offset + 2 * count].view(np.float16).astype(float)
        rest = [int(n) for n in np.delete(block, np.s_[offset : offset + 2 * count])]
        result.append([_value(dtype, at, rest, scales) for at in range(numbers)])
    return np.array(result).reshape(len(data), -1)


def _value(dtype: str, at: int, rest: list[int], scales: np.ndarray) -> float:
    """Number `at` of a block; `rest` are its bytes but for the scales."""
    d, low = scales[0], scales[-1]
    if dtype == "Q8_0":
        return d * _signed(rest[at])
    if dtype in ("Q4_0", "Q4_1", "IQ4_NL"):
        q = _nibble(rest, at, 16)
        return {"Q4_0": d * (q - 8), "Q4_1": d * q + low, "IQ4_NL": d * _LEVELS[q]}[dtype]
    if dtype in ("Q5_0", "Q5_1"):
        q = _nibble(rest[4:], at, 16) + 16 * (rest[at // 8] >> at % 8 & 1)
        return d * (q - 16) if dtype == "Q5_0" else d * q + low
    return {"Q2_K": _q2, "Q3_K": _q3, "Q4_K": _q45, "Q5_K": _q45, "Q6_K": _q6}[dtype](
        at, rest, d, low
    )


def _q2(at: int, rest: list[int], d: float, low: float) -> float:
    half, pair, place = at // 128, at % 128 // 32, at % 32
    scale = rest[at // 16]
    q = rest[16 + 32 * half + place] >> 2 * pair & 3
    return d * (scale & 15) * q - low * (scale >> 4)


def _q3(at: int, rest: list[int], d: float, low: float) -> float:
    mask, codes, packed = rest[:32], rest[32:96], rest[96:]
    half, pair, place, group = at // 128, at % 128 // 32, at % 32, at // 16
    scale = packed[group] & 15 if group < 8 else packed[group - 8] >> 4
    scale += 16 * (packed[8 + group % 4] >> 2 * (group // 4) & 3)
    q = codes[32 * half + place] >> 2 * pair & 3
    q -= 0 if mask[place] >> at // 32 & 1 else 4
    return d * (scale - 32) * q


def _q45(at: int, rest: list[int], d: float, low: float) -> float:
    packed, codes = rest[:12], rest[-128:]
    group, place = at // 32, at % 32
    if group < 4:
        scale, least = packed[group] & 63, packed[group + 4] & 63
    else:
        scale = (packed[group + 4] & 15) + 16 * (packed[group - 4] >> 6)
        least = (packed[group + 4] >> 4) + 16 * (packed[group] >> 6)
    q = codes[32 * (group // 2) + place] >> 4 * (group % 2) & 15
    if len(rest) > 140:  # the fifth bit
        q += 16 * (rest[12 + place] >> group & 1)
    return d * scale * q - low * least


def _q6(at: int, rest: list[int], d: float, low: float) -> float:
    half, part, place = at // 128, at % 128 // 32, at % 32
    q = rest[64 * half + 32 * (part % 2) + place] >> 4 * (part // 2) & 15
    q += 16 * (rest[128 + 32 * half + place] >> 2 * part & 3)
    return d * _signed(rest[192 + at // 16]) * (q - 32)


def _nibble(codes: list[int], at: int, count: int) -> int:
    return codes[at] & 15 if at < count else codes[at - count] >> 4


def _signed(byte: int) -> int:
    return byte - 256 if byte > 127 else byte
