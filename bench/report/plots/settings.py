"""Matplotlib under our own settings: a plot looks the same whatever the person who asks for it has set up.

What matplotlib takes from its surroundings (its user guide: "Customizing Matplotlib", "Environment variables", and
`matplotlib.matplotlib_fname`):

- `MPLBACKEND`: a backend, an error at import where it is not there. Not used: figures are drawn without one.
- `matplotlibrc` in the working directory, at or below `MATPLOTLIBRC`, in `MPLCONFIGDIR`, in the configuration folder of
  `XDG_CONFIG_HOME` or the home directory. Not used: what it is imported with is its own, and drawn with STYLE.
- style files in the configuration folder: not used, as nothing asks for a style.
- a folder for its list of fonts, `MPLCONFIGDIR` or that of `XDG_CACHE_HOME` or the home directory: used where it can be
  written, else a temporary one, without a word.
- fonts: DejaVu Sans, which comes with matplotlib.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import tempfile
from collections.abc import Iterator

VARIABLES = ("MPLBACKEND", "MATPLOTLIBRC")


@contextlib.contextmanager
def _away() -> Iterator[None]:
    """Without the variables, and in an empty folder: importing reads settings, and may stumble over them."""
    kept = {name: os.environ.pop(name) for name in VARIABLES if name in os.environ}
    place = None
    with contextlib.suppress(OSError):
        place = os.open(".", os.O_RDONLY)
    with tempfile.TemporaryDirectory() as empty:
        rc = os.path.join(empty, "matplotlibrc")
        with open(rc, "w"):  # the first place that is looked at: everything else is left alone
            pass
        os.chdir(empty)
        try:
            yield
        finally:
            os.environ.update(kept)
            if place is not None:
                os.chdir(place)
                os.close(place)


logging.getLogger("matplotlib").setLevel(logging.CRITICAL)  # it tells of folders that it cannot write
if "matplotlib" not in sys.modules:
    with _away():
        import matplotlib
        import matplotlib.font_manager
else:
    import matplotlib

from bench.report.plots.style import STYLE  # noqa: E402 (imports matplotlib)


@contextlib.contextmanager
def own_settings() -> Iterator[None]:
    """Draw with matplotlib's own settings and STYLE, and leave those of the process as they were."""
    with matplotlib.rc_context():
        matplotlib.rcParams.update({**_own(), **STYLE})
        yield


def _own() -> dict[str, object]:
    """All settings but the backend, which is not ours to change in a process that shows figures."""
    return {name: value for name, value in matplotlib.rcParamsDefault.items() if not name.startswith("backend")}
