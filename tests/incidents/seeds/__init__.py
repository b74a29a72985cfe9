"""The four reports that this project began with, each as the whole deployment it was."""
