"""Runtimes that are not torch: llama.cpp, OpenVINO, HTTP servers. Engines and scorers stand on these."""
