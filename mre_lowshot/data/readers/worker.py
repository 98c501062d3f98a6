"""The process that decodes files with SimpleITK (`itk_process`); it ends when its input ends."""

from __future__ import annotations

import json
import os
import sys
from typing import Any


def serve(requests: Any, answers: Any) -> None:
    """Answer each request, a line of JSON, with a line of JSON and the voxels."""
    from mre_lowshot.data.readers.simpleitk import decode

    for line in requests:
        asked = json.loads(line)
        data: bytes | memoryview = b""
        try:
            answer, data = decode(asked["path"], header_only=asked["action"] == "header")
        except Exception as problem:  # any error is an answer: the next file is read all the same
            text = str(problem).strip().splitlines()
            answer = {"error": text[-1].strip() if text else type(problem).__name__}
        answers.write(json.dumps({**answer, "bytes": len(data)}).encode() + b"\n")
        answers.write(data)
        answers.flush()


def main() -> None:
    """Serve standard input; what libraries print goes nowhere."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    serve(sys.stdin.buffer, answers)


if __name__ == "__main__":
    main()
