//! A well-behaved bucket in memory.
