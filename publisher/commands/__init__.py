"""The commands of `publisher`, a file for each group of them: parse, call one function, print."""
