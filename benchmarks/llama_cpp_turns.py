"""llama.cpp in `end_to_end.py`: milliseconds of a prompt and of a token, once for every line read.

    PYTHON benchmarks/llama_cpp_turns.py FILE.gguf PROMPT MORE THREADS

It runs in an environment with llama-cpp-python and needs nothing else.
"""

import json
import sys
import time

from llama_cpp import Llama


def main() -> None:
    file, prompt, more, threads = sys.argv[1], *map(int, sys.argv[2:])
    model = Llama(
        file,
        n_ctx=prompt + more,
        n_batch=prompt,
        n_threads=threads,
        n_threads_batch=threads,
        verbose=False,
    )
    for _ in sys.stdin:
        model.reset()
        began = time.perf_counter()
        model.eval(list(range(100, 100 + prompt)))
        read = time.perf_counter()
        for token in range(more):
            model.eval([100 + token])
        wrote = time.perf_counter()
        figures = {"prompt, ms": 1e3 * (read - began), "token, ms": 1e3 * (wrote - read) / more}
        print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
