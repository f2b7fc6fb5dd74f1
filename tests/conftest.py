"""What all tests share: golden files, rewritten by `pytest --update-golden`."""

import os
import signal
from pathlib import Path

# As the command line does: threads that spin while they wait slow a shared machine down. Read when torch loads.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest  # noqa: E402
import torch  # noqa: E402

# Without a GPU its kernels run in Triton's interpreter. Triton reads this when it is first imported, its own functions
# too, so it stands before any test file, whichever of them imports Triton.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
# A runner in the background passes on that Ctrl-C is ignored; a person's shell does not.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser):
    parser.addoption("--update-golden", action="store_true", help="write golden files instead of comparing with them")


@pytest.fixture
def golden(request):
    """`golden(path, text)` holds that a file has this text."""

    def compare(path: Path, text: str) -> None:
        if request.config.getoption("--update-golden"):
            path.write_text(text, encoding="utf-8")
        assert path.read_text(encoding="utf-8") == text

    return compare
