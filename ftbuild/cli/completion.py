"""Print what makes a shell complete ftbuild's commands, flags and targets.

bash: put `eval "$(ftbuild completion bash)"` into ~/.bashrc
zsh: put `eval "$(ftbuild completion zsh)"` into ~/.zshrc, below compinit
fish: `ftbuild completion fish > ~/.config/fish/completions/ftbuild.fish`

Exit status:
  0 done; 2 there is no hook for such a shell.
"""

from argparse import ArgumentParser, Namespace

SHELLS = ("bash", "zsh", "fish")


def arguments(parser: ArgumentParser) -> None:
    """Add what `completion` takes."""
    parser.add_argument("shell", metavar="SHELL", choices=SHELLS, help=", ".join(SHELLS))


def run(options: Namespace) -> int:
    """Print the hook."""
    from argcomplete.shell_integration import shellcode

    print(shellcode(["ftbuild"], shell=options.shell))
    return 0
