"""Chat templates: conversations to text in a child process that can be killed, to tokens, and to what of them is learnt."""
