"""A transcript: commands and everything they say, in one text that is played against a fresh host.

    # a remark
    $ vms list                 `fpstated ctl vms list`; its output follows, standard error with `! `, a status if any
    % stuck vms/a/vcpus/0      what no command does: a guest whose container cannot grow

python -m tests.ctl.transcript FILE     play it and write it anew with what was said
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.ctl.rig import CtlHost, ctl_host


def played(text: str, host: CtlHost) -> str:
    """The transcript with what the commands say now."""
    found = []
    for line in text.splitlines():
        if line.startswith(("#", "$", "%")):
            found.append(f"{line}\n")
        if line.startswith("$ "):
            found += [host.ctl(line[2:]).golden, "\n"]
        elif line.startswith("% "):
            _do(line[2:].split(), host)
            found.append("\n")
    return "".join(found).rstrip() + "\n"


def _do(words: list[str], host: CtlHost) -> None:
    match words:
        case ["stuck", vcpu]:
            host.get_stuck(vcpu)
        case ["session", client, *vcpus]:
            host.open_session(*vcpus, client=client)
        case _:
            raise ValueError(f"% {' '.join(words)}: expected stuck VCPU or session CLIENT VCPU...")


def main() -> int:
    """Play the files and write them."""
    for name in sys.argv[1:]:
        path = Path(name)
        with tempfile.TemporaryDirectory() as folder, ctl_host(Path(folder)) as host:
            path.write_text(played(path.read_text(), host))
    return 0


if __name__ == "__main__":
    sys.exit(main())
