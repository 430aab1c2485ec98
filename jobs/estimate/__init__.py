"""What an experiment will need before it runs: calls, tokens, dollars, GPU-hours, storage, and what its n can show.

Every formula stands in docs/money.md. What cannot be known yet is None, and is printed as unknown.
"""

CHARS_PER_TOKEN = 4.0
"""English under the usual BPE vocabularies: 4 to 4.6 characters a token, so this counts rather too many."""
TOKENS_PER_WORD = 4 / 3
REPLY_WORDS = 28
"""What every prompt asks for on average; taken where nothing was measured."""
MESSAGE_TOKENS = 4
"""What a chat format adds to each message."""


def tokens(chars: float) -> float:
    """Tokens of so many characters of English."""
    return chars / CHARS_PER_TOKEN
