"""Change histories, attestations, credentials, and the signatures on them."""
