//! Promises of a mounted volume that a test can only see from outside: what it costs, what it keeps when the store is in
//! trouble, and what becomes of it over hours. Time is virtual: nothing here waits.

#![allow(clippy::unwrap_used, reason = "each step of a test must succeed")]

mod durability;
mod faults;
mod hours;
mod repair_race;
mod seen;
mod settings;
mod snapshots;
mod space;
mod spill;
mod tree_repair;
mod trouble;

/// Measured numbers, for whoever runs a test by hand.
fn say(text: &str) {
    use std::io::Write;
    writeln!(std::io::stderr(), "{text}").expect("there is a standard error");
}
