"""Commands that use cubes: info, validate."""


from copcube.cli.common import Arguments, Commands, command, show


def add(commands: Commands) -> None:
    """Add the commands to the parser."""
    info = command(commands, "info", _info, "show what a cube holds", "copcube info world.zarr")
    info.add_argument("cube", metavar="CUBE.zarr")

    validate = command(
        commands,
        "validate",
        _validate,
        "prove that a cube is whole and right",
        "copcube validate world.zarr",
    )
    validate.add_argument("cube", metavar="CUBE.zarr")


def _info(arguments: Arguments) -> None:
    show(arguments.cube)


def _validate(arguments: Arguments) -> int:
    from copcube.builds import validate_rows
    from copcube.cube import validate

    problems = [*validate(arguments.cube), *validate_rows(arguments.cube)]
    for problem in problems:
        print(problem)
    if not problems:
        print(f"{arguments.cube}: a valid embedding cube")
    return 1 if problems else 0
