"""The commands of `puller`, a file for each group of them: parse, call one function, print."""
