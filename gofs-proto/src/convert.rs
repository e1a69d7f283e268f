//! Conversions between wire messages and gofs-tree types.
