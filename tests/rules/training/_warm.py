"""Fork a process for each request: `{"jobs": [["sft", FOLDER], …], "kill_at": STEP, "uid": UID}`.

The libraries are imported once, as in the warm parent of a build. Each line of standard input is
a request, each line of standard output the exit status of its process. With `kill_at` it takes a
checkpoint after each step and kills itself in that step; with `uid` it becomes that user between
the first job, which imports what is still missing, and the others.
"""

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from _child import PrintingContext, run

from ftbuild_rules.training import _checkpoints


def work(request: dict[str, Any]) -> None:
    for number, (rule, folder) in enumerate(request["jobs"]):
        if number == 1 and request.get("uid") is not None:
            os.setgid(request["uid"])
            os.setuid(request["uid"])
            os.environ.update(HOME="/nonexistent", USER="nobody", LOGNAME="nobody")
            os.chdir(folder)
        run(rule, Path(folder))


def main() -> None:
    import peft  # noqa: F401
    import torch  # noqa: F401
    import transformers  # noqa: F401
    from trl import DPOTrainer, KTOTrainer, RewardTrainer, SFTTrainer  # noqa: F401

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                kill_at = request.get("kill_at")
                if kill_at is not None:
                    _checkpoints.INTERVAL_S = 0.0
                    _checkpoints.SHARE = 0
                    PrintingContext.kill_at = kill_at
                work(request)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), file=answers, flush=True)


if __name__ == "__main__":
    main()
