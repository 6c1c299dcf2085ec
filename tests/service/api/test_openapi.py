"""Whatever the interface's own description allows to be sent, no answer is a 5xx or one that it does not name."""

import subprocess
import sys
from pathlib import Path

from tests.installation import Installation, add_stem, encode, noise_bursts, wait_ready

EXAMPLES = 15  # for each operation; more of them by hand: see CONTRIBUTING.md


def test_no_answer_to_what_the_description_allows_is_a_5xx_or_of_a_status_that_it_lacks(running: Installation) -> None:
    with running.client() as client:
        wait_ready(client, *(add_stem(client, encode(noise_bursts(seed)), track="one track") for seed in range(2)))
    command = [
        *(str(Path(sys.executable).parent / "schemathesis"), "run", f"{running.url}/openapi.json"),
        *("--checks", "not_a_server_error,status_code_conformance", "--max-examples", str(EXAMPLES)),
        *("--seed", "1", "--no-color"),
    ]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert ran.returncode == 0, ran.stdout[-5000:]
    assert "Tested" in ran.stdout or "passed" in ran.stdout, ran.stdout[-2000:]
