"""Language models of the Llama kind: the network, its sizes, and what can be cut of it."""
