"""Settings of the whole suite."""

import os

import hypothesis

# A failing example prints the line that repeats it; CI draws the same examples every time.
hypothesis.settings.register_profile("default", deadline=None, print_blob=True)
hypothesis.settings.register_profile("ci", deadline=None, print_blob=True, derandomize=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "default")
