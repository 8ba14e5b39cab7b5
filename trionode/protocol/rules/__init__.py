"""Pure rules that a running node and the verifier both call, so that a proof is about the rules that run."""
