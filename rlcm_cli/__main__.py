"""`python -m rlcm_cli` is the same program as the console script `rlcm`."""

from rlcm_cli.cli.app import main

if __name__ == "__main__":
    main()
