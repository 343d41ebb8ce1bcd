"""Lint protos/**/*.proto with buf, by the rules of protos/buf.yaml and without a network.

buf would fetch the google/rpc protos that ours import from its own registry. So it is given an image that protoc made
of ours and of what they import, and is told to leave Google's out of its judgement.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tools.protoc import PROTOS, ROOT, CompilerMissingError, run_protoc

IMAGE = ROOT / "build" / "fpstate.binpb"
CONFIG = PROTOS / "buf.yaml"


def main() -> int:
    """Write build/fpstate.binpb and lint it; return buf's exit status."""
    IMAGE.parent.mkdir(exist_ok=True)
    try:
        run_protoc("--include_imports", "--include_source_info", f"--descriptor_set_out={IMAGE}")
    except CompilerMissingError as error:
        print(f"lint_protos: {error}", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        return error.returncode
    buf = Path(sys.executable).with_name("buf")
    words = [buf, "lint", IMAGE, "--config", CONFIG, "--exclude-path", "google"]
    return subprocess.run([str(word) for word in words], cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
