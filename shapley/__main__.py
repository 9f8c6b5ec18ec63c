"""``python -m shapley``: the command line, from whichever copy of the package is found first."""

from shapley.cli.main import main

if __name__ == "__main__":
    main()
