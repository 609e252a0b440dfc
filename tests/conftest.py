"""Eight fake CPU devices for every test, and compiled programs kept between runs."""

import os
import pathlib
import signal

# Tests send signals; whoever started them (`nohup`, a shell's background job) may ignore some.
for _number, _handler in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGHUP, signal.SIG_DFL),
    (signal.SIGTERM, signal.SIG_DFL),
):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _handler)

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
os.environ["HF_HUB_OFFLINE"] = "1"  # a name that no test has laid out in a cache is an error

import gc  # noqa: E402

import jax  # noqa: E402  # reads the environment above
import pytest  # noqa: E402

_MAPS = pathlib.Path("/proc/self/maps")


@pytest.fixture(autouse=True, scope="module")
def few_compiled_programs():
    """Forgets compiled programs before Linux runs out of mappings for them.

    Each CPU program holds several of the 65,530 mappings a process may have; with none left the
    next compilation ends the process with a segmentation fault.
    """
    yield
    if _MAPS.exists() and _MAPS.read_bytes().count(b"\n") > 20_000:
        jax.clear_caches()
        gc.collect()
