"""One experiment in memory: build, train, choose on held-out images, evaluate."""
