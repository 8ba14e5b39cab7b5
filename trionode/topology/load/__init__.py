"""From a topology file to a spec."""
