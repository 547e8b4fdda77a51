"""The command line: parse, build a configuration, call one function, show the result."""
