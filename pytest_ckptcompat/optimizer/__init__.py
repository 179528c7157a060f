"""The optimizer stage: name the state by parameter, grow and check it, then take one step with torch."""
