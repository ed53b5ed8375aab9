"""The formats in which text comes: UTF-8, packed files, JSON records, columns. Each gives what is in a file as a stream."""
