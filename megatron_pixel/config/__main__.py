"""Print the table of all settings that docs/configuration.md holds: ``python -m megatron_pixel.config``."""

from megatron_pixel.config.command_line import reference

if __name__ == "__main__":
    print(reference())
