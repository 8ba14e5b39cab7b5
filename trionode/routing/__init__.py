"""How messages move within a node: router, mailboxes, memory channels, links and the rules of access."""
