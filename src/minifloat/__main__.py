"""`python -m minifloat`, which torchrun needs: torchrun --nproc-per-node 2 -m minifloat quantize ..."""

from minifloat.cli import main

main()
