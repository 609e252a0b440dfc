"""Peak performance of devices, from their data sheets."""

from __future__ import annotations

import jax

# Dense bfloat16 FLOP/s of one device, by the start of `device_kind`; longer names first.
_PEAK_BF16 = (
    ("NVIDIA H200", 989e12),
    ("NVIDIA H100 PCIe", 756e12),
    ("NVIDIA H100", 989e12),
    ("NVIDIA GH200", 989e12),
    ("NVIDIA B200", 2250e12),
    ("NVIDIA A100", 312e12),
    ("NVIDIA L40S", 362e12),
    ("TPU7x", 2307e12),
    ("TPU v6 lite", 918e12),
    ("TPU v6e", 918e12),
    ("TPU v5 lite", 197e12),
    ("TPU v5e", 197e12),
    ("TPU v5p", 459e12),
    ("TPU v5", 459e12),
    ("TPU v4", 275e12),
)


def peak_flops(device: jax.Device | None = None) -> float:
    """Dense bfloat16 FLOP/s of a device; 0 if unknown, as on a CPU.

    Args:
      device: default: the first device.
    """
    kind = (device or jax.devices()[0]).device_kind
    return next((flops for name, flops in _PEAK_BF16 if kind.startswith(name)), 0.0)
