"""Convolutions, pools and BatchNorm's sums of networks on a CPU, by oneDNN and C++. The extra `cpu` installs oneDNN."""
