//! The parts of the pannier command.
