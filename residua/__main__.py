"""`python -m residua`, which `torchrun -m residua` needs."""

from residua.cli import main

if __name__ == "__main__":
    main()
