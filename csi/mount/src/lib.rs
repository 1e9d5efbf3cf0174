//! The FUSE skin over volume, and the engine process
