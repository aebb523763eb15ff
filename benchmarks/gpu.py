"""What a GPU makes of Phi-3-mini's real shape: training speed, memory and generation, random weights.

    python benchmarks/gpu.py --json --out gpu.json

Less than ten minutes, no network. Each part is told on stderr and kept in `--out` as it comes, and a part
that fails costs its own figures only. The libraries must be those of `requirements.lock`, but for torch:
`gpu_needs.py` says which, and how a machine without a network gets them. `--tiny` runs the same steps on a
small shape, on a CPU too, through the batches and the loss of a GPU: it shows that the script works, no
figure.
"""

import sys

import gpu_needs
from harness import main

if __name__ == "__main__":
    if said := gpu_needs.problems(gpu_needs.locked()):
        sys.exit(gpu_needs.refusal(said))
    try:
        # Not at the top: it loads the libraries that were just asked for.
        from gpu_parts import measure
    except ImportError as error:
        sys.exit(gpu_needs.refusal([f"{error}."]))
    tiny = "--tiny" in sys.argv
    sys.argv = [word for word in sys.argv if word != "--tiny"]
    main(lambda quick: measure(quick, tiny=tiny), __doc__ or "")
