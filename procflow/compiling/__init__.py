"""Compiling: a declared pipeline into a TaskGraph, one noun a file. Pure."""
