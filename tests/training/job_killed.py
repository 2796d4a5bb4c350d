"""Trains the run of argv[1] in the folder argv[2]; the test kills it at a random moment."""

import sys

import phalanx as px

if __name__ == "__main__":
    px.train(px.parse(sys.argv[1]), folder=px.training.RunFolder(sys.argv[2]))
