"""Runs kernels on the CPU, thread by thread, and says where one does what it must not."""

from tests.emulator.build import EmulatorError, sanitized_environment
from tests.emulator.ops import emulated, run
from tests.emulator.runner import execute, run_plan, run_window

__all__ = ["EmulatorError", "emulated", "execute", "run", "run_plan", "run_window", "sanitized_environment"]
