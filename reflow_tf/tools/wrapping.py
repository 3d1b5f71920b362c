"""Lines for a terminal, of sentences that may name layers."""

import textwrap

WIDTH = 100


def wrap(text: str, begin: str = "") -> list[str]:
    """Lines that fit a terminal; a layer's name is never broken."""
    return textwrap.wrap(
        text, WIDTH, initial_indent=begin, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
    )
