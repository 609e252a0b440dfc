"""Eight fake CPU devices for every test, and compiled programs kept between runs."""

import os
import pathlib

_FLAGS = (
    "--xla_force_host_platform_device_count=8",
    # Eight devices on two cores: collectives of different steps must not wait for each other.
    "--xla_cpu_enable_concurrency_optimized_scheduler=false",
    "--xla_cpu_collective_call_terminate_timeout_seconds=120",
    # Tests compile much and compute little; training steps ask for their own level.
    "--xla_backend_optimization_level=0",
)
_CACHE = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache"))

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = " ".join((os.environ.get("XLA_FLAGS", ""), *_FLAGS)).strip()
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE / "xrec_jax" / "compiled"))
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
